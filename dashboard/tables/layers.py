"""Converts maps and probes to data frames: one row per layer. Pure functions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from autotune.jobs.records import TrialRecord, TrialState
from autotune.planner.accuracy_curve import AccuracyCurve
from dashboard.formatting import ABSENT, bytes_text
from search_spaces.choice import FULL_PRECISION, ActivationMode, LayerChoice, choice_named
from search_spaces.layer import Layer
from workers.setup import ModelDescription, Probes
from workers.timing.estimates import Figure

#: Letter of an activation mode, readable without colour.
LETTERS = {ActivationMode.STATIC: "S", ActivationMode.DYNAMIC: "D", ActivationMode.NONE: "W"}


#: Choices that a summary is about, the first that was probed.
_USUAL = ("int8_static", "int8_dynamic", "int8_weight_only")
#: Share of the divergence that the layers named in a summary cause.
_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """The measured difference between two maps, and the part that their layers explain."""

    #: Measured figure of the second map minus that of the first; None if not measured.
    measured: float | None
    #: Sum of the expected changes of the layers that differ.
    predicted: float
    #: Half the width of the 95 % interval of ``measured``; 0 if it was not sampled.
    noise: float = 0.0

    @property
    def is_noise(self) -> bool:
        """Whether the measured difference is within the measurement noise."""
        return self.measured is not None and abs(self.measured) <= self.noise

    @property
    def rest(self) -> float:
        """The part of the measured difference that the layers do not explain; 0 if it was not measured."""
        return 0.0 if self.measured is None else self.measured - self.predicted

    @property
    def rest_is_noise(self) -> bool:
        """Whether that part is within the measurement noise."""
        return abs(self.rest) <= self.noise


def layer_frame(
    description: ModelDescription, choices: Mapping[str, str], probes: Probes | None = None
) -> pd.DataFrame:
    """Return one row per layer in execution order: its kind, choice, costs and refused choices.

    ``latency_ms`` and ``divergence`` are the probed values of the layer alone; ``time_share`` and
    ``divergence_share`` are their shares of the whole map. All are NaN without probes.
    """
    total = sum(layer.flops for layer in description.layers)
    frame = pd.DataFrame([_layer_row(layer, description, choices, total) for layer in description.layers])
    latency, divergence = _expected(probes, choices)
    frame["latency_ms"] = frame["layer"].map(latency).astype(float)
    frame["divergence"] = frame["layer"].map(divergence).astype(float)
    whole = _pass_ms(probes, choices) if probes else np.nan
    frame["time_share"] = frame["latency_ms"] / whole
    lost = frame["divergence"].sum()
    frame["divergence_share"] = frame["divergence"] / lost if lost > 0 else frame["divergence"]
    return frame


def diff_frame(
    description: ModelDescription, first: Mapping[str, str], second: Mapping[str, str], probes: Probes | None
) -> pd.DataFrame:
    """Return one row per layer whose choice differs between the maps, with the expected changes.

    ``latency_ms``, ``divergence`` and ``bytes`` are the second map's minus the first's.
    """
    one, other = (layer_frame(description, choices, probes) for choices in (first, second))
    differs = one["choice"] != other["choice"]
    one, other = one[differs], other[differs]
    return pd.DataFrame(
        {
            "layer": one["layer"],
            "kind": one["kind"],
            "first": one["choice"],
            "second": other["choice"],
            "latency_ms": other["latency_ms"] - one["latency_ms"],
            "divergence": other["divergence"] - one["divergence"],
            "bytes": other["weight_bytes"] - one["weight_bytes"],
        }
    )


def latency_gap(diff: pd.DataFrame, probes: Probes, pair: tuple[TrialRecord, TrialRecord]) -> Gap:
    """Return the gap in milliseconds per pass, from the interleaved latency ratios, on the scale of the probes."""
    ratios = [trial.figures.get("latency_ratio") for trial in pair]
    measured, noise = None, 0.0
    if ratios[0] and ratios[1]:
        measured = (ratios[1].value - ratios[0].value) * probes.pass_ms
        # The two maps were measured independently, so the squares of their errors add up.
        noise = math.hypot(_half_width(ratios[0]), _half_width(ratios[1])) * probes.pass_ms
    return Gap(measured=measured, predicted=float(diff["latency_ms"].sum()), noise=noise)


def _half_width(figure: Figure) -> float:
    return 0.0 if figure.low is None or figure.high is None else (figure.high - figure.low) / 2


def divergence_gap(diff: pd.DataFrame, pair: tuple[TrialRecord, TrialRecord]) -> Gap:
    """Return the gap in divergence from full precision."""
    figures = [trial.figures.get("divergence") for trial in pair]
    measured = figures[1].value - figures[0].value if figures[0] and figures[1] else None
    return Gap(measured=measured, predicted=float(diff["divergence"].sum()))


def accuracy_drops(
    trials: Sequence[TrialRecord], pair: tuple[Mapping[str, str], Mapping[str, str]], probes: Probes
) -> tuple[float, float] | None:
    """Return the relative accuracy drops expected of two maps from probes; None before any map was measured.

    The curve from divergence to accuracy is fitted to the job's measured maps.
    """
    known = [trial for trial in trials if trial.state is TrialState.COMPLETE and "accuracy_drop" in trial.figures]
    if not known:
        return None
    measured = (np.array([trial.figures[name].value for trial in known]) for name in ("divergence", "accuracy_drop"))
    curve = AccuracyCurve.fitted(*measured)
    sums = np.array([sum(_expected(probes, choices)[1].values()) for choices in pair])
    first, second = curve.drop(sums)
    return float(first), float(second)


def sensitivity_frame(description: ModelDescription, probes: Probes) -> pd.DataFrame:
    """Return one row per layer and choice other than full precision, most sensitive layer first.

    ``worst`` is the largest divergence of any choice of the layer, ``saved_ms`` the time saved relative to full
    precision.
    """
    roles = {layer.name: role_of(layer) for layer in description.layers}
    full = {probe.layer: probe.latency_ms for probe in probes.layers if probe.choice == FULL_PRECISION.name}
    rows = [
        {
            "layer": probe.layer,
            "role": roles.get(probe.layer, ABSENT),
            "choice": probe.choice,
            "divergence": probe.divergence,
            "saved_ms": full[probe.layer] - probe.latency_ms,
        }
        for probe in probes.layers
        if probe.choice != FULL_PRECISION.name
    ]
    frame = pd.DataFrame(rows, columns=["layer", "role", "choice", "divergence", "saved_ms"])
    frame["worst"] = frame.groupby("layer")["divergence"].transform("max")
    return frame.sort_values(["worst", "layer"], ascending=[False, True], kind="stable").reset_index(drop=True)


def sensitivity_summary(sensitivities: pd.DataFrame) -> str:
    """Return the fewest layers that cause half of the divergence of a uniform map; empty if nothing loses anything.

    Args:
        sensitivities: ``sensitivity_frame``.
    """
    sums = sensitivities.groupby("choice")["divergence"].sum()
    if not sums.gt(0).any():
        return ""
    choice = next((name for name in _USUAL if sums.get(name, 0.0) > 0), str(sums.idxmax()))
    losses = sensitivities[sensitivities["choice"] == choice].sort_values("divergence", ascending=False, kind="stable")
    shares = losses["divergence"].cumsum() / sums[choice]
    count = int((shares < _HALF).sum()) + 1
    roles = Counter(losses["role"][:count]).most_common()
    which = roles[0][0] if len(roles) == 1 else f"mostly {roles[0][0]}"
    layers = (
        f"1 of {len(losses)} layers ({which}) causes"
        if count == 1
        else f"{count} of {len(losses)} layers ({which}) cause"
    )
    return f"If all layers take {choice}, {layers} {100 * shares.iloc[count - 1]:.0f} % of the expected divergence."


def choice_frame(description: ModelDescription, maps: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Return one row per layer and choice in ``maps``, with the share of the maps that make the choice."""
    rows = [
        {"layer": layer.name, "role": role_of(layer), "choice": choice, "share": count / len(maps)}
        for layer in description.layers
        for choice, count in sorted(Counter(names[layer.name] for names in maps).items())
    ]
    return pd.DataFrame(rows, columns=["layer", "role", "choice", "share"])


