"""The search of one job: ask the sampler, submit a map, wait, record the trial, tell the sampler.

There is an answer at any time, and it gets better: full precision first, then the uniform maps, the most promising ones
first. Only then are the layers probed, and the sampler starts from the probes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autotune.jobs.front import needing_final_run, violations
from autotune.jobs.progress import Listener
from autotune.jobs.recommendation import default_pick
from autotune.jobs.records import (
    EventRecord,
    HeldJob,
    JobRecord,
    TrialKind,
    TrialResult,
    TrialState,
)
from autotune.jobs.spec import SamplerName
from autotune.jobs.timestamps import event
from autotune.metrics.from_measurement import Reference
from autotune.search.backend_search import BackendSearch, promise_of
from autotune.search.early_stopping import incumbents, quality_limits
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from autotune.search.study import Proposal
from autotune.search.trials import PlannedTrial
from autotune.search.worker_shares import fair_shares
from search_spaces.choice import FULL_PRECISION
from workers.candidate import Candidate, Outcome
from workers.errors import TaskError
from workers.measurement import Measurement
from workers.pools.base import Pool
from workers.setup import Probes

#: Seconds the driver waits for outcomes before it checks the time limit and the user's orders again.
_TICK_S = 0.5
#: Share of the time limit after which no further uniform map is measured before the search.
_UNIFORM_SHARE = 0.4
#: Share of the time left that probing the sensitivities may take, and seconds that it may take in any case.
_PROBING_SHARE, _LEAST_PROBING_S = 0.2, 5.0
#: Fewest maps that the time left must suffice for; otherwise probes take the time of the few maps they would improve.
_PROBED_MAPS = 4

#: Returns the expected costs of every layer and choice on a backend, estimated in about so many seconds; None if
#: nothing was probed.
Probe = Callable[[float, str], Probes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A trial to measure, where it runs, and the proposal that it answers."""

    trial: PlannedTrial
    search: BackendSearch
    #: None for full precision and final measurements, which nobody proposed.
    proposal: Proposal | None


