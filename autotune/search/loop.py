"""The search of one job: ask the sampler, submit a map, wait, record the trial, tell the sampler.

There is an answer at any time, and it gets better: full precision first, then the uniform maps, the most promising ones
first. Only then are the layers probed, and the sampler starts from the probes.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from autotune.jobs.front import needing_final_run
from autotune.jobs.progress import Listener
from autotune.jobs.recommendation import default_pick, recommended
from autotune.jobs.records import JobRecord, TrialKind, TrialState
from autotune.jobs.spec import SamplerName
from autotune.metrics.from_measurement import Reference
from autotune.search.backend_search import BackendSearch, promise_of
from autotune.search.dispatch import Dispatch, Planned
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from search_spaces.choice import FULL_PRECISION
from workers.errors import TaskError
from workers.pools.base import Pool
from workers.setup import Probes

#: Share of the time limit after which no further uniform map is measured before the search.
_UNIFORM_SHARE = 0.4
#: Share of the time left that probing the sensitivities may take, and seconds that it may take in any case.
_PROBING_SHARE, _LEAST_PROBING_S = 0.2, 5.0
#: Fewest maps that the time left must suffice for; otherwise probes take the time of the few maps they would improve.
#: Without probes only uniform maps are left, so fewer suffice while those that were measured break a limit.
_PROBED_MAPS, _PROBED_MAPS_WITHOUT_RIVALS = 4, 2

#: Returns the expected costs of every layer and choice on a backend, estimated in about so many seconds; None if
#: nothing was probed.
Probe = Callable[[float, str], Probes | None]


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
        self._spec, self._pool, self._listener, self._probe = job.spec, pool, listener, probe
        self._ledger, self._front = ledger, ledger.front
        self._searches = list(searches)
        self._dispatch = Dispatch(job, pool, lease, ledger)

    def run(self) -> str:
        """Measure full precision, the uniform maps, the sampler's maps, and finally the picks again.

        Returns:
            Why the search ended.
        """
        for search in self._searches:
            search.relearn(self._front.trials)
        self._measure_full_precision()
        self._measure_uniform_maps(_UNIFORM_SHARE)
        if self._spec.search.sampler is SamplerName.SENSITIVITY and self._dispatch.allows_search:
            if self._has_time_to_probe():
                self._probe_all()
            else:
                self._measure_uniform_maps(1.0)
        self._listener.stage("Searching")
        mixtures = self._mixtures()
        self._measure_all(lambda: next(mixtures, None) or self._sampled())
        why = _why_ended(self._ledger, self._searches)
        self._measure_picks()
        self._measure_elsewhere()
        return why

    def _measure_all(self, next_map: Callable[[], Planned | None]) -> None:
        """Measure maps until there is no other, or the budget is spent."""
        while True:
            exhausted = False
            while not exhausted and not self._dispatch.is_full and self._dispatch.allows_search:
                planned = next_map()
                exhausted = planned is None
                if planned is not None:
                    self._submit(planned)
            if not self._dispatch.pending and (exhausted or not self._dispatch.allows_search):
                return
            self._collect()

    def _has_time_to_probe(self) -> bool:
        """Return whether enough time is left for maps that probes would improve."""
        rivals = any(trial.feasible for trial in self._front.trials[1:])
        least = _PROBED_MAPS if rivals else _PROBED_MAPS_WITHOUT_RIVALS
        return self._ledger.left_s >= least * self._ledger.budget.trial_s

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
            self._dispatch.submit(self._full_precision_on(first))
            while self._dispatch.pending:
                self._collect()
        full = self._front.trials[0]
        if full.state is not TrialState.COMPLETE:
            raise TaskError(f"full precision cannot be measured: {full.message}; fix the task and start a new job")
        self._dispatch.reference = Reference.of_figures(full.figures)
        for search in others:
            search.relearn(self._front.trials)
        missing = (
            self._full_precision_on(search) for search in others if not search.tried_full_precision(self._front.trials)
        )
        self._measure_all(lambda: next(missing, None))
        # Nothing can be predicted where full precision fails.
        self._searches = [first, *(other for other in others if other.has_full_precision(self._front.trials))]

    def _full_precision_on(self, search: BackendSearch) -> Planned:
        return self._dispatch.plan(search, search.full_precision, TrialKind.BASELINE, FULL_PRECISION.name)

    def _measure_uniform_maps(self, share: float) -> None:
        """Measure uniform maps until a share of the time limit is spent, but at least one."""
        self._listener.stage("Measuring uniform maps")
        baselines = self._baselines(share)
        self._measure_all(lambda: next(baselines, None))

    def _baselines(self, share: float) -> Iterator[Planned]:
        """Yield the recipes, then the uniform maps, not measured yet, the most promising ones of every backend first.

        A search must say what it gains over a recipe, and many backends have more uniform maps than the time allows.
        """
        wanted = [(choices, search) for search in self._searches for choices in search.baselines]
        for choices, search in sorted(wanted, key=lambda each: (len(each[0]) == 1, promise_of(each[0][0]))):
            measured = len(self._front.trials) + self._dispatch.pending - len(self._searches)
            in_time = self._ledger.share < share or measured < 1
            proposal = search.baseline(choices) if in_time else None
            if proposal is not None:
                yield self._dispatch.proposed(search, proposal)

    def _mixtures(self) -> Iterator[Planned]:
        """Yield mixtures of the baselines on the front that were not measured yet."""
        for search in self._searches:
            for proposal in search.mixtures(self._front.trials):
                yield self._dispatch.proposed(search, proposal)

    def _sampled(self) -> Planned | None:
        """Return the next map of the backend that promises most, or None if none has a map worth measuring."""
        for search in sorted(self._searches, key=lambda each: each.urgency):
            proposal = search.ask()
            if proposal is not None:
                return self._dispatch.proposed(search, proposal)
        return None

    def _measure_picks(self) -> None:
        """Measure the picks at full fidelity until every pick has a final measurement."""
        searches = {search.tag: search for search in self._searches}
        while True:
            picks = needing_final_run(self._front.trials, self._spec.objectives, default_pick(self._spec))
            submitted = self._dispatch.pending_keys
            waiting = [trial for trial in picks if trial.key not in submitted and trial.backend in searches]
            for trial in waiting:
                if self._dispatch.pending < self._pool.slots and self._dispatch.allows_final:
                    self._listener.stage("Measuring the best maps again")
                    search = searches[trial.backend]
                    self._dispatch.submit(self._dispatch.plan(search, trial.choices, TrialKind.FINAL, trial.label))
            if not self._dispatch.pending and not (waiting and self._dispatch.allows_final):
                return
            self._collect()

    def _measure_elsewhere(self) -> None:
        """Measure the recommended map on the other backends that can run it, to show what the backend is worth."""
        best = recommended(self._front.trials, self._spec)
        if best is None:
            return
        known = {trial.key for trial in self._front.trials}
        for search in self._searches:
            if search.can_run(best) and search.key(best.choices) not in known and self._dispatch.allows_final:
                self._dispatch.submit(self._dispatch.plan(search, best.choices, TrialKind.FINAL, None))
        while self._dispatch.pending:
            self._collect()

    def _submit(self, planned: Planned) -> None:
        """Submit a map, unless it is ruled out by figures known without measurement."""
        trial = self._dispatch.ruled_out(planned)
        if trial is None:
            self._dispatch.submit(planned)
        else:
            planned.search.learn(trial, planned.proposal)

    def _collect(self) -> None:
        """Wait for outcomes, then tell the samplers."""
        for trial, proposal in self._dispatch.collect():
            for search in self._searches:
                search.learn(trial, proposal)


def _why_ended(ledger: Ledger, searches: Sequence[BackendSearch]) -> str:
    if ledger.budget.is_spent:
        return "all trials of the budget were measured"
    if not ledger.allows_search(pending=0):
        return "the time limit was reached"
    spent = any(search.study.spent for search in searches)
    return "no other map promises a gain" if spent else "all maps of the search space were measured"
