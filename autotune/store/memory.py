"""The store in memory: the reference implementation, and the one for tests of what uses a store."""

import copy
import dataclasses
from typing import Any

from autotune.errors import ConflictError, NotFoundError
from autotune.store.clock import now
from autotune.store.records import EventRecord, FrontRecord, JobRecord, TrialKind, TrialRecord, TrialResult
from workers.measurement import LatencySamples
from workers.setup import Probes


@dataclasses.dataclass(slots=True)
class _Job:
    record: JobRecord
    results: dict[int, TrialResult] = dataclasses.field(default_factory=dict)
    fronts: list[FrontRecord] = dataclasses.field(default_factory=list)
    events: list[EventRecord] = dataclasses.field(default_factory=list)


class MemoryStore:
    """Keeps records in this process; nothing survives it."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        self._probes: dict[str, Probes] = {}

    def jobs(self) -> list[JobRecord]:
        """See ``ReadStore.jobs``."""
        newest_first = sorted(self._jobs.values(), key=lambda job: (job.record.created_at, job.record.id), reverse=True)
        return [copy.deepcopy(job.record) for job in newest_first]

    def job(self, job_id: str) -> JobRecord:
        """See ``ReadStore.job``."""
        return copy.deepcopy(self._job(job_id).record)

    def trials(self, job_id: str) -> list[TrialRecord]:
        """See ``ReadStore.trials``."""
        results = self._job(job_id).results
        return [copy.deepcopy(results[number].trial) for number in sorted(results)]

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        """See ``ReadStore.latency``."""
        result = self._job(job_id).results.get(number)
        return copy.deepcopy(result.latency) if result else ()

    def fronts(self, job_id: str) -> list[FrontRecord]:
        """See ``ReadStore.fronts``."""
        return list(self._job(job_id).fronts)

    def events(self, job_id: str) -> list[EventRecord]:
        """See ``ReadStore.events``."""
        return list(self._job(job_id).events)

    def probes(self, key: str) -> Probes | None:
        """See ``ReadStore.probes``."""
        return self._probes.get(key)

    def create_job(self, job: JobRecord) -> None:
        """See ``Store.create_job``."""
        if job.id in self._jobs:
            raise ConflictError(f"there is a job {job.id!r} already; submit again to get another id")
        self._jobs[job.id] = _Job(copy.deepcopy(job))

    def update_job(self, job_id: str, *, event: EventRecord | None = None, **changes: Any) -> JobRecord:
        """See ``Store.update_job``."""
        job = self._job(job_id)
        job.record = self._changed(job.record, **copy.deepcopy(changes))
        if event:
            job.events.append(event)
        return copy.deepcopy(job.record)

    def record(self, result: TrialResult) -> None:
        """See ``Store.record``."""
        job = self._job(result.trial.job_id)
        number, key, final = result.trial.number, result.trial.key, TrialKind.FINAL
        if number in job.results:
            return
        for other, known in job.results.items():
            if known.trial.key == key and (known.trial.kind is final) == (result.trial.kind is final):
                raise ConflictError(f"trials {other} and {number} of job {result.trial.job_id} have the same map")
        job.results[number] = copy.deepcopy(result)
        if result.front:
            job.fronts.append(result.front)
        job.events.extend(result.events)
        job.record = self._changed(job.record, elapsed_s=job.record.elapsed_s + result.elapsed_s)

    def record_probes(self, key: str, probes: Probes) -> None:
        """See ``Store.record_probes``."""
        self._probes.setdefault(key, probes)

    def close(self) -> None:
        """See ``Store.close``."""

    def _job(self, job_id: str) -> _Job:
        try:
            return self._jobs[job_id]
        except KeyError:
            raise NotFoundError(f"no job {job_id!r} in this database") from None

    @staticmethod
    def _changed(record: JobRecord, **changes: Any) -> JobRecord:
        return dataclasses.replace(record, updated_at=now(), version=record.version + 1, **changes)