def most_disputed(choices: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the rows of ``choice_frame`` for the ``most`` layers on which the maps agree least, in execution order."""
    agreed = choices.groupby("layer", sort=False)["share"].max().sort_values(kind="stable")
    return choices[choices["layer"].isin(agreed.index[:most])]


def role_frame(choices: pd.DataFrame) -> pd.DataFrame:
    """Return one row per layer type: its number of layers, and the mean shares per activation mode."""
    modes = choices.assign(mode=[mode_of(choice_named(name)) for name in choices["choice"]])
    shares = modes.pivot_table(index="role", columns="mode", values="share", aggfunc="sum", sort=False).fillna(0.0)
    layers = choices.groupby("role", sort=False)["layer"].nunique()
    shares = shares.reindex(columns=list(MODES), fill_value=0.0).div(layers, axis=0)
    return shares.assign(layers=layers).reset_index()


#: Activation modes, in the order shown.
MODES = ("static", "dynamic", "weights only", "floating point")


def mode_of(choice: LayerChoice) -> str:
    """Return the activation mode of a choice, one of ``MODES``."""
    if not choice.precision.is_quantized:
        return "floating point"
    return "weights only" if choice.activation is ActivationMode.NONE else choice.activation.value


def role_of(layer: Layer) -> str:
    """Return the layer's type: its name after the last number, or the last part if there is no number."""
    parts = layer.name.split(".")
    last = max((at for at, part in enumerate(parts) if part.isdigit()), default=None)
    if last is None:
        return parts[-1]
    return ".".join(parts[last + 1 :]) or layer.kind.value  # if the name ends in a number, only the kind is known


def letter(choice: LayerChoice) -> str:
    """Return S, D or W for a quantized layer; empty for a floating-point one."""
    return LETTERS[choice.activation] if choice.precision.is_quantized else ""


def refusals(layer: Layer, description: ModelDescription) -> dict[str, str]:
    """Return choice name -> why the layer cannot take it; a single entry for all if the layer is frozen."""
    if layer.frozen_reason:
        return {"every quantized choice": layer.frozen_reason}
    return dict(description.refusals.get(layer.name, {}))


def _layer_row(
    layer: Layer, description: ModelDescription, choices: Mapping[str, str], total_flops: int
) -> dict[str, object]:
    choice = choice_named(choices[layer.name])
    size = description.layer_bytes.get(layer.name, {}).get(choice.name, layer.weight_bytes)
    found = description.calibration.ranges.get(layer.name)
    clipped_shifted = description.calibration.clipped or {}
    histogram = description.calibration.histograms.get(layer.name)
    return {
        "layer": layer.name,
        "kind": layer.kind.value,
        "shape": " x ".join(map(str, layer.weight_shape)),
        "choice": choice.name,
        "precision": choice.precision.value,
        "letter": letter(choice),
        # None if the job did not record kernels, so that the column is left out.
        "kernel": description.kernels.get(layer.name, {}).get(choice.name, ABSENT) if description.kernels else None,
        "weight_bytes": size,
        "bytes": bytes_text(size),
        "flops_share": layer.flops / total_flops if total_flops else 0.0,
        "low": found.low if found else np.nan,
        "high": found.high if found else np.nan,
        "clipped": histogram.clipped if histogram else np.nan,
        "range": f"{found.low:.4g} to {found.high:.4g}" if found else ABSENT,
        "clipped_shifted": clipped_shifted.get(layer.name, np.nan),
        "refused": "; ".join(f"{name}: {why}" for name, why in refusals(layer, description).items()),
    }


def _expected(probes: Probes | None, choices: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return layer -> probed latency in ms and layer -> probed divergence, for the choice of each layer."""
    taken = [probe for probe in probes.layers if choices.get(probe.layer) == probe.choice] if probes else []
    return {probe.layer: probe.latency_ms for probe in taken}, {probe.layer: probe.divergence for probe in taken}


def _pass_ms(probes: Probes, choices: Mapping[str, str]) -> float:
    """Return the expected time of a pass of the map: that of full precision plus the changes of its layers."""
    full = dict.fromkeys(choices, FULL_PRECISION.name)
    return probes.pass_ms + sum(_expected(probes, choices)[0].values()) - sum(_expected(probes, full)[0].values())
