"""A hash chain of changes: each entry's hash covers its content and the hash before it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from autotune.deployments.records import AuditEntry, Head
from autotune.errors import JobSpecError

#: The head of an empty chain.
START = Head(position=0, sha256="0" * 64)


def chained(
    head: Head, *, at: datetime, actor: str, action: str, subject: str, payload: Mapping[str, Any]
) -> AuditEntry:
    """Return the entry that follows ``head``; see ``AuditEntry`` for its fields.

    Raises:
        JobSpecError: if the time has no zone, or the payload or a text has no canonical JSON.
    """
    position = head.position + 1
    return AuditEntry(
        position=position,
        at=at,
        actor=actor,
        action=action,
        subject=subject,
        payload=payload,
        previous_sha256=head.sha256,
        sha256=_digest(position, at, actor, action, subject, payload, head.sha256),
    )


def verify(entries: Iterable[AuditEntry], *, head: Head | None = None) -> int | None:
    """Return the first position at which a chain is broken; None if it is whole.

    A chain that was cut at its end, or written anew from some position on, is whole in itself. Only a ``head`` that
    was kept elsewhere shows it. Entries after that head are the chain's growth.

    Args:
        entries: the whole chain, in order.
        head: what the chain must contain.
    """
    last = START
    for entry in entries:
        expected = last.position + 1
        if entry.position != expected or entry.previous_sha256 != last.sha256 or not _is_authentic(entry):
            return expected
        if head is not None and expected == head.position and entry.sha256 != head.sha256:
            return expected
        last = entry.head
    return last.position + 1 if head is not None and last.position < head.position else None


def canonical(value: object) -> bytes:
    """Return the JSON whose bytes depend on the value alone: sorted keys, no spaces, UTF-8.

    This follows RFC 8785, except that numbers are as Python writes them and keys are sorted by code point.

    Raises:
        JobSpecError: if a key is not text, a number is not finite, or a part is neither JSON nor Unicode.
    """
    _check_keys(value)
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        raise JobSpecError(f"an audit entry must be JSON with finite numbers and valid Unicode: {error}") from None


def _check_keys(value: object) -> None:
    # ``json`` writes the keys 1 and "1" alike, so two different payloads would have one hash.
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise JobSpecError(f"keys of an audit entry must be text, but got {key!r}; write it as {str(key)!r}")
            _check_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item)


def _is_authentic(entry: AuditEntry) -> bool:
    try:
        return entry.sha256 == _digest(
            entry.position,
            entry.at,
            entry.actor,
            entry.action,
            entry.subject,
            entry.payload,
            entry.previous_sha256,
        )
    except JobSpecError:  # ``chained`` would have refused it.
        return False


def _digest(
    position: int, at: datetime, actor: str, action: str, subject: str, payload: Mapping[str, Any], previous: str
) -> str:
    if at.tzinfo is None:
        raise JobSpecError(f"the time of an audit entry must have a zone, but got {at.isoformat()}; add its tzinfo")
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    # A list, because texts joined by a separator could be split elsewhere.
    content = canonical([position, moment, actor, action, subject, dict(payload), previous])
    return hashlib.sha256(content).hexdigest()
