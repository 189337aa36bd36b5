"""Statistics over jobs that the database counts itself, and tokens; each runs in its caller's transaction."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from autotune.errors import NotFoundError
from autotune.jobs.records import JobState, Scope, Statistics, Tally, TokenRecord, TrialKind, TrialState
from autotune.jobs.timestamps import now
from autotune.store import tables

_jobs, _trials, _tokens = tables.jobs.c, tables.trials.c, tables.tokens.c


def tallies(connection: Connection, job_ids: Sequence[str]) -> dict[str, Tally]:
    """Return the jobs' progress."""
    kinds = [kind.value for kind in TrialKind if kind.is_searched]
    searched = _trials.kind.in_(kinds) & _trials.job_id.in_(job_ids)
    counts = sa.select(_trials.job_id, sa.func.count()).where(searched).group_by(_trials.job_id)
    counted = _numbers(connection, counts)
    members, fronts = tables.front_members.c, tables.fronts.c
    newest = sa.select(fronts.job_id, sa.func.max(fronts.revision).label("revision"))
    latest = newest.where(fronts.job_id.in_(job_ids)).group_by(fronts.job_id).subquery()
    on_front = (members.job_id == latest.c.job_id) & (members.revision == latest.c.revision)
    numbers: dict[str, list[int]] = {job_id: [] for job_id in job_ids}
    for job_id, number in connection.execute(sa.select(members.job_id, members.number).where(on_front)):
        numbers[job_id].append(number)
    return {job_id: Tally(searched=counted.get(job_id, 0), front=tuple(sorted(numbers[job_id]))) for job_id in job_ids}


def statistics(connection: Connection) -> Statistics:
    """Return statistics over all jobs."""
    kind = tables.events.c.kind
    waiting = sa.select(sa.func.min(_jobs.created_at)).where(_jobs.state == JobState.QUEUED.value)
    oldest = connection.execute(waiting).scalar()
    return Statistics(
        jobs={JobState(state): count for state, count in _by(connection, _jobs.state).items()},
        trials={TrialState(state): count for state, count in _by(connection, _trials.state).items()},
        takeovers=connection.execute(sa.select(sa.func.count()).where(kind == "taken_over")).scalar_one(),
        oldest_wait_s=max(0.0, (now() - oldest).total_seconds()) if oldest else 0.0,
    )


def tokens(connection: Connection) -> list[TokenRecord]:
    """Return all tokens, oldest first."""
    oldest_first = sa.select(tables.tokens).order_by(_tokens.created_at, _tokens.id)
    return [_token(row)[0] for row in connection.execute(oldest_first).mappings()]


def token(connection: Connection, token_id: str) -> tuple[TokenRecord, str] | None:
    """Return a token and the hash of its secret."""
    row = connection.execute(sa.select(tables.tokens).where(_tokens.id == token_id)).mappings().first()
    return _token(row) if row else None


def add_token(connection: Connection, record: TokenRecord, secret_hash: str) -> None:
    """Record a token."""
    row = {name: getattr(record, name) for name in ("id", "name", "created_at", "expires_at", "revoked_at")}
    connection.execute(sa.insert(tables.tokens), [row | {"scope": record.scope.value, "hash": secret_hash}])


def revoke_token(connection: Connection, token_id: str) -> TokenRecord:
    """Revoke a token with immediate effect."""
    valid = (_tokens.id == token_id) & _tokens.revoked_at.is_(None)
    connection.execute(sa.update(tables.tokens).where(valid).values(revoked_at=now()))
    found = token(connection, token_id)
    if found is None:
        raise NotFoundError(f"no token {token_id!r}; list all with 'autotune token list'")
    return found[0]


def _by(connection: Connection, column: sa.Column[Any]) -> dict[str, int]:
    return _numbers(connection, sa.select(column, sa.func.count()).group_by(column))


def _numbers(connection: Connection, counts: sa.Select[Any]) -> dict[str, int]:
    return {row[0]: row[1] for row in connection.execute(counts)}


def _token(row: sa.RowMapping) -> tuple[TokenRecord, str]:
    fields = dict(row)
    secret_hash = fields.pop("hash")
    return TokenRecord(**fields | {"scope": Scope(fields["scope"])}), secret_hash
