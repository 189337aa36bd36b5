"""The search of one job: ask the sampler, submit a map, wait, record the trial, tell the sampler.

There is an answer at any time, and it gets better: full precision first, then the uniform maps, the most promising ones
first. Only then are the layers probed, and the sampler starts from the probes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from autotune.metrics.from_measurement import MIB, Reference
from autotune.planner.prior import expect
from autotune.search.early_stopping import incumbents, quality_limits
from autotune.search.initial_design import mixtures
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from autotune.search.study import Proposal, Study
from autotune.search.trials import PlannedTrial
from autotune.search.worker_shares import fair_shares
from search_spaces.choice import FULL_PRECISION, ActivationMode, choice_named
from search_spaces.quantization_map import map_key
from search_spaces.space import SearchSpace
from workers.candidate import Candidate, Outcome
from workers.errors import TaskError
from workers.measurement import Measurement
from workers.pools.base import Pool
from workers.setup import Probes
from workers.timing.estimates import Figure

#: Seconds the driver waits for outcomes before it checks the time limit and the user's orders again.
_TICK_S = 0.5
#: Share of the time limit after which no further uniform map is measured before the search.
_UNIFORM_SHARE = 0.4
#: Share of the time left that probing the sensitivities may take, and seconds that it may take in any case.
_PROBING_SHARE, _LEAST_PROBING_S = 0.2, 5.0
#: Fewest maps that the time left must suffice for; otherwise probes take the time of the few maps they would improve.
_PROBED_MAPS = 4

#: Returns the expected costs of every layer and choice, estimated in about so many seconds; None if nothing was probed.
Probe = Callable[[float], Probes | None]


class Search:
    """The search of one job, from its last recorded trial to the end of its budget."""

    def __init__(
        self,
        job: JobRecord,
        space: SearchSpace,
        pool: Pool,
        listener: Listener,
        lease: Lease,
        ledger: Ledger,
        probe: Probe = lambda _: None,
    ) -> None:
        """Take over a job.

        Args:
            job: the job as this driver claimed it, with the description of its model.
            space: maps that the job may measure.
            pool: measures candidates.
            listener: is notified of each stage.
            lease: the held lease of the job.
            ledger: the trials, front and budget of the job.
            probe: probes the layers, or returns what an earlier job recorded.
        """
        assert job.description is not None
        self._job, self._spec, self._pool, self._listener, self._lease = job, job.spec, pool, listener, lease
        self._ledger, self._front = ledger, ledger.front
        self._held_jobs: Sequence[HeldJob] = ()
        self._description = job.description
        self._space = space
        self._probe = probe
        #: Key of each uniform map -> its label.
        self._uniform = {
            map_key(space.layer_choices(space.uniform(choice))): f"uniform {choice}"
            for choice in space.uniform_choices()
        }
        self._constraints = job.spec.constraints.constraints()
        self._pending: dict[int, tuple[PlannedTrial, Proposal | None]] = {}
        self._reference: Reference | None = None
        #: When outcomes last arrived, and the seconds the driver then took before it waited for more.
        self._received_at, self._driver_s = time.monotonic(), 0.0

    def run(self) -> str:
        """Measure full precision, the uniform maps, the sampler's maps, and finally the picks again.

        Returns:
            Why the search ended.
        """
        study = self._study(None)
        self._measure_full_precision(study)
        self._measure_uniform_maps(study, _UNIFORM_SHARE)
        if self._spec.search.sampler is SamplerName.SENSITIVITY and self._budget_left():
            if self._ledger.left_s < _PROBED_MAPS * self._ledger.budget.trial_s:
                self._measure_uniform_maps(study, 1.0)
            else:
                study = self._study(self._probed())
        self._listener.stage("Searching")
        mixtures = self._mixtures(study)
        self._measure_all(lambda: next(mixtures, None) or self._sampled(study), study)
        why = _why_ended(self._ledger, study)
        self._measure_picks(study)
        return why

    def _measure_all(self, next_map: Callable[[], tuple[PlannedTrial, Proposal] | None], study: Study) -> None:
        """Measure maps until there is no other, or the budget is spent."""
        while True:
            exhausted = False
            while not exhausted and len(self._pending) < self._most_pending() and self._budget_left():
                exhausted = not self._submit_next(next_map(), study)
            if not self._pending and (exhausted or not self._budget_left()):
                return
            self._collect(study)

    def _probed(self) -> Probes | None:
        started_at = time.monotonic()
        probes = self._probe(max(_PROBING_SHARE * self._ledger.left_s, _LEAST_PROBING_S))
        waited_s = probes.waited_seconds if probes else 0.0
        self._ledger.set_aside(time.monotonic() - started_at, waited_s=waited_s)
        return probes

    def _study(self, probes: Probes | None) -> Study:
        """Return a study that has learned all trials so far."""
        search = self._spec.search
        return Study(
            self._space,
            self._spec.objectives,
            self._constraints,
            search.sampler,
            seed=search.seed,
            trials=search.trials,
            slots=self._pool.slots,
            prior=expect(self._space, self._description, probes, self._spec.rules()),
            history=self._front.trials,
        )

    def _measure_full_precision(self, study: Study) -> None:
        """Make sure that the first trial is full precision, which everything else is relative to."""
        if not self._front.trials:
            self._listener.stage("Measuring full precision")
            choices = {layer.name: FULL_PRECISION.name for layer in self._space.layers}
            self._submit(self._plan(choices, TrialKind.BASELINE, FULL_PRECISION.name), None)
            while self._pending:
                self._collect(study)
            study.add(self._front.trials[0])
        first = self._front.trials[0]
        if first.state is not TrialState.COMPLETE:
            raise TaskError(f"full precision cannot be measured: {first.message}; fix the task and start a new job")
        self._reference = Reference.of_figures(first.figures)

    def _measure_uniform_maps(self, study: Study, share: float) -> None:
        """Measure uniform maps until a share of the time limit is spent, but at least one."""
        self._listener.stage("Measuring uniform maps")
        baselines = self._baselines(study, share)
        self._measure_all(lambda: next(baselines, None), study)

    def _baselines(self, study: Study, share: float) -> Iterator[tuple[PlannedTrial, Proposal]]:
        """Yield the uniform maps that were not measured yet."""
        for choice in sorted(self._space.uniform_choices(), key=_promise):
            in_time = self._ledger.share < share or len(self._front.trials) + len(self._pending) < 2
            proposal = study.propose(self._space.uniform(choice)) if in_time else None
            if proposal is not None:
                yield self._plan(proposal.choices, TrialKind.BASELINE, self._uniform[proposal.key]), proposal

    def _mixtures(self, study: Study) -> Iterator[tuple[PlannedTrial, Proposal]]:
        """Yield mixtures of the baselines on the front that were not measured yet."""
        search = self._spec.search
        if search.sampler is SamplerName.SENSITIVITY:
            return  # its first maps are better, because it starts from probes
        for assignment in mixtures(self._space, self._front.trials, self._spec.objectives, seed=search.seed):
            proposal = study.propose(assignment)
            if proposal is not None:
                yield self._plan(proposal.choices, TrialKind.SEARCH, None), proposal

    def _sampled(self, study: Study) -> tuple[PlannedTrial, Proposal] | None:
        """Return the sampler's next map, or None if no map is left that is worth measuring."""
        proposal = study.ask()
        if proposal is None:
            return None
        # A uniform map that did not fit into its share of the time limit may be proposed now.
        label = self._uniform.get(proposal.key)
        kind = TrialKind.SEARCH if label is None else TrialKind.BASELINE
        return self._plan(proposal.choices, kind, label), proposal

    def _measure_picks(self, study: Study) -> None:
        """Measure the picks at full fidelity until every pick has a final measurement."""
        while True:
            submitted = {planned.key for planned, _ in self._pending.values()}
            picks = needing_final_run(self._front.trials, self._spec.objectives, default_pick(self._spec))
            waiting = [trial for trial in picks if trial.key not in submitted]
            for trial in waiting:
                if len(self._pending) < self._pool.slots and self._ledger.allows_final(len(self._pending)):
                    self._listener.stage("Measuring the best maps again")
                    self._submit(self._plan(trial.choices, TrialKind.FINAL, trial.label), None)
            if not self._pending and not (waiting and self._ledger.allows_final(len(self._pending))):
                return
            self._collect(study)

    def _submit_next(self, chosen: tuple[PlannedTrial, Proposal] | None, study: Study) -> bool:
        """Submit a map, or rule it out by figures known without measurement; return whether there was a map."""
        if chosen is None:
            return False
        planned, proposal = chosen
        known = self._known_figures(planned.choices)
        broken = any(violation > 0 for violation in violations(known, self._constraints).values())
        if broken and planned.kind is TrialKind.SEARCH:
            self._lease.check()  # many maps may be ruled out between two outcomes
            trial = planned.ruled_out(known, self._constraints)
            self._ledger.commit([TrialResult(trial=trial)])
            study.tell(proposal, trial)
        else:
            self._submit(planned, proposal)
        return True

    def _plan(self, choices: Mapping[str, str], kind: TrialKind, label: str | None) -> PlannedTrial:
        number = self._ledger.next_number()
        return PlannedTrial(job_id=self._job.id, number=number, kind=kind, label=label, choices=choices)

    def _submit(self, planned: PlannedTrial, proposal: Proposal | None) -> None:
        self._pending[planned.number] = planned, proposal
        reference = self._reference if planned.kind is TrialKind.SEARCH else None
        timed_in_full = planned.kind is TrialKind.FINAL or self._reference is None
        self._pool.submit(
            Candidate(
                number=planned.number,
                choices=planned.choices,
                limits=quality_limits(self._constraints, reference) if reference else {},
                workloads=None if timed_in_full else self._spec.searched_workloads(),
                final=planned.kind is TrialKind.FINAL,
                timing_s=self._ledger.timing_s(final=planned.kind is TrialKind.FINAL),
                incumbents=incumbents(
                    self._front.members,
                    self._known_figures(planned.choices),
                    self._spec.objectives,
                    self._constraints,
                    reference,
                )
                if reference
                else (),
            )
        )

    def _collect(self, study: Study) -> None:
        """Wait for outcomes, commit them, then tell the sampler."""
        self._follow_directions()
        proposals, results = [], []
        self._driver_s = time.monotonic() - self._received_at
        outcomes = self._pool.wait(_TICK_S)
        self._received_at = time.monotonic()
        for outcome in outcomes:
            planned, proposal = self._pending.pop(outcome.candidate.number)
            state = {} if proposal is None else study.sampler_state(proposal)
            rate = self._spec.measurement.requests_per_second
            trial = planned.finished(outcome, self._reference, self._constraints, state, rate)
            latency = outcome.result.latency if isinstance(outcome.result, Measurement) else ()
            results.append(TrialResult(trial=trial, latency=latency, events=_events(outcome)))
            proposals.append(proposal)
        # Several workers also wait for each other, which is part of the search.
        waited_s = sum(_waited_s(outcome) for outcome in outcomes) if self._pool.slots == 1 else 0.0
        self._ledger.commit(results, waited_s=waited_s)
        for proposal, result in zip(proposals, results, strict=True):
            if proposal is not None:
                study.tell(proposal, result.trial)

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

    def _known_figures(self, choices: Mapping[str, str]) -> dict[str, Figure]:
        """Return the figures that need no measurement: weight memory is computed exactly."""
        return {"weight_memory_mib": Figure(value=self._description.weight_bytes(choices) / MIB)}

    def _most_pending(self) -> int:
        """Return how many candidates may be pending: more than the workers if these would wait for the driver.

        A single slow worker gets no candidate in advance, so that the sampler learns each result first.
        """
        slots = self._pool.slots
        ready = min(slots, round(slots * self._driver_s / self._ledger.budget.trial_s)) if self._pool.queues else 0
        return slots + ready

    def _budget_left(self) -> bool:
        return self._ledger.allows_search(len(self._pending))


def _promise(choice: str) -> tuple[bool, int]:
    """Return a sort key that puts choices first whose uniform map is probably fast: those that compute in few bits."""
    known = choice_named(choice)
    return known.activation is ActivationMode.NONE, known.precision.bits


def _why_ended(ledger: Ledger, study: Study) -> str:
    if ledger.budget.is_spent:
        return "all trials of the budget were measured"
    if not ledger.allows_search(pending=0):
        return "the time limit was reached"
    return "no other map promises a gain" if study.spent else "all maps of the search space were measured"


def _waited_s(outcome: Outcome) -> float:
    """Return the seconds that a measurement waited for the device."""
    return outcome.result.waited_seconds if isinstance(outcome.result, Measurement) else 0.0


def _events(outcome: Outcome) -> tuple[EventRecord, ...]:
    if outcome.attempts == 1:
        return ()
    message = f"Trial {outcome.candidate.number} took {outcome.attempts} attempts because its worker was lost"
    return (event("worker_replaced", message),)
