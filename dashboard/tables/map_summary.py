"""A map in a sentence: what its layers take, and what the layers that stay in floating point would cost."""

from collections import Counter
from collections.abc import Iterable, Mapping

from dashboard.formatting import one_line
from dashboard.tables.layers import role_of
from search_spaces.choice import choice_named
from workers.setup import ModelDescription, Probes


def map_summary(description: ModelDescription, choices: Mapping[str, str], probes: Probes | None) -> str:
    """Return which layers stay in floating point, what their quantization would cost, and what the others take.

    Args:
        description: the model.
        choices: layer -> choice.
        probes: probes of the layers; without them, costs are left out.
    """
    kept = {layer: name for layer, name in choices.items() if not choice_named(name).precision.is_quantized}
    quantized = [name for layer, name in choices.items() if layer not in kept]
    if not kept:
        return f"All {len(choices)} layers are quantized: {_counted(quantized)}."
    if not quantized:
        return f"All {len(choices)} layers stay in floating point: {_counted(kept.values())}."
    roles = {layer.name: one_line(role_of(layer)) for layer in description.layers}
    role, count = Counter(roles[layer] for layer in kept).most_common(1)[0]
    places = " and ".join(dict.fromkeys(kept.values()))
    mostly = "all" if count == len(kept) else "mostly" if 2 * count > len(kept) else "most often"
    stay, which = ("stays", role) if len(kept) == 1 else ("stay", f"{mostly} {role}")
    usual = Counter(quantized).most_common(1)[0][0]
    share = _share_of_error(choices, kept, {layer for layer in kept if roles[layer] == role}, usual, probes)
    cost = f", which would cause {100 * share:.0f} % of the error in {usual}" if share else ""
    return (
        f"{len(kept)} of {len(choices)} layers {stay} in {places}, {which}{cost}. "
        f"The others take {_counted(quantized)}."
    )


def _share_of_error(
    choices: Mapping[str, str], kept: Iterable[str], some: Iterable[str], usual: str, probes: Probes | None
) -> float:
    """Return the share of ``some`` layers in the expected divergence if all ``kept`` layers took the usual choice."""
    divergence = {(probe.layer, probe.choice): probe.divergence for probe in probes.layers} if probes else {}
    moved = {**choices, **{layer: usual for layer in kept if (layer, usual) in divergence}}
    expected = {layer: divergence.get((layer, name), 0.0) for layer, name in moved.items()}
    total = sum(expected.values())
    return sum(expected[layer] for layer in some) / total if total else 0.0


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in Counter(names).most_common())
