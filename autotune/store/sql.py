"""The store in SQLite or PostgreSQL."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from autotune.errors import ConflictError, NotFoundError, StoreError
from autotune.metrics import Figure
from autotune.store import rows, tables
from autotune.store.clock import now
from autotune.store.records import EventRecord, FrontRecord, JobRecord, TrialRecord, TrialResult
from workers.measurement import LatencySamples
from workers.setup import Probes


class SqlStore:
    """Keeps records in a database. Each method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def jobs(self) -> list[JobRecord]:
        """See ``ReadStore.jobs``."""
        newest_first = sa.select(tables.jobs).order_by(tables.jobs.c.created_at.desc(), tables.jobs.c.id.desc())
        with self._transaction() as connection:
            return [rows.job_record(row) for row in connection.execute(newest_first).mappings()]

    def job(self, job_id: str) -> JobRecord:
        """See ``ReadStore.job``."""
        with self._transaction() as connection:
            return _job(connection, job_id)

    def trials(self, job_id: str) -> list[TrialRecord]:
        """See ``ReadStore.trials``. Three queries, whatever the number of trials."""
        with self._transaction() as connection:
            _job(connection, job_id)
            trials = _of_job(connection, tables.trials, job_id, "number")
            figures = _figures(_of_job(connection, tables.measurements, job_id))
            choices = _choices(_of_job(connection, tables.layer_choices, job_id, "number", "position"))
        return [rows.trial_record(row, choices[row["number"]], figures[row["number"]]) for row in trials]

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        """See ``ReadStore.latency``."""
        table = tables.latency_samples
        wanted = sa.select(table).where(table.c.job_id == job_id, table.c.number == number).order_by(table.c.position)
        with self._transaction() as connection:
            _job(connection, job_id)
            return rows.latency_samples(connection.execute(wanted).mappings())

    def fronts(self, job_id: str) -> list[FrontRecord]:
        """See ``ReadStore.fronts``."""
        with self._transaction() as connection:
            _job(connection, job_id)
            fronts = _of_job(connection, tables.fronts, job_id, "revision")
            members: dict[int, list[int]] = defaultdict(list)
            for row in _of_job(connection, tables.front_members, job_id, "revision", "number"):
                members[row["revision"]].append(row["number"])
        return [
            FrontRecord(trials=row["trials"], members=tuple(members[row["revision"]]), hypervolume=row["hypervolume"])
            for row in fronts
        ]

    def events(self, job_id: str) -> list[EventRecord]:
        """See ``ReadStore.events``."""
        with self._transaction() as connection:
            _job(connection, job_id)
            found = _of_job(connection, tables.events, job_id, "position")
        return [EventRecord(at=row["at"], kind=row["kind"], message=row["message"]) for row in found]

    def probes(self, key: str) -> Probes | None:
        """See ``ReadStore.probes``."""
        layers = tables.layer_probes
        of_layers = sa.select(layers).where(layers.c.key == key).order_by(layers.c.position)
        with self._transaction() as connection:
            found = connection.execute(sa.select(tables.probes).where(tables.probes.c.key == key)).mappings().first()
            return rows.probes(found, connection.execute(of_layers).mappings()) if found else None

    def create_job(self, job: JobRecord) -> None:
        """See ``Store.create_job``."""
        try:
            with self._transaction() as connection:
                connection.execute(sa.insert(tables.jobs), rows.job_row(job))
        except _Duplicate:
            raise ConflictError(f"there is a job {job.id!r} already; submit again to get another id") from None

    def update_job(self, job_id: str, *, event: EventRecord | None = None, **changes: Any) -> JobRecord:
        """See ``Store.update_job``."""
        with self._transaction() as connection:
            _touch(connection, job_id, rows.job_columns(changes))
            if event:
                _add_events(connection, job_id, (event,))
            return _job(connection, job_id)

    def record(self, result: TrialResult) -> None:
        """See ``Store.record``."""
        trial = result.trial
        try:
            with self._transaction() as connection:
                _lock(connection, trial.job_id)
                if _is_recorded(connection, trial):
                    return
                _touch(connection, trial.job_id, {"elapsed_s": tables.jobs.c.elapsed_s + result.elapsed_s})
                _insert(connection, tables.trials, [rows.trial_row(trial)])
                _insert(connection, tables.measurements, rows.figure_rows(trial))
                _insert(connection, tables.layer_choices, rows.choice_rows(trial))
                _insert(connection, tables.latency_samples, rows.latency_rows(result))
                if result.front:
                    _add_front(connection, trial.job_id, result.front)
                _add_events(connection, trial.job_id, result.events)
        except _Duplicate:
            raise ConflictError(f"trial {trial.number} of job {trial.job_id} has the same map as another one") from None

    def record_probes(self, key: str, probes: Probes) -> None:
        """See ``Store.record_probes``."""
        with suppress(_Duplicate), self._transaction() as connection:
            _insert(connection, tables.probes, [rows.probes_row(key, probes)])
            _insert(connection, tables.layer_probes, rows.layer_probe_rows(key, probes))

    def close(self) -> None:
        """See ``Store.close``."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Run one transaction; the database's errors leave it as this project's."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError as error:
            raise _Duplicate from error
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(f"the database {self._engine.url.render_as_string()} failed: {reason(error)}") from error


class _Duplicate(Exception):
    """A row whose key is taken."""


def reason(error: sa.exc.SQLAlchemyError) -> str:
    """Return the driver's own words, in one line, without statement and parameters."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return " ".join(str(cause).split())


