"""The Optuna study of one job. Of this package, only this module and ``samplers`` import optuna.

The study lives in memory and is rebuilt from recorded trials when a job is resumed: the store is the
only system of record (see ``docs/decisions/0002-study-in-memory.md``).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState as OptunaState

from autotune.jobs.records import TrialRecord, TrialState
from autotune.jobs.spec import SamplerName
from autotune.metrics.catalog import Constraint
from autotune.metrics.objectives import Objectives
from autotune.planner.next_map import Planner
from autotune.planner.prior import Prior
from autotune.search.samplers import build_plain_sampler
from autotune.search.samplers.sensitivity import FIGURES, FULL_PRECISION_FIGURES, SensitivitySampler, figures_attribute
from search_spaces.choice import FULL_PRECISION
from search_spaces.quantization_map import map_key
from search_spaces.space import SearchSpace

V = TypeVar("V")

#: Times the sampler may propose a known map before an unseen neighbour is used instead. A genetic sampler that has
#: converged mostly repeats itself, and each proposal scans all its trials.
_REPEATS = 3
#: Neighbours drawn, at growing distance, before the space is enumerated.
_NEIGHBOURS = 200
#: Keys under which genetic samplers keep a trial's generation; they write none for trials they did not sample.
_GENERATIONS: dict[type[BaseSampler], str] = {
    NSGAIISampler: "NSGAIISampler:generation",
    NSGAIIISampler: "NSGAIIISampler:generation",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A map to measure next."""

    #: Choice of each layer.
    choices: Mapping[str, str]
    #: ``map_key`` of the choices.
    key: str
    #: Optuna's trial.
    trial: optuna.Trial


