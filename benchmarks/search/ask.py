"""Time the sampler: choosing the next map of a model with hundreds of layers, and learning a result.

    python benchmarks/search/ask.py [--groups 300] [--choices 8] [--trials 1000] [--asked 100] [--limits]

The model is made up, and the figures of its maps are sums with noise. Random maps come first, up to
``--trials``; the times are those of the maps requested after them.
"""

import argparse
import time

import numpy as np

from autotune.jobs.front import violations
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import SamplerName
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import Constraint
from autotune.planner.prior import expect
from autotune.search.study import Study
from search_spaces.choice import CHOICES
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import map_key
from search_spaces.space import SearchSpace, build_space
from workers.measurement import Environment
from workers.setup import Calibration, Estimator, LayerProbe, ModelDescription, Probes
from workers.timing.estimates import Figure

_BYTES = 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("groups", 300), ("choices", 8), ("trials", 1000), ("asked", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limits", action="store_true", help="limit the accuracy drop and the latency")
    arguments = parser.parse_args()
    model = MadeUp(arguments.groups, arguments.choices)
    limits = tuple(
        Constraint(metric=metric, limit=limit, at_most=True)
        for metric, limit in (("accuracy_drop", 0.02), ("latency_ratio", 0.7))
        if arguments.limits
    )
    rng = np.random.default_rng(0)
    history = [
        model.measured(number, choices, limits, rng) for number, choices in enumerate(model.maps(arguments.trials, rng))
    ]
    study = Study(
        model.space, ("latency_ratio", "divergence"), limits, SamplerName.SENSITIVITY, seed=0,
        trials=arguments.trials + arguments.asked, slots=1, prior=model.prior, history=history,
    )  # fmt: skip
    asking, telling = [], []
    study.ask()  # takes in all that came before
    for number in range(arguments.trials, arguments.trials + arguments.asked):
        start = time.perf_counter()
        proposal = study.ask()
        asking.append(time.perf_counter() - start)
        if proposal is None:
            print(f"the search was spent after {number} trials")
            break
        trial = model.measured(number, proposal.choices, limits, rng)
        start = time.perf_counter()
        study.tell(proposal, trial)
        telling.append(time.perf_counter() - start)
    for what, seconds in (("ask, including learning the previous result", asking), ("tell", telling)):
        median, late = (1e3 * np.quantile(seconds, share) for share in (0.5, 0.95))
        print(f"{what}: median {median:.1f} ms, p95 {late:.1f} ms, {len(seconds)} times")


class MadeUp:
    """A model whose layers all take all choices, with effects drawn at random."""

    def __init__(self, groups: int, choices: int) -> None:
        layers = [_layer(order) for order in range(groups)]
        names = list(CHOICES)[:choices]
        rng = np.random.default_rng(1)
        self.space: SearchSpace = build_space(layers, choices=names, supports=lambda *_: None)
        self._rows = {layer.name: row for row, layer in enumerate(layers)}
        self._columns = {name: column for column, name in enumerate(names)}
        bits = np.array([CHOICES[name].precision.bits for name in names])
        self._loss = (
            rng.lognormal(-8.0, 2.0, (groups, 1)) * rng.lognormal(0.0, 0.5, (groups, choices)) * (bits < 32) / bits
        )
        self._time = -rng.uniform(0.2, 0.8, (groups, choices)) / groups * (bits < 32)
        sizes = {name: int(_BYTES * width / 32) for name, width in zip(names, bits, strict=True)}
        description = ModelDescription(
            fingerprint="5e" * 32,
            layers=tuple(layers),
            refusals={layer.name: {} for layer in layers},
            layer_bytes={layer.name: sizes for layer in layers},
            other_bytes=1 << 20,
            calibration=Calibration(ranges={}, samples=1, seconds=0.0),
            environment=Environment(hardware="none", backend="none", threads=1, load=0.0, versions={}),
        )
        probes = Probes(
            layers=tuple(
                LayerProbe(
                    layer=layer.name,
                    choice=name,
                    divergence=float(self._loss[row, column] * rng.lognormal(0.0, 0.3)),
                    latency_ms=1.0 + float(groups * self._time[row, column] * rng.lognormal(0.0, 0.1)),
                )
                for row, layer in enumerate(layers)
                for column, name in enumerate(names)
            ),
            pass_ms=float(groups), estimator=Estimator.GRADIENT, samples=64, seconds=1.0,
        )  # fmt: skip
        self.prior = expect(self.space, description, probes)

    def maps(self, count: int, rng: np.random.Generator) -> list[dict[str, str]]:
        """Return full precision and random maps, some of them nearly uniform."""
        names = list(self._columns)
        found = [dict.fromkeys(self._rows, "fp32")]
        while len(found) < count:
            shares = rng.dirichlet(np.full(len(names), 0.5))
            found.append(dict(zip(self._rows, rng.choice(names, len(self._rows), p=shares).tolist(), strict=True)))
        return found

    def measured(
        self, number: int, choices: dict[str, str], limits: tuple[Constraint, ...], rng: np.random.Generator
    ) -> TrialRecord:
        """Return the trial of a map."""
        places = tuple(np.array([(self._rows[layer], self._columns[name]) for layer, name in choices.items()]).T)
        loss = float(self._loss[places].sum() * rng.lognormal(0.0, 0.05))
        ratio = float((1.0 + self._time[places].sum()) * rng.lognormal(0.0, 0.005))
        figures = {
            "divergence": Figure(value=loss),
            "latency_ratio": Figure(value=ratio, low=0.99 * ratio, high=1.01 * ratio),
            "accuracy": Figure(value=0.9 - 0.1 * loss),
            "accuracy_drop": Figure(value=0.1 * loss / 0.9),
        }
        return TrialRecord(
            job_id="", number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices=choices,
            key=map_key(choices), figures=figures, violations=violations(figures, limits), finished_at=now(),
        )  # fmt: skip


def _layer(order: int) -> Layer:
    return Layer(
        name=f"layers.{order}", kind=LayerKind.LINEAR, weight_shape=(1024, 1024), has_bias=False, weight_bytes=_BYTES,
        input_shape=(1, 64, 1024), flops=1 << 27, calls=1, order=order, group=f"group {order}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
