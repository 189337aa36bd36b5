"""SQL statements, one function per purpose; each runs in its caller's transaction."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from autotune.errors import ConflictError, NotFoundError
from autotune.jobs import lifecycle
from autotune.jobs.lifecycle import Transition
from autotune.jobs.records import (
    Directions,
    EventRecord,
    FrontRecord,
    HeldJob,
    JobRecord,
    JobStage,
    JobState,
    Submission,
    TrialRecord,
    TrialResult,
)
from autotune.jobs.timestamps import now
from autotune.store import artifacts, rows, tables
from workers.measurement import LatencySamples
from workers.setup import Probes
from workers.timing.estimates import Figure

#: First key of PostgreSQL's advisory locks under which an owner's jobs are counted.
_ROOM_LOCK = 716_305

_jobs = tables.jobs.c
#: Higher priority first, then older.
_BY_RANK = (_jobs.priority.desc(), _jobs.created_at, _jobs.id)


def jobs(
    connection: Connection, state: JobState | None = None, after: str | None = None, limit: int | None = None
) -> list[JobRecord]:
    """Return jobs, newest first."""
    wanted = sa.select(tables.jobs).order_by(_jobs.created_at.desc(), _jobs.id.desc()).limit(limit)
    if state is not None:
        wanted = wanted.where(_jobs.state == state.value)
    if after is not None:
        newer = job(connection, after)
        older = (_jobs.created_at == newer.created_at) & (_jobs.id < newer.id)
        wanted = wanted.where((_jobs.created_at < newer.created_at) | older)
    return [rows.job_record(row) for row in connection.execute(wanted).mappings()]


def job(connection: Connection, job_id: str, *, lock: bool = False) -> JobRecord:
    """Return a job; with ``lock``, nobody else can change it before the transaction ends."""
    wanted = sa.select(tables.jobs).where(_jobs.id == job_id)
    row = connection.execute(wanted.with_for_update() if lock else wanted).mappings().first()
    if row is None:
        raise NotFoundError(f"no job {job_id!r} in this database")
    return rows.job_record(row)


def versions(connection: Connection) -> dict[str, int]:
    """Return the version of every job, newest job first."""
    newest_first = sa.select(_jobs.id, _jobs.version).order_by(_jobs.created_at.desc(), _jobs.id.desc())
    return {row.id: row.version for row in connection.execute(newest_first)}


def numbers(connection: Connection, job_id: str) -> list[int]:
    """Return the numbers of a job's trials, ascending."""
    column = tables.trials.c.number
    found = connection.execute(sa.select(column).where(tables.trials.c.job_id == job_id).order_by(column)).scalars()
    recorded = list(found)
    if not recorded:
        _check_exists(connection, job_id)
    return recorded


