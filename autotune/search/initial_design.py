"""Maps measured before the sampler has anything to learn from.

The uniform maps span the front's ends. In a space of dozens of layers a random map lies far inside
the front, so plain samplers spend their first generation on nothing; mixtures of two uniform maps
that are on the front already lie near it.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

from autotune.jobs.front import compute_front
from autotune.jobs.records import TrialKind, TrialRecord
from search_spaces.space import SearchSpace

#: Shares of the groups that take the first of two maps.
_SHARES = (0.8, 0.5, 0.2)


def mixtures(
    space: SearchSpace, trials: Sequence[TrialRecord], objectives: Sequence[str], *, seed: int
) -> Iterator[dict[str, str]]:
    """Yield assignments that take each group from one of two baselines on the front, at random.

    Args:
        space: the search space.
        trials: what was measured so far, full precision first.
        objectives: names of the job's objectives.
        seed: the same seed yields the same mixtures.
    """
    generator = random.Random(seed)
    members = compute_front([trial for trial in trials if trial.kind is TrialKind.BASELINE], objectives).members
    ends = [
        space.assignment(trial.choices) for trial in trials if trial.number in members and space.holds(trial.choices)
    ]
    for share, (one, other) in itertools.product(_SHARES, itertools.combinations(ends, 2)):
        yield {group: (one if generator.random() < share else other)[group] for group in one}
