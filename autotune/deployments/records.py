"""Records of the audit chain."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of a chain as somebody saw it; kept elsewhere, it shows whether the chain was cut or rewritten."""

    #: Position of the last entry; 0 if there was none.
    position: int
    #: Hash of that entry, 64 hexadecimal digits; zeros if there was none.
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One change, chained to the change before it."""

    #: Place in the chain, from 1 without gaps.
    position: int
    #: When it happened, with a time zone.
    at: datetime
    #: Who did it, such as a token's name.
    actor: str
    #: What was done, such as ``promote``.
    action: str
    #: What it was done to, such as a deployment's name.
    subject: str
    #: Why, and by which figures: JSON with keys of text and finite numbers.
    payload: Mapping[str, Any]
    #: Hash of the entry before; zeros at position 1.
    previous_sha256: str
    #: Hash of all of the above, 64 hexadecimal digits.
    sha256: str

    @property
    def head(self) -> Head:
        """The chain's head while this entry is its last."""
        return Head(position=self.position, sha256=self.sha256)
