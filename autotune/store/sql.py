"""The store in SQLite or PostgreSQL."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from autotune.errors import ConflictError, StoreUnavailableError
from autotune.jobs.lifecycle import Transition
from autotune.jobs.records import (
    Directions,
    EventRecord,
    FrontRecord,
    HeldJob,
    JobRecord,
    JobStage,
    JobState,
    Statistics,
    Submission,
    Tally,
    TokenRecord,
    TrialRecord,
    TrialResult,
)
from autotune.store import artifacts, rows, statements, summaries
from autotune.store.failures import store_error
from workers.measurement import LatencySamples
from workers.setup import Probes

_log = logging.getLogger(__name__)

#: First and longest pause before a retry, in seconds.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0

T = TypeVar("T")


class SqlStore:
    """Keeps records in a database. Each method is one transaction."""

    def __init__(self, engine: Engine, *, patience_s: float = 0.0) -> None:
        """Use the database of ``engine``; each call retries up to ``patience_s`` seconds while it is down or full."""
        self._engine = engine
        # Readers must not wait for writers, nor writers for readers.
        self._reading = engine.execution_options(reading=True)
        self._patience_s = patience_s
        #: Keys of the lists of layers that are known to be recorded.
        self._layer_lists: set[str] = set()

    def jobs(
        self, *, state: JobState | None = None, after: str | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        return self._read(lambda connection: statements.jobs(connection, state, after, limit))

    def job(self, job_id: str) -> JobRecord:
        return self._read(lambda connection: statements.job(connection, job_id))

    def versions(self) -> Mapping[str, int]:
        return self._read(statements.versions)

    def stages(self) -> Mapping[str, JobStage]:
        return self._read(statements.stages)

    def numbers(self, job_id: str) -> list[int]:
        return self._read(lambda connection: statements.numbers(connection, job_id))

    def trials(
        self, job_id: str, *, numbers: Sequence[int] | None = None, after: int = -1, limit: int | None = None
    ) -> list[TrialRecord]:
        """See ``ReadStore.trials``. The number of queries does not depend on the number of trials."""
        return self._read(lambda connection: statements.trials(connection, job_id, numbers, after, limit))

    def tallies(self, job_ids: Sequence[str]) -> Mapping[str, Tally]:
        return self._read(lambda connection: summaries.tallies(connection, job_ids))

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        return self._read(lambda connection: statements.latency(connection, job_id, number))

    def fronts(self, job_id: str) -> list[FrontRecord]:
        return self._read(lambda connection: statements.fronts(connection, job_id))

    def events(self, job_id: str, *, start: int = 0) -> list[EventRecord]:
        return self._read(lambda connection: statements.events(connection, job_id, start))

    def probes(self, key: str) -> Probes | None:
        return self._read(lambda connection: statements.probes(connection, key))

    def artifact(self, sha256: str) -> bytes:
        return artifacts.unchanged(sha256, self._read(lambda connection: statements.artifact(connection, sha256)))

    def create_job(
        self, job: JobRecord, submission: Submission | None = None, *, most_live: int | None = None
    ) -> JobRecord:
        def create(connection: Connection) -> JobRecord:
            return statements.create_job(connection, job, submission, most_live)

        for _ in range(2):
            # If another process takes the key after the lookup here, the second attempt finds it.
            with suppress(_Duplicate):
                return self._run(create)
        raise ConflictError(f"job {job.id!r} already exists; submit again to get another id")

    def change_job(self, job_id: str, transition: Transition, *, most_live: int | None = None) -> JobRecord:
        return self._run(lambda connection: statements.change_job(connection, job_id, transition, most_live))

    def claim_next(self, transition: Transition) -> JobRecord | None:
        return self._run(lambda connection: statements.claim_next(connection, transition))

    def directions(self, job_id: str, *, epoch: int) -> Directions:
        return self._read(lambda connection: statements.directions(connection, job_id, epoch))

    def renew(self, job_id: str, *, epoch: int, lease_s: float) -> None:
        self._run(lambda connection: statements.renew(connection, job_id, epoch, lease_s))

    def record_stage(self, job_id: str, stage: JobStage, *, epoch: int) -> None:
        self._run(lambda connection: statements.record_stage(connection, job_id, epoch, stage))

    def held_jobs(self) -> list[HeldJob]:
        return self._read(statements.held_jobs)

    def record(self, results: Sequence[TrialResult], *, epoch: int) -> None:
        if not results:
            return
        for result in results:
            artifacts.check(result)
        job_id = results[0].trial.job_id
        lists = dict(rows.layers_key(result.trial.choices) for result in results)
        unknown = {key: names for key, names in lists.items() if key not in self._layer_lists}

        def write(connection: Connection) -> None:
            statements.check_held(connection, job_id, epoch)
            statements.add_layer_lists(connection, unknown)
            statements.record(connection, job_id, results)

        try:
            self._run(write)
        except _Duplicate:
            numbers = ", ".join(str(result.trial.number) for result in results)
            raise ConflictError(f"trial {numbers} of job {job_id} has the same map as another trial") from None
        self._layer_lists |= unknown.keys()

    def record_probes(self, key: str, probes: Probes) -> None:
        with suppress(_Duplicate):
            self._run(lambda connection: statements.add_probes(connection, key, probes))

    def statistics(self) -> Statistics:
        return self._read(summaries.statistics)

    def add_token(self, token: TokenRecord, secret_hash: str) -> None:
        try:
            self._run(lambda connection: summaries.add_token(connection, token, secret_hash))
        except _Duplicate:
            raise ConflictError(f"token {token.id!r} already exists; add another one") from None

    def tokens(self) -> list[TokenRecord]:
        return self._read(summaries.tokens)

    def token(self, token_id: str) -> tuple[TokenRecord, str] | None:
        return self._read(lambda connection: summaries.token(connection, token_id))

    def revoke_token(self, token_id: str) -> TokenRecord:
        return self._run(lambda connection: summaries.revoke_token(connection, token_id))

    def close(self) -> None:
        self._engine.dispose()

    def _read(self, work: Callable[[Connection], T]) -> T:
        return self._run(work, self._reading)

    def _run(self, work: Callable[[Connection], T], engine: Engine | None = None) -> T:
        """Run one transaction, retrying while the database is unavailable; convert its errors into this project's."""
        give_up, pause_s = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            try:
                with (engine or self._engine).begin() as connection:
                    return work(connection)
            except sa.exc.IntegrityError as error:
                raise _Duplicate from error
            except sa.exc.SQLAlchemyError as error:
                problem = store_error(error, self._engine.url)
                if not isinstance(problem, StoreUnavailableError) or time.monotonic() >= give_up:
                    raise problem from error
                _log.warning("%s; retrying", problem)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Duplicate(Exception):
    """The key of a row is already taken."""
