"""Builds samplers by their name in job files."""

import random
import warnings
from collections.abc import Callable
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.jobs.spec import SamplerName

#: Smallest population with enough diversity, and the largest that leaves enough generations in small budgets.
_POPULATION = (12, 50)


def build_plain_sampler(name: SamplerName, *, seed: int, trials: int, slots: int) -> BaseSampler:
    """Return one of Optuna's own samplers.

    Args:
        name: which one.
        seed: seed of its random numbers.
        trials: budget of the job; genetic algorithms size their population for about six generations.
        slots: candidates measured at once; a generation holds at least twice as many.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _SAMPLERS[name](seed, max(2 * slots, *_clamped(trials // 6)))


def _clamped(population: int) -> tuple[int, int]:
    smallest, largest = _POPULATION
    return smallest, min(population, largest)


class _Random(RandomSampler):
    """Optuna's random sampler for categorical parameters only, which is ten times as fast."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._draws = random.Random(seed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        assert isinstance(param_distribution, CategoricalDistribution)
        return self._draws.choice(param_distribution.choices)


_SAMPLERS: dict[SamplerName, Callable[[int, int], BaseSampler]] = {
    SamplerName.NSGA2: lambda seed, population: NSGAIISampler(seed=seed, population_size=population),
    SamplerName.NSGA3: lambda seed, population: NSGAIIISampler(seed=seed, population_size=population),
    SamplerName.TPE: lambda seed, _: TPESampler(seed=seed, constant_liar=True),
    SamplerName.GP: lambda seed, _: GPSampler(seed=seed, deterministic_objective=False),
    SamplerName.RANDOM: lambda seed, _: _Random(seed),
}
