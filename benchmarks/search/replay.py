"""A recorded model: returns the figures of any map without measuring it."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from autotune.metrics.from_measurement import MIB
from search_spaces.choice import FULL_PRECISION, choice_named
from search_spaces.layer import Layer, LayerKind
from search_spaces.space import SearchSpace, build_space
from workers.measurement import Environment
from workers.setup import Calibration, Estimator, LayerProbe, ModelDescription, Probes
from workers.timing.estimates import Figure

FOLDER = Path(__file__).parent / "recordings"
#: Relative standard deviation of a measured latency ratio.
LATENCY_NOISE = 0.007
#: A model with a uniform map below this latency ratio is faster in some precision, not just by chance.
_FASTER = 0.95
#: Exponent of the cost of precision changes in their number.
MIXING_EXPONENT = 0.4


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recording of ``record.py``."""

    space: SearchSpace
    description: ModelDescription
    probes: Probes
    #: Cost of the probes in full evaluations.
    probe_units: float
    #: (layer, choice) -> row of ``products`` and ``latency``.
    rows: Mapping[tuple[str, str], int]
    products: np.ndarray
    latency: np.ndarray
    #: Cost in latency ratio of a change of precision at every layer.
    mixing: float
    hardware: str

    @cached_property
    def objectives(self) -> tuple[str, str]:
        """Latency and divergence; memory instead of latency if no uniform map is faster than full precision."""
        space = self.space
        uniform = [space.layer_choices(space.uniform(choice)) for choice in space.uniform_choices()]
        faster = min(self.figures(choices)["latency_ratio"].value for choices in uniform) < _FASTER
        return ("latency_ratio" if faster else "weight_memory_mib", "divergence")

    @classmethod
    def load(cls, name: str) -> "Recording":
        """Return the recording of a task."""
        with np.load(FOLDER / f"{name}.npz") as data:
            keys = zip(map(str, data["layers"]), map(str, data["choices"]), strict=True)
            rows = {key: row for row, key in enumerate(keys)}
            legal: dict[str, dict[str, int]] = {}
            for (layer, choice), size in zip(rows, data["memory_bytes"], strict=True):
                legal.setdefault(layer, {})[choice] = int(size)
            groups = json.loads(str(data["groups"]))
            layers = tuple(_layer(layer, order, groups[layer]) for order, layer in enumerate(legal))
            probed = json.loads(str(data["probes"]))
            names = ("layer", "choice", "divergence", "latency_ms")
            probes = [LayerProbe(**dict(zip(names, values, strict=True))) for values in probed]
            return cls(
                space=build_space(
                    layers,
                    choices=list(dict.fromkeys(choice for _, choice in rows)),
                    supports=lambda layer, choice: None if choice.name in legal[layer.name] else "no kernel",
                ),
                description=_description(layers, legal, int(data["other_bytes"])),
                probes=Probes(
                    layers=tuple(probes),
                    pass_ms=float(data["probes_pass_ms"]),
                    estimator=Estimator.GRADIENT,
                    samples=0,
                    seconds=0.0,
                ),
                probe_units=float(data["probes_units"]),
                rows=rows,
                products=data["products"],
                latency=data["latency"],
                mixing=float(data["mixing"]),
                hardware=str(data["hardware"]),
            )

    def figures(self, choices: Mapping[str, str], generator: np.random.Generator | None = None) -> dict[str, Figure]:
        """Return the figures of a map, with noise on its latency if there is a generator."""
        rows = [self.rows[key] for key in choices.items()]
        divergence = float(np.mean(self.products[rows].sum(axis=0, dtype=np.float64) ** 2) / 2)
        ratio = 1.0 + float(self.latency[rows].sum()) + self.mixing * mixing_of(list(choices.values()))
        noise = 0.0 if generator is None else LATENCY_NOISE
        measured = ratio * (1.0 if generator is None else generator.normal(1.0, LATENCY_NOISE))
        drop = min(1.0, divergence)
        return {
            "divergence": Figure(value=divergence),
            "accuracy": Figure(value=1.0 - drop),
            "accuracy_drop": Figure(value=drop),
            "latency_ratio": Figure(
                value=measured, low=measured * (1 - 1.96 * noise), high=measured * (1 + 1.96 * noise)
            ),
            "weight_memory_mib": Figure(value=self.description.weight_bytes(choices) / MIB),
        }


def mixing_of(names: Sequence[str]) -> float:
    """Return how much consecutive layers mix precisions: 0 without a change, 1 if every layer differs."""
    precisions = [choice_named(name).precision for name in names]
    changes = sum(one is not other for one, other in itertools.pairwise(precisions))
    return (changes / max(1, len(names) - 1)) ** MIXING_EXPONENT


def _layer(name: str, order: int, group: str) -> Layer:
    return Layer(
        name=name, kind=LayerKind.LINEAR, weight_shape=(1, 1), has_bias=True, weight_bytes=4, input_shape=(1, 1),
        flops=1, calls=1, order=order, group=group,
    )  # fmt: skip


def _description(layers: tuple[Layer, ...], legal: dict[str, dict[str, int]], other_bytes: int) -> ModelDescription:
    return ModelDescription(
        fingerprint="", layers=layers, refusals={}, layer_bytes=legal, other_bytes=other_bytes,
        calibration=Calibration(ranges={}, samples=0, seconds=0.0),
        environment=Environment(hardware="", backend="", threads=1, load=0.0, versions={}),
    )  # fmt: skip


def full_precision(recording: Recording) -> dict[str, str]:
    """Return the map of full precision."""
    return {layer.name: FULL_PRECISION.name for layer in recording.space.layers}