def trials(
    connection: Connection, job_id: str, numbers: Sequence[int] | None, after: int, limit: int | None
) -> list[TrialRecord]:
    """Return a job's trials by ascending number."""

    def among(column: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
        return (column > after) & (sa.true() if numbers is None else column.in_(numbers))

    found = _of_job(connection, tables.trials, job_id, "number", where=among(tables.trials.c.number), limit=limit)
    last = found[-1]["number"] if found else after
    measured = tables.measurements.c.number
    figures = _figures(connection, job_id, among(measured) & (measured <= last))
    layers = _layer_lists(connection, {row["layers_key"] for row in found})
    return [rows.trial_record(row, layers[row["layers_key"]], figures[row["number"]]) for row in found]


def latency(connection: Connection, job_id: str, number: int) -> tuple[LatencySamples, ...]:
    """Return a trial's raw latencies."""
    _check_exists(connection, job_id)
    table, trial = tables.latency_samples, tables.trials.c
    # A recovered map has the latencies of its parent.
    timed = sa.select(sa.func.coalesce(trial.parent, trial.number))
    timed = timed.where(trial.job_id == job_id, trial.number == number)
    of_trial = (table.c.job_id == job_id) & (table.c.number == timed.scalar_subquery())
    wanted = sa.select(table).where(of_trial).order_by(table.c.position)
    return rows.latency_samples(connection.execute(wanted).mappings())


def fronts(connection: Connection, job_id: str) -> list[FrontRecord]:
    """Return every revision of a job's front, oldest first."""
    found = _of_job(connection, tables.fronts, job_id, "revision")
    members: dict[int, list[int]] = defaultdict(list)
    for row in _of_job(connection, tables.front_members, job_id, "revision", "number"):
        members[row["revision"]].append(row["number"])
    return [
        FrontRecord(trials=row["trials"], members=tuple(members[row["revision"]]), hypervolume=row["hypervolume"])
        for row in found
    ]


def events(connection: Connection, job_id: str, start: int = 0) -> list[EventRecord]:
    """Return a job's events, oldest first, without the first ``start`` ones."""
    found = _of_job(connection, tables.events, job_id, "position", where=tables.events.c.position >= start)
    return [EventRecord(at=row["at"], kind=row["kind"], message=row["message"]) for row in found]


def probes(connection: Connection, key: str) -> Probes | None:
    """Return the probes recorded under a key."""
    layers = tables.layer_probes
    of_layers = sa.select(layers).where(layers.c.key == key).order_by(layers.c.position)
    found = connection.execute(sa.select(tables.probes).where(tables.probes.c.key == key)).mappings().first()
    return rows.probes(found, connection.execute(of_layers).mappings()) if found else None


def artifact(connection: Connection, sha256: str) -> bytes:
    """Return the bytes of an artifact."""
    table = tables.artifacts
    found = connection.execute(sa.select(table.c.data).where(table.c.sha256 == sha256)).scalar()
    if found is None:
        raise artifacts.missing(sha256)
    return bytes(found)


def create_job(
    connection: Connection, record: JobRecord, submission: Submission | None, most_live: int | None
) -> JobRecord:
    """Record a job, or return the one submitted under the same key."""
    if submission:
        earlier = _submitted(connection, record.owner, submission)
        if earlier is not None:
            return job(connection, earlier)
    found = connection.execute(sa.select(tables.jobs).where(_jobs.id == record.id)).mappings().first()
    if found is not None and rows.is_same_submission(rows.job_record(found), record):
        return rows.job_record(found)
    if most_live is not None:
        _check_room(connection, record.owner, most_live)
    _insert(connection, tables.jobs, [rows.job_row(record)])
    if submission:
        key = {"owner": record.owner, "key": submission.key, "request_hash": submission.request_hash}
        _insert(connection, tables.submissions, [key | {"job_id": record.id}])
    return record


def change_job(connection: Connection, job_id: str, transition: Transition, most_live: int | None) -> JobRecord:
    """Apply a transition to a job."""
    record = job(connection, job_id, lock=True)
    if most_live is not None and not record.state.is_live:
        _check_room(connection, record.owner, most_live)
    return _change(connection, record, transition)


def claim_next(connection: Connection, transition: Transition) -> JobRecord | None:
    """Apply a transition to the served job to drive next; None if none waits.

    Jobs that another controller is claiming at this moment are skipped.
    """
    expired = (_jobs.state == JobState.RUNNING.value) & (_jobs.leased_until <= clock(connection))
    waiting = _jobs.served & ((_jobs.state == JobState.QUEUED.value) | expired)
    first = sa.select(tables.jobs).where(waiting).order_by(*_BY_RANK).limit(1).with_for_update(skip_locked=True)
    row = connection.execute(first).mappings().first()
    return None if row is None else _change(connection, rows.job_record(row), transition)


def directions(connection: Connection, job_id: str, epoch: int) -> Directions:
    """Return the user's orders and the budget for the driver of a job. Cheap, because drivers poll it every second."""
    wanted = sa.select(_jobs.epoch, _jobs.requested, _jobs.spec).where(_jobs.id == job_id)
    row = connection.execute(wanted).first()
    if row is None or row.epoch != epoch:
        lifecycle.check_epoch(job(connection, job_id), epoch)
    assert row is not None
    return rows.directions(row.requested, row.spec)


def renew(connection: Connection, job_id: str, epoch: int, lease_s: float) -> None:
    """Extend a lease to ``lease_s`` seconds from now; the job's version stays, so that pollers do not read it again."""
    _set_unless_settled(connection, job_id, epoch, {"leased_until": clock(connection) + timedelta(seconds=lease_s)})


def record_stage(connection: Connection, job_id: str, epoch: int, stage: JobStage) -> None:
    """Record what a job's driver is doing; the job's version stays, so that pollers do not read it again."""
    _set_unless_settled(connection, job_id, epoch, {"stage": rows.stage_row(stage)})


def stages(connection: Connection) -> dict[str, JobStage]:
    """Return the stage of every running job whose driver has told one."""
    running = (_jobs.state == JobState.RUNNING.value) & _jobs.stage.is_not(None)
    found = (
        (row.id, rows.job_stage(row.stage))
        for row in connection.execute(sa.select(_jobs.id, _jobs.stage).where(running))
    )
    return {job_id: stage for job_id, stage in found if stage is not None}


def held_jobs(connection: Connection) -> list[HeldJob]:
    """Return the served jobs that drivers hold, by rank."""
    held = _jobs.served & (_jobs.state == JobState.RUNNING.value) & (_jobs.leased_until > clock(connection))
    kind = _jobs.description[("environment", "kind")].as_string()
    wanted = sa.select(_jobs.id, _jobs.driver, _jobs.epoch, _jobs.spec, kind).where(held).order_by(*_BY_RANK)
    return [rows.held_job(*row) for row in connection.execute(wanted)]


def check_held(connection: Connection, job_id: str, epoch: int) -> None:
    """Serialise the writers of a job, and reject one that has lost its lease."""
    wanted = sa.select(_jobs.epoch).where(_jobs.id == job_id).with_for_update()
    if connection.execute(wanted).scalar() != epoch:
        lifecycle.check_epoch(job(connection, job_id), epoch)


def add_layer_lists(connection: Connection, lists: Mapping[str, list[str]]) -> None:
    """Record lists of layers that are not yet recorded."""
    _insert_unknown(connection, tables.layer_lists, [{"key": key, "layers": names} for key, names in lists.items()])


def record(connection: Connection, job_id: str, results: Sequence[TrialResult]) -> None:
    """Insert finished trials that are not yet recorded, with everything that belongs to them."""
    known = _recorded(connection, job_id, [result.trial.number for result in results])
    new = [result for result in results if result.trial.number not in known]
    if not new:
        return
    elapsed_s = sum(result.elapsed_s for result in new)
    _touch(connection, job_id, {"elapsed_s": _jobs.elapsed_s + elapsed_s, "crashes": 0})
    _insert(connection, tables.trials, [rows.trial_row(result.trial) for result in new])
    _insert(connection, tables.measurements, [row for result in new for row in rows.figure_rows(result.trial)])
    _insert(connection, tables.latency_samples, [row for result in new for row in rows.latency_rows(result)])
    _insert_unknown(connection, tables.artifacts, [row for result in new for row in rows.artifact_rows(result)])
    _add_fronts(connection, job_id, [result.front for result in new if result.front])
    _add_events(connection, job_id, [event for result in new for event in result.events])


def add_probes(connection: Connection, key: str, found: Probes) -> None:
    """Record probes."""
    _insert(connection, tables.probes, [rows.probes_row(key, found)])
    _insert(connection, tables.layer_probes, rows.layer_probe_rows(key, found))


def clock(connection: Connection) -> datetime:
    """Return the database's time: that of the PostgreSQL server, or of this host for SQLite."""
    if connection.dialect.name == "sqlite":
        return now()
    time: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return time


def _change(connection: Connection, record: JobRecord, transition: Transition) -> JobRecord:
    change = transition(record, clock(connection))
    if change.job != record or change.events:
        before, after = rows.job_row(record), rows.job_row(change.job)
        _touch(connection, record.id, {name: value for name, value in after.items() if value != before[name]})
        _add_events(connection, record.id, change.events)
        return job(connection, record.id)
    return record


def _set_unless_settled(connection: Connection, job_id: str, epoch: int, values: Mapping[str, Any]) -> None:
    """Change a job's row for the driver that holds its lease, and nothing if that driver has just settled it."""
    held = (_jobs.id == job_id) & (_jobs.epoch == epoch) & (_jobs.state == JobState.RUNNING.value)
    if connection.execute(sa.update(tables.jobs).where(held).values(values)).rowcount == 0:
        lifecycle.check_epoch(job(connection, job_id), epoch)


def _touch(connection: Connection, job_id: str, changes: Mapping[str, Any]) -> None:
    """Change a job's row and increment its version."""
    changed = dict(changes) | {"updated_at": now(), "version": _jobs.version + 1}
    connection.execute(sa.update(tables.jobs).where(_jobs.id == job_id).values(changed))


def _submitted(connection: Connection, owner: str, submission: Submission) -> str | None:
    """Return the id of the job submitted under a key, or None if the key is new."""
    table = tables.submissions
    wanted = sa.select(table).where(table.c.owner == owner, table.c.key == submission.key)
    row = connection.execute(wanted).first()
    if row is None:
        return None
    if row.request_hash != submission.request_hash:
        raise ConflictError(
            f"the key {submission.key!r} was already used for job {row.job_id}, which is a different request; "
            "use another key"
        )
    return str(row.job_id)


def _check_room(connection: Connection, owner: str, most_live: int) -> None:
    if connection.dialect.name == "postgresql":
        # Other transactions that count this owner's jobs wait until this job is committed.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ROOM_LOCK, sa.func.hashtext(owner))))
    live = [state.value for state in JobState if state.is_live]
    count = sa.select(sa.func.count()).select_from(tables.jobs).where(_jobs.owner == owner, _jobs.state.in_(live))
    waiting = connection.execute(count).scalar_one()
    lifecycle.check_room(owner, waiting, most_live)


def _check_exists(connection: Connection, job_id: str) -> None:
    if connection.execute(sa.select(_jobs.id).where(_jobs.id == job_id)).first() is None:
        raise NotFoundError(f"no job {job_id!r} in this database")


def _of_job(
    connection: Connection,
    table: sa.Table,
    job_id: str,
    *order: str,
    where: sa.ColumnElement[bool] | None = None,
    limit: int | None = None,
) -> list[Mapping[str, Any]]:
    query = sa.select(table).where(table.c.job_id == job_id).order_by(*(table.c[name] for name in order)).limit(limit)
    if where is not None:
        query = query.where(where)
    found: list[Mapping[str, Any]] = [dict(row) for row in connection.execute(query).mappings()]
    if not found:
        _check_exists(connection, job_id)
    return found


def _figures(connection: Connection, job_id: str, where: sa.ColumnElement[bool]) -> dict[int, dict[str, Figure]]:
    table = tables.measurements
    wanted = sa.select(table.c.number, table.c.metric, table.c.value, table.c.low, table.c.high)
    figures: dict[int, dict[str, Figure]] = defaultdict(dict)
    for number, metric, value, low, high in connection.execute(wanted.where(table.c.job_id == job_id, where)):
        figures[number][metric] = Figure(value=value, low=low, high=high)
    return figures


def _layer_lists(connection: Connection, keys: Iterable[str]) -> dict[str, list[str]]:
    table = tables.layer_lists
    return {row.key: row.layers for row in connection.execute(sa.select(table).where(table.c.key.in_(keys)))}


def _recorded(connection: Connection, job_id: str, numbers: Sequence[int]) -> set[int]:
    table = tables.trials
    same = sa.select(table.c.number).where(table.c.job_id == job_id, table.c.number.in_(numbers))
    return set(connection.execute(same).scalars())


def _insert(connection: Connection, table: sa.Table, many: list[dict[str, Any]]) -> None:
    if many:
        connection.execute(sa.insert(table), many)


def _insert_unknown(connection: Connection, table: sa.Table, many: list[dict[str, Any]]) -> None:
    """Insert rows whose key is new; those of a known key stay."""
    if many:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(table).on_conflict_do_nothing(), many)


def _add_fronts(connection: Connection, job_id: str, many: Sequence[FrontRecord]) -> None:
    first = _next(connection, tables.fronts.c.revision, job_id) if many else 0
    keyed = [({"job_id": job_id, "revision": revision}, front) for revision, front in enumerate(many, start=first)]
    _insert(
        connection,
        tables.fronts,
        [key | {"trials": front.trials, "hypervolume": front.hypervolume} for key, front in keyed],
    )
    _insert(connection, tables.front_members, [key | {"number": n} for key, front in keyed for n in front.members])


def _add_events(connection: Connection, job_id: str, many: Sequence[EventRecord]) -> None:
    first = _next(connection, tables.events.c.position, job_id) if many else 0
    _insert(connection, tables.events, [rows.event_row(job_id, i, event) for i, event in enumerate(many, start=first)])


def _next(connection: Connection, column: sa.Column[int], job_id: str) -> int:
    """Return the next number of a column that numbers a job's rows."""
    last = sa.select(sa.func.max(column)).where(column.table.c.job_id == job_id)
    highest = connection.execute(last).scalar()
    return 0 if highest is None else highest + 1
