"""Error of the predicted divergence before each map of a replayed search is measured.

    python benchmarks/search/surrogate.py [--seeds 5] [--units 100]

The first ten maps are left out: full precision, the uniform maps, and maps that teach the sizes of their effects. The
same posterior without interactions between layers is shown for comparison.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from compare import by_study
from replay import FOLDER, Recording, full_precision

from autotune.jobs.spec import SamplerName
from autotune.planner.posterior import Posterior
from autotune.planner.prior import expect

#: First maps, which are not judged.
FIRST = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--units", type=int, default=100)
    arguments = parser.parse_args()
    print("median and 90th percentile of the relative error in percent")
    for name in sorted(path.stem for path in FOLDER.glob("*.npz")):
        recording = Recording.load(name)
        found = []
        for seed in range(arguments.seeds):
            maps = by_study(SamplerName.SENSITIVITY)(recording, seed, arguments.units)
            found += list(errors(recording, itertools.islice(maps, arguments.units)))[FIRST:]
        alone, together = 100 * np.abs(np.array(found)).T
        print(
            f"{name}: {np.median(alone):.1f} and {np.quantile(alone, 0.9):.1f} with sums alone, "
            f"{np.median(together):.1f} and {np.quantile(together, 0.9):.1f} with interactions, {len(found)} maps"
        )


def errors(recording: Recording, maps: Iterator[Mapping[str, str]]) -> Iterator[tuple[float, float]]:
    """Yield the relative error of each map's divergence, predicted by the sums alone and with interactions."""
    groups = recording.space.free_groups
    prior = expect(recording.space, recording.description, recording.probes)
    posterior = Posterior(prior, [group.choices for group in groups])
    posterior.full_precision = recording.figures(full_precision(recording))
    for choices in maps:
        assignment = recording.space.assignment(choices)
        row = np.array([[group.choices.index(assignment[group.name]) for group in groups]])
        figures = recording.figures(choices)
        divergence = figures["divergence"].value
        if divergence > 0.0:
            predicted = posterior.predict(row)["divergence"][0]
            correction = posterior._qualities[""]._interactions.correction(posterior._effects.of(row))[0]
            yield (predicted - correction) / divergence - 1.0, predicted / divergence - 1.0
        posterior.observe(row, [figures])


if __name__ == "__main__":
    main()
