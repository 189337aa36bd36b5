"""Access tokens: what is told to their holder once, and what is kept."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta

from autotune.errors import JobSpecError, UnauthenticatedError
from autotune.jobs.records import Scope, TokenRecord
from autotune.jobs.timestamps import now
from autotune.store.base import Store

#: Every token starts so, that tools which look for leaked secrets find it.
_PREFIX = "autotune"
#: Random bytes of a secret.
_BYTES = 32
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token, and the only copy of its text."""

    token: TokenRecord
    #: What its holder sends; nobody can find it out again.
    text: str


def add_token(store: Store, name: str, *, scope: Scope = Scope.SUBMITTER, days: float | None = None) -> NewToken:
    """Record a new token.

    Args:
        store: where it is recorded.
        name: who holds it; owner of the jobs submitted with it.
        scope: what it allows.
        days: until it expires; None is never.

    Raises:
        JobSpecError: if the name is empty, long or not one line, or the days are not positive.
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


def holder(store: Store, text: str) -> TokenRecord:
    """Return the valid token that a text is.

    Raises:
        UnauthenticatedError: if it is none; that does not say why.
    """
    _, _, rest = text.partition("_")
    token_id = rest.partition("_")[0][:32]
    found = store.token(token_id) if token_id.isalnum() else None
    # Also without a token something is compared, so that time tells nothing.
    known = hmac.compare_digest(_hash(text), found[1] if found else _hash(""))
    if not found or not known or not found[0].is_valid(now()):
        raise UnauthenticatedError("the token is wrong, revoked or expired; ask for one: autotune token add NAME")
    return found[0]


def _hash(text: str) -> str:
    # No salt and no slow hash: guessing 256 random bits is hopeless however fast it is.
    return hashlib.sha256(text.encode()).hexdigest()
