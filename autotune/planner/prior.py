"""The expected cost of every choice of every group, before any map is measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.metrics.from_measurement import MIB
from autotune.planner.knapsack import Costs
from search_spaces.choice import FULL_PRECISION, choice_named
from search_spaces.space import Group, LayerRule, SearchSpace
from workers.setup import ModelDescription, Probes


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Additive costs of the free groups' choices and of all fixed layers.

    Arrays have shape ``(groups, choices)``; the cost of a choice that a group does not have is infinite.
    """

    #: Divergence that each choice causes alone.
    divergence: Costs
    #: Change of latency relative to full precision, negative if faster.
    latency: Costs
    #: Weight memory in MiB.
    memory_mib: Costs
    fixed_divergence: float
    fixed_latency: float
    fixed_memory_mib: float
    #: Whether divergence and latency come from probes; otherwise they are guesses from sizes.
    probed: bool


def expect(
    space: SearchSpace, description: ModelDescription, probes: Probes | None, rules: Sequence[LayerRule] = ()
) -> Prior:
    """Return the prior of a space from its probes, or from the sizes of its layers without probes.

    The sensitivities in the user's ``rules`` multiply the divergences; measured maps may still correct them.
    """
    divergence, latency = _probed(probes) if probes else _guessed(space)
    divergence = {
        (layer, choice): value * math.prod(rule.sensitivity or 1.0 for rule in rules if rule.matches(layer))
        for (layer, choice), value in divergence.items()
    }
    memory = {
        (layer, choice): size / MIB
        for layer, sizes in description.layer_bytes.items()
        for choice, size in sizes.items()
    }
    fixed = {layer: group.choices[0] for group in space.groups if len(group.choices) == 1 for layer in group.layers}
    return Prior(
        divergence=_by_group(space, divergence),
        latency=_by_group(space, latency),
        memory_mib=_by_group(space, memory),
        fixed_divergence=sum(divergence.get(key, 0.0) for key in fixed.items()),
        fixed_latency=sum(latency.get(key, 0.0) for key in fixed.items()),
        fixed_memory_mib=description.other_bytes / MIB + sum(memory[key] for key in fixed.items()),
        probed=probes is not None,
    )


_Effects = Mapping[tuple[str, str], float]


def _probed(probes: Probes) -> tuple[_Effects, _Effects]:
    full = {probe.layer: probe.latency_ms for probe in probes.layers if probe.choice == FULL_PRECISION.name}
    divergence = {(probe.layer, probe.choice): probe.divergence for probe in probes.layers}
    latency = {
        (probe.layer, probe.choice): (probe.latency_ms - full[probe.layer]) / probes.pass_ms for probe in probes.layers
    }
    return divergence, latency


def _guessed(space: SearchSpace) -> tuple[_Effects, _Effects]:
    """Guess that all layers add the same error, and that time grows with operations and shrinks with the bits.

    The errors have no scale yet: the uniform map of each choice sets it.
    """
    operations = sum(layer.flops for layer in space.layers) or 1
    divergence, latency = {}, {}
    for group in space.groups:
        for choice in group.choices:
            bits = choice_named(choice).precision.bits
            for layer in space.layers:
                if layer.name in group.layers:
                    share = layer.flops / operations
                    quantized = choice != FULL_PRECISION.name
                    divergence[layer.name, choice] = 1.0 / len(space.layers) if quantized else 0.0
                    latency[layer.name, choice] = 0.5 * share * (bits / FULL_PRECISION.precision.bits - 1.0)
    return divergence, latency


def _by_group(space: SearchSpace, effects: _Effects) -> Costs:
    """Return effects summed over the layers of each free group."""
    groups: Sequence[Group] = space.free_groups
    costs = np.full((len(groups), max((len(group.choices) for group in groups), default=0)), np.inf)
    for row, group in enumerate(groups):
        for column, choice in enumerate(group.choices):
            costs[row, column] = sum(effects.get((layer, choice), 0.0) for layer in group.layers)
    return costs