def _job(connection: Connection, job_id: str) -> JobRecord:
    row = connection.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job_id)).mappings().first()
    if row is None:
        raise NotFoundError(f"no job {job_id!r} in this database")
    return rows.job_record(row)


def _of_job(connection: Connection, table: sa.Table, job_id: str, *order: str) -> list[Mapping[str, Any]]:
    query = sa.select(table).where(table.c.job_id == job_id).order_by(*(table.c[name] for name in order))
    return [dict(row) for row in connection.execute(query).mappings()]


def _figures(found: list[Mapping[str, Any]]) -> dict[int, dict[str, Figure]]:
    figures: dict[int, dict[str, Figure]] = defaultdict(dict)
    for row in found:
        figures[row["number"]][row["metric"]] = Figure(value=row["value"], low=row["low"], high=row["high"])
    return figures


def _choices(found: list[Mapping[str, Any]]) -> dict[int, dict[str, str]]:
    choices: dict[int, dict[str, str]] = defaultdict(dict)
    for row in found:
        choices[row["number"]][row["layer"]] = row["choice"]
    return choices


def _touch(connection: Connection, job_id: str, changes: Mapping[str, Any]) -> None:
    """Change a job's row and count the change."""
    changed = dict(changes) | {"updated_at": now(), "version": tables.jobs.c.version + 1}
    result = connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(changed))
    if result.rowcount == 0:
        raise NotFoundError(f"no job {job_id!r} in this database")


def _lock(connection: Connection, job_id: str) -> None:
    """Make writers of one job take turns; on SQLite they do already."""
    connection.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id == job_id).with_for_update())


def _is_recorded(connection: Connection, trial: TrialRecord) -> bool:
    table = tables.trials
    same = sa.select(table.c.number).where(table.c.job_id == trial.job_id, table.c.number == trial.number)
    return connection.execute(same).first() is not None


def _insert(connection: Connection, table: sa.Table, many: list[dict[str, Any]]) -> None:
    if many:
        connection.execute(sa.insert(table), many)


def _add_front(connection: Connection, job_id: str, front: FrontRecord) -> None:
    revision = _count(connection, tables.fronts, job_id)
    key = {"job_id": job_id, "revision": revision}
    _insert(connection, tables.fronts, [key | {"trials": front.trials, "hypervolume": front.hypervolume}])
    _insert(connection, tables.front_members, [key | {"number": number} for number in front.members])


def _add_events(connection: Connection, job_id: str, events: tuple[EventRecord, ...]) -> None:
    first = _count(connection, tables.events, job_id) if events else 0
    _insert(connection, tables.events, [rows.event_row(job_id, first + i, event) for i, event in enumerate(events)])


def _count(connection: Connection, table: sa.Table, job_id: str) -> int:
    count = sa.select(sa.func.count()).select_from(table).where(table.c.job_id == job_id)
    return int(connection.execute(count).scalar_one())
