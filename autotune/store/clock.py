"""Time stamps of records."""

from datetime import UTC, datetime


def now() -> datetime:
    """Return the present time in UTC, with the zone set."""
    return datetime.now(UTC)
