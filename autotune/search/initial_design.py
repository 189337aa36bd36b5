"""Maps measured before the sampler has anything to learn from.

The uniform maps span the ends of the front. With dozens of layers, random maps are far from the front, so
plain samplers would waste their first generation. Mixtures of two uniform maps on the front are near it.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

from autotune.jobs.front import compute_front
from autotune.jobs.records import TrialKind, TrialRecord
from search_spaces.space import SearchSpace

#: Shares of the groups that take the choice of the first of two maps.
_SHARES = (0.8, 0.5, 0.2)


def mixtures(
    space: SearchSpace, trials: Sequence[TrialRecord], objectives: Sequence[str], *, seed: int
) -> Iterator[dict[str, str]]:
    """Yield assignments that take each group at random from one of two baselines on the front.

    Args:
        space: the search space.
        trials: all trials so far; the first is full precision.
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
