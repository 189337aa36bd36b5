"""Records of deployments, and of the audit chain."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from autotune.deployments.rollout import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One map that a deployment ran, runs or may run."""

    #: Place among the deployment's revisions, from 1.
    number: int
    #: Job that measured the map.
    job_id: str
    #: Number of the map's trial in that job.
    trial: int
    stage: Stage
    #: Time of the record, with a time zone.
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A named place where maps run, of which at most one is active."""

    #: Unique name.
    name: str
    #: Raised by each change; a change for another epoch is refused.
    epoch: int
    #: All revisions, by number.
    revisions: tuple[Revision, ...]
    #: Number of the revision that a rollback makes active; None if there is none.
    last_good: int | None = None

    @property
    def active(self) -> Revision | None:
        """The active revision; None before the first promotion."""
        return next((one for one in self.revisions if one.stage is Stage.ACTIVE), None)


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
