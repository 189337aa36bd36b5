"""Access tokens: the text that only the holder gets, and the record in the store."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta

from autotune.errors import JobSpecError, UnauthenticatedError
from autotune.jobs.records import Scope, TokenRecord
from autotune.jobs.timestamps import now
from autotune.store.base import TokenStore

#: Prefix of every token, so that scanners for leaked secrets recognise it.
_PREFIX = "autotune"
#: Random bytes of a secret.
_BYTES = 32
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token, and the only copy of its text."""

    token: TokenRecord
    #: Text that the holder sends; it cannot be recovered later.
    text: str


def add_token(store: TokenStore, name: str, *, scope: Scope = Scope.SUBMITTER, days: float | None = None) -> NewToken:
    """Record a new token.

    Args:
        store: records the token.
        name: its holder, who becomes the owner of the jobs submitted with it.
        scope: what it allows.
        days: days until it expires; None means never.

    Raises:
        JobSpecError: if the name is empty, too long or not one line, or the days are out of range.
    """
    if not name.isprintable() or not 1 <= len(name) <= _LONGEST_NAME:
        raise JobSpecError(f"a token's name must be one line of 1 to {_LONGEST_NAME} characters, but got {name!r}")
    if days is not None and not 0 < days <= 36_500:
        raise JobSpecError(f"a token's days must be > 0 and at most 36500, but got {days:g}")
    at = now()
    expires_at = None if days is None else at + timedelta(days=days)
    token = TokenRecord(id=secrets.token_hex(4), name=name, scope=scope, created_at=at, expires_at=expires_at)
    text = f"{_PREFIX}_{token.id}_{secrets.token_urlsafe(_BYTES)}"
    store.add_token(token, _hash(text))
    return NewToken(token=token, text=text)


def holder(store: TokenStore, text: str) -> TokenRecord:
    """Return the record of the valid token with the given text.

    Raises:
        UnauthenticatedError: if there is no such token; the message does not reveal the reason.
    """
    _, _, rest = text.partition("_")
    token_id = rest.partition("_")[0][:32]
    found = store.token(token_id) if token_id.isalnum() else None
    # Compare hashes even without a record, so that the response time reveals nothing.
    known = hmac.compare_digest(_hash(text), found[1] if found else _hash(""))
    if not found or not known or not found[0].is_valid(now()):
        raise UnauthenticatedError("the token is wrong, revoked or expired; ask for one: autotune token add NAME")
    return found[0]


def _hash(text: str) -> str:
    # No salt and no slow hash, because guessing 256 random bits is hopeless at any speed.
    return hashlib.sha256(text.encode()).hexdigest()
