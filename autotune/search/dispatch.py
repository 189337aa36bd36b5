"""Sends planned trials to the workers, and records their outcomes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.jobs.front import violations
from autotune.jobs.records import EventRecord, HeldJob, JobRecord, TrialKind, TrialRecord, TrialResult
from autotune.jobs.timestamps import event
from autotune.metrics.from_measurement import Reference
from autotune.search.backend_search import BackendSearch
from autotune.search.early_stopping import incumbents, quality_limits
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from autotune.search.study import Proposal
from autotune.search.trials import PlannedTrial
from autotune.search.worker_shares import fair_shares
from workers.candidate import Candidate, Outcome
from workers.measurement import Measurement
from workers.pools.base import Pool

#: Seconds the driver waits for outcomes before it checks the time limit and the user's orders again.
_TICK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A trial to measure, where it runs, and the proposal that it answers."""

    trial: PlannedTrial
    search: BackendSearch
    #: None for full precision and final measurements, which nobody proposed.
    proposal: Proposal | None


class Dispatch:
    """The trials of one job that are being measured."""

    def __init__(self, job: JobRecord, pool: Pool, lease: Lease, ledger: Ledger) -> None:
        """Start without pending trials; see ``Search`` for the arguments."""
        self._job, self._spec, self._pool, self._lease, self._ledger = job, job.spec, pool, lease, ledger
        self._constraints = job.spec.constraints.constraints()
        self._held_jobs: Sequence[HeldJob] = ()
        self._pending: dict[int, Planned] = {}
        #: Figures of full precision; None until it was measured.
        self.reference: Reference | None = None
        #: When outcomes last arrived, and the seconds the driver then took before it waited for more.
        self._received_at, self._driver_s = time.monotonic(), 0.0

    @property
    def pending(self) -> int:
        """Number of trials that are being measured."""
        return len(self._pending)

    @property
    def pending_keys(self) -> set[str]:
        """Keys of the maps that are being measured."""
        return {planned.trial.key for planned in self._pending.values()}

    @property
    def allows_search(self) -> bool:
        """Whether the budget allows another map."""
        return self._ledger.allows_search(self.pending)

    @property
    def allows_final(self) -> bool:
        """Whether the budget allows another final measurement."""
        return self._ledger.allows_final(self.pending)

    @property
    def is_full(self) -> bool:
        """Whether no further map should be submitted; more than the workers are pending only if they would wait.

        A single slow worker gets no candidate in advance, so that the sampler learns each result first.
        """
        slots = self._pool.slots
        ready = min(slots, round(slots * self._driver_s / self._ledger.budget.trial_s)) if self._pool.queues else 0
        return self.pending >= slots + ready

    def plan(
        self,
        search: BackendSearch,
        choices: Mapping[str, str],
        kind: TrialKind,
        label: str | None,
        proposal: Proposal | None = None,
    ) -> Planned:
        """Return the next trial of the job, which runs on the backend of ``search``."""
        number, where = self._ledger.next_number(), search.tag
        trial = PlannedTrial(job_id=self._job.id, number=number, kind=kind, label=label, choices=choices, backend=where)
        return Planned(trial=trial, search=search, proposal=proposal)

    def proposed(self, search: BackendSearch, proposal: Proposal) -> Planned:
        """Return the trial of a proposal; a uniform map or a recipe is a baseline, whoever proposed it."""
        label = search.label_of(proposal)
        kind = TrialKind.SEARCH if label is None else TrialKind.BASELINE
        return self.plan(search, proposal.choices, kind, label, proposal)

    def ruled_out(self, planned: Planned) -> TrialRecord | None:
        """Return the recorded trial of a map that breaks a limit by figures known without measurement; else None."""
        known = planned.search.known_figures(planned.trial.choices)
        broken = any(violation > 0 for violation in violations(known, self._constraints).values())
        if not broken or planned.trial.kind is not TrialKind.SEARCH:
            return None
        self._lease.check()  # many maps may be ruled out between two outcomes
        trial = planned.trial.ruled_out(known, self._constraints)
        self._ledger.commit([TrialResult(trial=trial)])
        return trial

    def submit(self, planned: Planned) -> None:
        """Send a trial to the workers."""
        trial = planned.trial
        self._pending[trial.number] = planned
        reference = self.reference if trial.kind is TrialKind.SEARCH else None
        timed_in_full = trial.kind is TrialKind.FINAL or self.reference is None
        self._pool.submit(
            Candidate(
                number=trial.number,
                choices=trial.choices,
                backend=trial.backend,
                limits=quality_limits(self._constraints, reference) if reference else {},
                workloads=None if timed_in_full else self._spec.searched_workloads(),
                final=trial.kind is TrialKind.FINAL,
                timing_s=self._ledger.timing_s(final=trial.kind is TrialKind.FINAL),
                incumbents=incumbents(
                    self._ledger.front.members,
                    planned.search.known_figures(trial.choices),
                    self._spec.objectives,
                    self._constraints,
                    reference,
                )
                if reference
                else (),
            )
        )

    def collect(self) -> list[tuple[TrialRecord, Proposal | None]]:
        """Wait a moment for outcomes, record them, and return the trials with the proposals that they answer.

        Raises:
            LeaseLostError, OrderedError, Stopped: see ``Lease.check``.
        """
        self._follow_directions()
        planned, results = [], []
        self._driver_s = time.monotonic() - self._received_at
        outcomes = self._pool.wait(_TICK_S)
        self._received_at = time.monotonic()
        for outcome in outcomes:
            each = self._pending.pop(outcome.candidate.number)
            state = {} if each.proposal is None else each.search.study.sampler_state(each.proposal)
            rate = self._spec.measurement.requests_per_second
            trial = each.trial.finished(outcome, self.reference, self._constraints, state, rate)
            latency = outcome.result.latency if isinstance(outcome.result, Measurement) else ()
            results.append(TrialResult(trial=trial, latency=latency, events=_events(outcome)))
            planned.append(each)
        # Several workers also wait for each other, which is part of the search.
        waited_s = sum(_waited_s(outcome) for outcome in outcomes) if self._pool.slots == 1 else 0.0
        self._ledger.commit(results, waited_s=waited_s)
        return [(result.trial, each.proposal) for each, result in zip(planned, results, strict=True)]

    def _follow_directions(self) -> None:
        """Obey the user's orders, apply a changed budget, and resize the pool to the job's share of workers."""
        self._lease.check()
        directions = self._lease.directions
        if directions:
            self._ledger.budget.limit(directions.trials, directions.time_limit_s)
        if self._lease.held_jobs is not self._held_jobs:
            self._held_jobs = self._lease.held_jobs
            capacity = self._pool.capacity()
            if capacity:
                self._pool.resize(fair_shares(self._held_jobs, capacity).get(self._job.id, 0))


def _waited_s(outcome: Outcome) -> float:
    """Return the seconds that a measurement waited for the device."""
    return outcome.result.waited_seconds if isinstance(outcome.result, Measurement) else 0.0


def _events(outcome: Outcome) -> tuple[EventRecord, ...]:
    if outcome.attempts == 1:
        return ()
    message = f"Trial {outcome.candidate.number} took {outcome.attempts} attempts because its worker was lost"
    return (event("worker_replaced", message),)
