"""Samplers by their name in job files."""

import warnings
from collections.abc import Callable

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from autotune.job_spec import SamplerName

#: Smallest population that keeps some diversity, and the largest worth its generations in small budgets.
_POPULATION = (12, 50)


def build_plain_sampler(name: SamplerName, *, seed: int, trials: int, slots: int) -> BaseSampler:
    """Return one of Optuna's own samplers.

    Args:
        name: which one.
        seed: of its random numbers.
        trials: budget of the job; NSGA-II sizes its population for about six generations.
        slots: candidates measured at once; a generation holds at least twice as many.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _SAMPLERS[name](seed, max(2 * slots, *_clamped(trials // 6)))


def _clamped(population: int) -> tuple[int, int]:
    smallest, largest = _POPULATION
    return smallest, min(population, largest)


_SAMPLERS: dict[SamplerName, Callable[[int, int], BaseSampler]] = {
    SamplerName.NSGA2: lambda seed, population: NSGAIISampler(seed=seed, population_size=population),
    SamplerName.TPE: lambda seed, _: TPESampler(seed=seed, constant_liar=True),
    SamplerName.GP: lambda seed, _: GPSampler(seed=seed, deterministic_objective=False),
    SamplerName.RANDOM: lambda seed, _: RandomSampler(seed=seed),
}