class Study:
    """Asks the sampler for maps that were not measured yet, and tells it their results."""

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[str],
        constraints: Sequence[Constraint],
        sampler: SamplerName,
        *,
        seed: int,
        trials: int,
        slots: int,
        prior: Prior,
        history: Sequence[TrialRecord] = (),
        backend: str = "",
    ) -> None:
        """Start a study, or continue one.

        Args:
            space: the maps to choose from.
            objectives: names of the metrics to trade off.
            constraints: the limits of the job.
            sampler: chooses the maps.
            seed: of its random numbers.
            trials: budget of the job.
            slots: maps measured at once.
            prior: what the sensitivity sampler expects before any map is measured.
            history: trials recorded so far.
            backend: see ``map_key``.
        """
        self._backend = backend
        self._planner: Planner | None = None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._objectives = Objectives.named(objectives)
        # Samplers identify constraints by position, so every trial gets all of them in the same order.
        self._constraints = sorted(constraint.metric for constraint in constraints)
        self._distributions: _Shared[BaseDistribution] = _Shared(
            (group.name, _Choices(group.choices)) for group in space.free_groups
        )
        # A resumed job must not repeat the random numbers of its start.
        self._seed = (seed + 1_000_003 * len(history)) % 2**32
        self._random = random.Random(self._seed)
        self._known: dict[str, TrialRecord | None] = {}
        self._storage = _Storage()
        self._study = optuna.create_study(
            storage=self._storage,
            sampler=self._sampler(sampler, constraints, prior, trials, slots),
            directions=["minimize"] * len(objectives),
        )
        for trial in history:
            self.add(trial)

    def add(self, trial: TrialRecord) -> None:
        """Add a trial that the study did not propose: a recorded one, or full precision."""
        self._known[trial.key] = trial
        if trial.choices and set(trial.choices.values()) == {FULL_PRECISION.name}:
            self._study.set_user_attr(FULL_PRECISION_FIGURES, figures_attribute(trial.figures))
        if not self._space.holds(trial.choices):
            return
        state, values = self._verdict(trial)
        frozen = optuna.create_trial(
            state=state,
            values=values,
            params=self._space.assignment(trial.choices),
            distributions=self._distributions,
            constraints=self._violations(trial),
            user_attrs={FIGURES: figures_attribute(trial.figures)},
            system_attrs=dict.fromkeys(_GENERATIONS.values(), 0) | dict(trial.sampler_state),
        )
        self._study.add_trial(frozen)

    def add_rival(self, trial: TrialRecord) -> None:
        """Add a trial of another backend."""
        if self._planner is not None and trial.feasible:
            self._planner.add_rival(trial.figures)

    def set_scale(self, reference: TrialRecord) -> None:
        """Set the trial that everything is compared with, if it ran on another backend."""
        if self._planner is not None:
            self._planner.set_scale(reference.figures)

    @property
    def promise(self) -> float:
        """Gain that the sampler expected of its last map; infinite if it does not know."""
        return math.inf if self._planner is None else self._planner.promise

    def propose(self, assignment: Mapping[str, str]) -> Proposal | None:
        """Return a proposal of the given map, or None if it was proposed before."""
        return None if self._key(assignment) in self._known else self._fixed(assignment)

    def ask(self) -> Proposal | None:
        """Return a map that was not proposed before, or None if no map is left that is worth measuring."""
        if self.spent:
            return None
        if len(self._known) >= self._space.size and not self._unseen_exists():
            return None
        assignment: dict[str, str] = {}
        for _ in range(_REPEATS):
            trial = self._study.ask()
            assignment = self._draw(trial)
            choices = self._space.layer_choices(assignment)
            key = map_key(choices, self._backend)
            if key not in self._known:
                return self._take(trial, choices, key)
            self._tell(trial, self._known[key])
        unseen = self._neighbour(assignment)
        return None if unseen is None else self._fixed(unseen)

    def tell(self, proposal: Proposal, record: TrialRecord) -> None:
        """Tell the sampler the result of a proposal."""
        self._known[proposal.key] = record
        self._tell(proposal.trial, record)

    def sampler_state(self, proposal: Proposal) -> dict[str, int]:
        """Return the state to record with the trial, from which the sampler continues after a restart."""
        attributes = self._storage.get_trial_system_attrs(proposal.trial._trial_id)
        return {key: attributes[key] for key in _GENERATIONS.values() if key in attributes}

    @property
    def spent(self) -> bool:
        """Whether the sampler expects almost no gain from any further map."""
        return isinstance(self._study.sampler, SensitivitySampler) and self._study.sampler.spent

    def _sampler(
        self, name: SamplerName, constraints: Sequence[Constraint], prior: Prior, trials: int, slots: int
    ) -> BaseSampler:
        if name is not SamplerName.SENSITIVITY:
            return build_plain_sampler(name, seed=self._seed, trials=trials, slots=slots)
        groups = self._space.free_groups
        choices = [group.choices for group in groups]
        if groups:  # otherwise the space has a single map
            self._planner = Planner(prior, choices, self._objectives, constraints, seed=self._seed)
        return SensitivitySampler(self._planner, [group.name for group in groups], seed=self._seed)

    def _key(self, assignment: Mapping[str, str]) -> str:
        return map_key(self._space.layer_choices(assignment), self._backend)

    def _fixed(self, assignment: Mapping[str, str]) -> Proposal:
        """Return a proposal of a map that the sampler did not choose."""
        trial = self._study.ask()
        self._storage.set_trial_params(trial._trial_id, assignment, self._distributions)
        key = _GENERATIONS.get(type(self._study.sampler))
        if key:
            # These samplers ignore trials they did not sample, unless the trials belong to a generation.
            self._storage.set_trial_system_attr(trial._trial_id, key, self._generation(key))
        choices = self._space.layer_choices(assignment)
        return self._take(trial, choices, map_key(choices, self._backend))

    def _draw(self, trial: optuna.Trial) -> dict[str, str]:
        """Return the map that the sampler proposes, and store it in the trial."""
        together = trial.relative_params
        frozen = self._storage.get_trial(trial._trial_id)
        sampler = self._study.sampler
        assignment: dict[str, str] = {
            name: together[name]
            if name in together
            else sampler.sample_independent(self._study, frozen, name, distribution)
            for name, distribution in self._distributions.items()
        }
        self._storage.set_trial_params(trial._trial_id, assignment, self._distributions)
        return assignment

    def _generation(self, key: str) -> int:
        trials = self._study._get_trials(deepcopy=False)
        return max((trial.system_attrs.get(key, 0) for trial in trials), default=0)

    def _take(self, trial: optuna.Trial, choices: Mapping[str, str], key: str) -> Proposal:
        self._known[key] = None
        return Proposal(choices=choices, key=key, trial=trial)

    def _tell(self, trial: optuna.Trial, record: TrialRecord | None) -> None:
        """Tell Optuna a result; a repeat of a map that is still being measured has none, so it counts as failed."""
        if record is None:
            self._study.tell(trial, state=OptunaState.FAIL)
            return
        state, values = self._verdict(record)
        trial.set_user_attr(FIGURES, figures_attribute(record.figures))
        for name, violation in self._violations(record).items():
            trial.set_constraint(name, violation)
        self._study.tell(trial, values=values, state=state)

    def _verdict(self, record: TrialRecord) -> tuple[OptunaState, list[float] | None]:
        if record.state is TrialState.COMPLETE:
            return OptunaState.COMPLETE, list(self._objectives.values(record.figures))
        return (OptunaState.PRUNED if record.state is TrialState.REJECTED else OptunaState.FAIL), None

    def _violations(self, record: TrialRecord) -> dict[str, float]:
        """Return the violations of all constraints in a fixed order; 0 for unmeasured metrics."""
        return {name: record.violations.get(name, 0.0) for name in self._constraints}

    def _unseen_exists(self) -> bool:
        # The study knows full precision even if it is not a map of the space.
        inside = sum(1 for record in self._known.values() if record is None or self._space.holds(record.choices))
        return inside < self._space.size

    def _neighbour(self, assignment: Mapping[str, str]) -> dict[str, str] | None:
        """Return an unseen map near ``assignment``, at a distance that grows with the number of attempts."""
        groups = self._space.free_groups
        for attempt in range(_NEIGHBOURS):
            changed = self._random.sample(groups, k=min(len(groups), 1 + attempt // 20))
            near = dict(assignment) | {group.name: self._random.choice(group.choices) for group in changed}
            if self._key(near) not in self._known:
                return near
        return self._first_unseen()

    def _first_unseen(self) -> dict[str, str] | None:
        """Return the first unseen map in enumeration order: with n known maps, one of the first n + 1."""
        groups = self._space.free_groups
        for index in range(min(self._space.size, len(self._known) + 1)):
            assignment = {}
            for group in groups:
                index, choice = divmod(index, len(group.choices))
                assignment[group.name] = group.choices[choice]
            if self._key(assignment) not in self._known:
                return assignment
        return None


class _Choices(CategoricalDistribution):
    """The choices of a group, shared by all trials because Optuna copies and compares them at every step."""

    def __deepcopy__(self, memo: object) -> "_Choices":
        return self

    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)

    __hash__ = CategoricalDistribution.__hash__


class _Shared(dict[str, V]):
    """A trial's distributions or parameters, shared because nobody writes to Optuna's copies of them."""

    def __deepcopy__(self, memo: object) -> "_Shared[V]":
        return self


class _Storage(InMemoryStorage):
    """Optuna's in-memory storage that sets all parameters of a trial at once, instead of copying it per parameter."""

    def set_trial_params(
        self, trial_id: int, params: Mapping[str, str], distributions: _Shared[BaseDistribution]
    ) -> None:
        """Set the parameters of a running trial."""
        trial = self._get_trial(trial_id)
        trial.params = _Shared(params)
        trial.distributions = distributions
