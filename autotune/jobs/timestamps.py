"""Time stamps of records."""

from datetime import UTC, datetime

from autotune.jobs.records import EventRecord


def now() -> datetime:
    """Return the present time in UTC, with the zone set."""
    return datetime.now(UTC)


def event(kind: str, message: str) -> EventRecord:
    """Return something that happens to a job now."""
    return EventRecord(at=now(), kind=kind, message=message)
