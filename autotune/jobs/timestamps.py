"""Timestamps of records."""

from datetime import UTC, datetime

from autotune.jobs.records import EventRecord


def now() -> datetime:
    """Return the current time in UTC, with the time zone set."""
    return datetime.now(UTC)


def event(kind: str, message: str) -> EventRecord:
    """Return an event that happens now."""
    return EventRecord(at=now(), kind=kind, message=message)
