"""The sensitivity sampler: Optuna's interface to the planner."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.planner.knapsack import Maps
from autotune.planner.next_map import Planner
from workers.timing.estimates import Figure

#: User attributes that the sampler reads: the figures of a trial, and of full precision in the study.
FIGURES, FULL_PRECISION_FIGURES = "figures", "full_precision_figures"

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class SensitivitySampler(BaseSampler):
    """Proposes the whole maps with the highest expected hypervolume gain, from probes and measured maps.

    The sampler plans its groups once the study has the figures of full precision. It draws all other
    parameters, and maps that it cannot plan, at random.
    """

    def __init__(self, planner: Planner | None = None, groups: Sequence[str] = (), *, seed: int | None = None) -> None:
        """Use ``planner`` for ``groups``, in the planner's order; without a planner, draw everything at random."""
        self._planner = planner
        self._groups = tuple(groups)
        self._random = RandomSampler(seed=seed)
        self._observed: set[int] = set()

    @property
    def spent(self) -> bool:
        """Whether the planner expects almost no more gain."""
        return self._planner is not None and self._planner.spent

    def reseed_rng(self) -> None:
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of the groups from an earlier trial; empty before the first trial."""
        if self._planner is None or FULL_PRECISION_FIGURES not in study.user_attrs:
            return {}
        for other in reversed(study._get_trials(deepcopy=False, use_cache=True)):
            if all(name in other.distributions for name in self._groups):
                return {name: other.distributions[name] for name in self._groups}
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a whole map, or independent random draws if the planner proposes none."""
        if self._planner is not None and set(search_space) == set(self._groups) and search_space:
            proposed = self._plan(self._planner, study, trial, search_space)
            if proposed is not None:
                return proposed
        return {
            name: self._random.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random draw."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _plan(
        self, planner: Planner, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any] | None:
        trials = study._get_trials(deepcopy=False, use_cache=False)
        new = [other for other in trials if other.number not in self._observed and self._is_whole(other)]
        planner.set_full_precision(_figures(study.user_attrs[FULL_PRECISION_FIGURES]))
        finished = [other for other in new if other.state in _FINISHED]
        if finished:
            self._observed.update(other.number for other in finished)
            planner.observe(
                self._maps(finished),
                [_figures(other.user_attrs.get(FIGURES, {})) for other in finished],
                [_is_feasible(other) for other in finished],
            )
        pending = [other for other in new if other.state is TrialState.RUNNING and other.number != trial.number]
        proposed = planner.propose(self._maps(pending))
        if proposed is None:
            return None
        chosen = zip(self._groups, proposed, strict=True)
        return {name: _categorical(search_space[name]).choices[choice] for name, choice in chosen}

    def _is_whole(self, trial: FrozenTrial) -> bool:
        return all(name in trial.params for name in self._groups)

    def _maps(self, trials: Sequence[FrozenTrial]) -> Maps:
        """Return the trials' parameters as choice numbers, shape ``(trials, groups)``."""
        numbers = [
            [int(trial.distributions[name].to_internal_repr(trial.params[name])) for name in self._groups]
            for trial in trials
        ]
        return np.array(numbers, dtype=np.intp).reshape(len(trials), len(self._groups))


def figures_attribute(figures: Any) -> dict[str, list[float | None]]:
    """Return figures in the form of the attributes that the sampler reads."""
    return {name: [figure.value, figure.low, figure.high] for name, figure in figures.items()}


def _figures(attribute: dict[str, list[Any]]) -> dict[str, Figure]:
    return {name: Figure(value=value, low=low, high=high) for name, (value, low, high) in attribute.items()}


def _is_feasible(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.COMPLETE and all(violation <= 0 for violation in trial.constraints.values())


def _categorical(distribution: BaseDistribution) -> CategoricalDistribution:
    assert isinstance(distribution, CategoricalDistribution)
    return distribution