class Search:
    """The search of one job, from its last recorded trial to the end of its budget."""

    def __init__(
        self,
        job: JobRecord,
        searches: Sequence[BackendSearch],
        pool: Pool,
        listener: Listener,
        lease: Lease,
        ledger: Ledger,
        probe: Probe = lambda *_: None,
    ) -> None:
        """Take over a job.

        Args:
            job: the job as this driver claimed it, with the description of its model.
            searches: the searches on its backends, the one that everything is compared with first.
            pool: measures candidates.
            listener: is notified of each stage.
            lease: the held lease of the job.
            ledger: the trials, front and budget of the job.
            probe: probes the layers, or returns what an earlier job recorded.
        """
        self._job, self._spec, self._pool, self._listener, self._lease = job, job.spec, pool, listener, lease
        self._ledger, self._front = ledger, ledger.front
        self._held_jobs: Sequence[HeldJob] = ()
        self._searches = list(searches)
        self._probe = probe
        self._constraints = job.spec.constraints.constraints()
        self._pending: dict[int, _Planned] = {}
        self._reference: Reference | None = None
        #: When outcomes last arrived, and the seconds the driver then took before it waited for more.
        self._received_at, self._driver_s = time.monotonic(), 0.0

    def run(self) -> str:
        """Measure full precision, the uniform maps, the sampler's maps, and finally the picks again.

        Returns:
            Why the search ended.
        """
        for search in self._searches:
            search.relearn(self._front.trials)
        self._measure_full_precision()
        self._measure_uniform_maps(_UNIFORM_SHARE)
        if self._spec.search.sampler is SamplerName.SENSITIVITY and self._budget_left():
            if self._ledger.left_s < _PROBED_MAPS * self._ledger.budget.trial_s:
                self._measure_uniform_maps(1.0)
            else:
                self._probe_all()
        self._listener.stage("Searching")
        mixtures = self._mixtures()
        self._measure_all(lambda: next(mixtures, None) or self._sampled())
        why = _why_ended(self._ledger, self._searches)
        self._measure_picks()
        return why

    def _measure_all(self, next_map: Callable[[], _Planned | None]) -> None:
        """Measure maps until there is no other, or the budget is spent."""
        while True:
            exhausted = False
            while not exhausted and len(self._pending) < self._most_pending() and self._budget_left():
                exhausted = not self._submit_next(next_map())
            if not self._pending and (exhausted or not self._budget_left()):
                return
            self._collect()

    def _probe_all(self) -> None:
        """Probe the layers on every backend, each within its part of the time that probing may take."""
        budget_s = max(_PROBING_SHARE * self._ledger.left_s, _LEAST_PROBING_S)
        for left, search in zip(range(len(self._searches), 0, -1), self._searches, strict=True):
            started_at = time.monotonic()
            probes = self._probe(budget_s / left, search.backend)
            taken_s, waited_s = time.monotonic() - started_at, probes.waited_seconds if probes else 0.0
            budget_s -= taken_s - waited_s
            self._ledger.set_aside(taken_s, waited_s=waited_s)
            search.relearn(self._front.trials, probes)

    def _measure_full_precision(self) -> None:
        """Make sure that full precision is measured on every backend, first where everything is compared with it."""
        first, *others = self._searches
        if not self._front.trials:
            self._listener.stage("Measuring full precision")
            self._submit(self._plan(first, first.full_precision, TrialKind.BASELINE, FULL_PRECISION.name))
            while self._pending:
                self._collect()
        full = self._front.trials[0]
        if full.state is not TrialState.COMPLETE:
            raise TaskError(f"full precision cannot be measured: {full.message}; fix the task and start a new job")
        self._reference = Reference.of_figures(full.figures)
        for search in others:
            search.relearn(self._front.trials)
        missing = (
            self._plan(search, search.full_precision, TrialKind.BASELINE, FULL_PRECISION.name)
            for search in others
            if not search.tried_full_precision(self._front.trials)
        )
        self._measure_all(lambda: next(missing, None))
        # Nothing can be predicted where full precision fails.
        self._searches = [first, *(other for other in others if other.has_full_precision(self._front.trials))]

    def _measure_uniform_maps(self, share: float) -> None:
        """Measure uniform maps until a share of the time limit is spent, but at least one."""
        self._listener.stage("Measuring uniform maps")
        baselines = self._baselines(share)
        self._measure_all(lambda: next(baselines, None))

    def _baselines(self, share: float) -> Iterator[_Planned]:
        """Yield the uniform maps that were not measured yet, the most promising ones of every backend first."""
        wanted = [(choice, search) for search in self._searches for choice in search.uniform_choices()]
        for choice, search in sorted(wanted, key=lambda each: promise_of(each[0])):
            measured = len(self._front.trials) + len(self._pending) - len(self._searches)
            in_time = self._ledger.share < share or measured < 1
            proposal = search.uniform(choice) if in_time else None
            if proposal is not None:
                yield self._planned(search, proposal)

    def _mixtures(self) -> Iterator[_Planned]:
        """Yield mixtures of the baselines on the front that were not measured yet."""
        for search in self._searches:
            for proposal in search.mixtures(self._front.trials):
                yield self._planned(search, proposal)

    def _sampled(self) -> _Planned | None:
        """Return the next map of the backend that promises most, or None if none has a map worth measuring."""
        for search in sorted(self._searches, key=lambda each: each.urgency):
            proposal = search.ask()
            if proposal is not None:
                return self._planned(search, proposal)
        return None

    def _measure_picks(self) -> None:
        """Measure the picks at full fidelity until every pick has a final measurement."""
        searches = {search.tag: search for search in self._searches}
        while True:
            submitted = {planned.trial.key for planned in self._pending.values()}
            picks = needing_final_run(self._front.trials, self._spec.objectives, default_pick(self._spec))
            waiting = [trial for trial in picks if trial.key not in submitted]
            for trial in waiting:
                if len(self._pending) < self._pool.slots and self._ledger.allows_final(len(self._pending)):
                    self._listener.stage("Measuring the best maps again")
                    search = searches[trial.backend]
                    self._submit(self._plan(search, trial.choices, TrialKind.FINAL, trial.label))
            if not self._pending and not (waiting and self._ledger.allows_final(len(self._pending))):
                return
            self._collect()

    def _submit_next(self, planned: _Planned | None) -> bool:
        """Submit a map, or rule it out by figures known without measurement; return whether there was a map."""
        if planned is None:
            return False
        known = planned.search.known_figures(planned.trial.choices)
        broken = any(violation > 0 for violation in violations(known, self._constraints).values())
        if broken and planned.trial.kind is TrialKind.SEARCH:
            self._lease.check()  # many maps may be ruled out between two outcomes
            trial = planned.trial.ruled_out(known, self._constraints)
            self._ledger.commit([TrialResult(trial=trial)])
            planned.search.learn(trial, planned.proposal)
        else:
            self._submit(planned)
        return True

    def _planned(self, search: BackendSearch, proposal: Proposal) -> _Planned:
        """Return the trial of a proposal; a uniform map is a baseline, whoever proposed it."""
        label = search.label_of(proposal)
        kind = TrialKind.SEARCH if label is None else TrialKind.BASELINE
        return self._plan(search, proposal.choices, kind, label, proposal)

    def _plan(
        self, search: BackendSearch, choices: Mapping[str, str], kind: TrialKind, label: str | None,
        proposal: Proposal | None = None,
    ) -> _Planned:  # fmt: skip
        number, where = self._ledger.next_number(), search.tag
        trial = PlannedTrial(job_id=self._job.id, number=number, kind=kind, label=label, choices=choices, backend=where)
        return _Planned(trial=trial, search=search, proposal=proposal)

    def _submit(self, planned: _Planned) -> None:
        trial = planned.trial
        self._pending[trial.number] = planned
        reference = self._reference if trial.kind is TrialKind.SEARCH else None
        timed_in_full = trial.kind is TrialKind.FINAL or self._reference is None
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
                    self._front.members,
                    planned.search.known_figures(trial.choices),
                    self._spec.objectives,
                    self._constraints,
                    reference,
                )
                if reference
                else (),
            )
        )

    def _collect(self) -> None:
        """Wait for outcomes, commit them, then tell the samplers."""
        self._follow_directions()
        planned, results = [], []
        self._driver_s = time.monotonic() - self._received_at
        outcomes = self._pool.wait(_TICK_S)
        self._received_at = time.monotonic()
        for outcome in outcomes:
            each = self._pending.pop(outcome.candidate.number)
            state = {} if each.proposal is None else each.search.study.sampler_state(each.proposal)
            rate = self._spec.measurement.requests_per_second
            trial = each.trial.finished(outcome, self._reference, self._constraints, state, rate)
            latency = outcome.result.latency if isinstance(outcome.result, Measurement) else ()
            results.append(TrialResult(trial=trial, latency=latency, events=_events(outcome)))
            planned.append(each)
        # Several workers also wait for each other, which is part of the search.
        waited_s = sum(_waited_s(outcome) for outcome in outcomes) if self._pool.slots == 1 else 0.0
        self._ledger.commit(results, waited_s=waited_s)
        for each, result in zip(planned, results, strict=True):
            for search in self._searches:
                search.learn(result.trial, each.proposal)

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

    def _most_pending(self) -> int:
        """Return how many candidates may be pending: more than the workers if these would wait for the driver.

        A single slow worker gets no candidate in advance, so that the sampler learns each result first.
        """
        slots = self._pool.slots
        ready = min(slots, round(slots * self._driver_s / self._ledger.budget.trial_s)) if self._pool.queues else 0
        return slots + ready

    def _budget_left(self) -> bool:
        return self._ledger.allows_search(len(self._pending))


def _why_ended(ledger: Ledger, searches: Sequence[BackendSearch]) -> str:
    if ledger.budget.is_spent:
        return "all trials of the budget were measured"
    if not ledger.allows_search(pending=0):
        return "the time limit was reached"
    spent = any(search.study.spent for search in searches)
    return "no other map promises a gain" if spent else "all maps of the search space were measured"


def _waited_s(outcome: Outcome) -> float:
    """Return the seconds that a measurement waited for the device."""
    return outcome.result.waited_seconds if isinstance(outcome.result, Measurement) else 0.0


def _events(outcome: Outcome) -> tuple[EventRecord, ...]:
    if outcome.attempts == 1:
        return ()
    message = f"Trial {outcome.candidate.number} took {outcome.attempts} attempts because its worker was lost"
    return (event("worker_replaced", message),)
