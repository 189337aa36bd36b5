"""The store in memory: the reference implementation, also used in tests of code that needs a store."""

import copy
import dataclasses
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from autotune.errors import ConflictError, NotFoundError
from autotune.jobs import budget, lifecycle
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
    TrialKind,
    TrialRecord,
    TrialResult,
)
from autotune.jobs.timestamps import now
from autotune.store import artifacts, rows
from workers.measurement import LatencySamples
from workers.setup import Probes


@dataclasses.dataclass(slots=True)
class _Job:
    record: JobRecord
    results: dict[int, TrialResult] = dataclasses.field(default_factory=dict)
    fronts: list[FrontRecord] = dataclasses.field(default_factory=list)
    events: list[EventRecord] = dataclasses.field(default_factory=list)


class MemoryStore:
    """Keeps records in memory; they are lost when the process ends."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        self._submissions: dict[tuple[str, str], tuple[Submission, str]] = {}
        self._probes: dict[str, Probes] = {}
        self._tokens: dict[str, tuple[TokenRecord, str]] = {}
        self._artifacts: dict[str, bytes] = {}
        self._lock = threading.RLock()

    def jobs(
        self, *, state: JobState | None = None, after: str | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        found = sorted(self._records(), key=_age, reverse=True)
        if after is not None:
            newer = _age(self._job(after).record)
            found = [job for job in found if _age(job) < newer]
        return copy.deepcopy([job for job in found if state in (None, job.state)][:limit])

    def job(self, job_id: str) -> JobRecord:
        return copy.deepcopy(self._job(job_id).record)

    def versions(self) -> Mapping[str, int]:
        return {job.id: job.version for job in self.jobs()}

    def stages(self) -> Mapping[str, JobStage]:
        running = [job for job in self._records() if job.state is JobState.RUNNING]
        return {job.id: job.stage for job in running if job.stage is not None}

    def numbers(self, job_id: str) -> list[int]:
        return sorted(self._job(job_id).results)

    def trials(
        self, job_id: str, *, numbers: Sequence[int] | None = None, after: int = -1, limit: int | None = None
    ) -> list[TrialRecord]:
        results = self._job(job_id).results
        wanted = [number for number in sorted(results) if number > after and (numbers is None or number in numbers)]
        return [copy.deepcopy(results[number].trial) for number in wanted[:limit]]

    def tallies(self, job_ids: Sequence[str]) -> Mapping[str, Tally]:
        return {job_id: _tally(self._jobs.get(job_id)) for job_id in job_ids}

    def latency(self, job_id: str, number: int) -> tuple[LatencySamples, ...]:
        results = self._job(job_id).results
        result = results.get(number)
        if result is not None and result.trial.parent is not None:
            result = results.get(result.trial.parent)
        return copy.deepcopy(result.latency) if result else ()

    def fronts(self, job_id: str) -> list[FrontRecord]:
        return list(self._job(job_id).fronts)

    def events(self, job_id: str, *, start: int = 0) -> list[EventRecord]:
        return self._job(job_id).events[start:]

    def probes(self, key: str) -> Probes | None:
        return self._probes.get(key)

    def artifact(self, sha256: str) -> bytes:
        if sha256 not in self._artifacts:
            raise artifacts.missing(sha256)
        return artifacts.unchanged(sha256, self._artifacts[sha256])

    def create_job(
        self, job: JobRecord, submission: Submission | None = None, *, most_live: int | None = None
    ) -> JobRecord:
        with self._lock:
            if submission and (job.owner, submission.key) in self._submissions:
                earlier, job_id = self._submissions[job.owner, submission.key]
                if earlier != submission:
                    raise ConflictError(
                        f"the key {submission.key!r} was already used for job {job_id}, which is a different request; "
                        "use another key"
                    )
                return self.job(job_id)
            if job.id in self._jobs and rows.is_same_submission(self._jobs[job.id].record, job):
                return self.job(job.id)
            self._check_room(job.owner, most_live)
            if job.id in self._jobs:
                raise ConflictError(f"job {job.id!r} already exists; submit again to get another id")
            self._jobs[job.id] = _Job(copy.deepcopy(job))
            if submission:
                self._submissions[job.owner, submission.key] = submission, job.id
            return job

    def change_job(self, job_id: str, transition: Transition, *, most_live: int | None = None) -> JobRecord:
        with self._lock:
            job = self._job(job_id)
            if not job.record.state.is_live:
                self._check_room(job.record.owner, most_live)
            change = transition(copy.deepcopy(job.record), now())
            if change.job != job.record or change.events:
                job.record = _counted(change.job)
                job.events.extend(change.events)
            return copy.deepcopy(job.record)

    def claim_next(self, transition: Transition) -> JobRecord | None:
        with self._lock:
            at = now()
            waiting = [job for job in self._served() if job.state is JobState.QUEUED or _is_expired(job, at)]
            return self.change_job(waiting[0].id, transition) if waiting else None

    def directions(self, job_id: str, *, epoch: int) -> Directions:
        job = self._job(job_id).record
        lifecycle.check_epoch(job, epoch)
        return rows.directions(job.order, job.document)

    def renew(self, job_id: str, *, epoch: int, lease_s: float) -> None:
        self._set_unless_settled(job_id, epoch, leased_until=now() + timedelta(seconds=lease_s))

    def record_stage(self, job_id: str, stage: JobStage, *, epoch: int) -> None:
        self._set_unless_settled(job_id, epoch, stage=stage)

    def held_jobs(self) -> list[HeldJob]:
        held = [job for job in self._served() if lifecycle.is_held(job, now())]
        kinds = [job.description.environment.kind if job.description else None for job in held]
        return [
            rows.held_job(job.id, job.driver, job.epoch, job.document, kind)
            for job, kind in zip(held, kinds, strict=True)
        ]

    def record(self, results: Sequence[TrialResult], *, epoch: int) -> None:
        with self._lock:
            for result in results:
                lifecycle.check_epoch(self._job(result.trial.job_id).record, epoch)
                artifacts.check(result)
            new = [result for result in results if result.trial.number not in self._job(result.trial.job_id).results]
            for position, result in enumerate(new):
                self._check_map(result.trial, new[:position])
            if new:
                self._add(new)

    def record_probes(self, key: str, probes: Probes) -> None:
        self._probes.setdefault(key, probes)

    def statistics(self) -> Statistics:
        jobs = list(self._jobs.values())
        waiting = [job.record.created_at for job in jobs if job.record.state is JobState.QUEUED]
        return Statistics(
            jobs=Counter(job.record.state for job in jobs),
            trials=Counter(result.trial.state for job in jobs for result in job.results.values()),
            takeovers=sum(event.kind == "taken_over" for job in jobs for event in job.events),
            oldest_wait_s=(now() - min(waiting)).total_seconds() if waiting else 0.0,
        )

    def add_token(self, token: TokenRecord, secret_hash: str) -> None:
        if token.id in self._tokens:
            raise ConflictError(f"token {token.id!r} already exists; add another one")
        self._tokens[token.id] = token, secret_hash

    def tokens(self) -> list[TokenRecord]:
        return sorted((token for token, _ in self._tokens.values()), key=lambda token: (token.created_at, token.id))

    def token(self, token_id: str) -> tuple[TokenRecord, str] | None:
        return self._tokens.get(token_id)

    def revoke_token(self, token_id: str) -> TokenRecord:
        if token_id not in self._tokens:
            raise NotFoundError(f"no token {token_id!r}; list all with 'autotune token list'")
        token, secret_hash = self._tokens[token_id]
        revoked = dataclasses.replace(token, revoked_at=token.revoked_at or now())
        self._tokens[token_id] = revoked, secret_hash
        return revoked

    def close(self) -> None:
        pass

    def _records(self) -> list[JobRecord]:
        return [job.record for job in list(self._jobs.values())]

    def _check_room(self, owner: str, most_live: int | None) -> None:
        live = sum(job.owner == owner and job.state.is_live for job in self._records())
        lifecycle.check_room(owner, live, most_live)

    def _served(self) -> list[JobRecord]:
        """Return the served jobs, higher priority first, then older."""
        served = [job for job in self._records() if job.served]
        return sorted(served, key=lambda job: (-job.priority, job.created_at, job.id))

    def _job(self, job_id: str) -> _Job:
        try:
            return self._jobs[job_id]
        except KeyError:
            raise NotFoundError(f"no job {job_id!r} in this database") from None

    def _set_unless_settled(self, job_id: str, epoch: int, **fields: Any) -> None:
        with self._lock:
            job = self._job(job_id)
            lifecycle.check_epoch(job.record, epoch)
            if job.record.state is JobState.RUNNING:
                job.record = dataclasses.replace(job.record, **fields)

    def _check_map(self, trial: TrialRecord, besides: Sequence[TrialResult]) -> None:
        known = [*self._job(trial.job_id).results.values(), *besides]
        final = TrialKind.FINAL
        for other in (result.trial for result in known):
            if other.key == trial.key and (other.kind is final) == (trial.kind is final):
                numbers = f"{other.number} and {trial.number}"
                raise ConflictError(f"trials {numbers} of job {trial.job_id} have the same map")

    def _add(self, results: Sequence[TrialResult]) -> None:
        job = self._job(results[0].trial.job_id)
        for result in results:
            for artifact in result.artifacts:
                self._artifacts.setdefault(artifact.sha256, artifact.data)
            job.results[result.trial.number] = copy.deepcopy(dataclasses.replace(result, artifacts=()))
            if result.front:
                job.fronts.append(result.front)
            job.events.extend(result.events)
        elapsed_s = job.record.elapsed_s + sum(result.elapsed_s for result in results)
        job.record = _counted(dataclasses.replace(job.record, elapsed_s=elapsed_s, crashes=0))


def _age(job: JobRecord) -> tuple[datetime, str]:
    return job.created_at, job.id


def _tally(job: _Job | None) -> Tally:
    if job is None:
        return Tally()
    searched = budget.searched(result.trial for result in job.results.values())
    return Tally(searched=searched, front=job.fronts[-1].members if job.fronts else ())


def _is_expired(job: JobRecord, at: datetime) -> bool:
    return job.state is JobState.RUNNING and job.leased_until is not None and job.leased_until <= at


def _counted(record: JobRecord) -> JobRecord:
    return dataclasses.replace(record, updated_at=now(), version=record.version + 1)
