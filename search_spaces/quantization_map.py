"""The quantization map: which choice each layer of one model takes, with its calibrated ranges."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from search_spaces.choice import LayerChoice, choice_named
from search_spaces.errors import MapError


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRange:
    """The range of a layer's input that static quantization maps onto the integers.

    Raises:
        MapError: if the bounds are not finite numbers with ``low <= 0 <= high``. Zero must be inside
            so that padding is represented exactly.
    """

    #: Smallest value represented, at most 0.
    low: float
    #: Largest value represented, at least 0.
    high: float
    #: How the input is smoothed by the choices that do so; None if no factors were sought.
    smoothing: "Smoothing | None" = None

    def __post_init__(self) -> None:
        # The comparison is also false for NaN; the bound keeps infinities out.
        if not (-float("inf") < self.low <= 0.0 <= self.high < float("inf")):
            raise MapError(
                f"an activation range must be finite with low <= 0 <= high, but got [{self.low}, {self.high}]"
            )

    def affine_uint8(self) -> tuple[float, int]:
        """Return the scale and zero point of asymmetric uint8 quantization over the range.

        The formula is that of Jacob et al., arXiv:1712.05877, section 2.1.
        """
        scale = max((self.high - self.low) / 255.0, 1e-12)
        return scale, min(255, max(0, round(-self.low / scale)))

    def symmetric_scale(self, largest: float) -> float:
        """Return the scale of symmetric quantization that takes the bound farther from zero to ``largest``."""
        return max(-self.low, self.high, 1e-12) / largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """What a layer's input channels are divided by, and the range of the quotients.

    Raises:
        MapError: if a factor is not positive and finite, or there is none, or the bounds are no range.
    """

    #: One for each input channel; the weights that meet the channel are multiplied by it.
    factors: tuple[float, ...]
    #: Bounds of the divided input, as those of an ``ActivationRange``.
    low: float
    high: float

    def __post_init__(self) -> None:
        wrong = [factor for factor in self.factors if not 0.0 < factor < float("inf")]
        if wrong or not self.factors:
            raise MapError(f"smoothing needs positive, finite factors, but got {wrong[0] if wrong else 'none'}")
        ActivationRange(low=self.low, high=self.high)

    @property
    def range(self) -> ActivationRange:
        """Return the range of the divided input."""
        return ActivationRange(low=self.low, high=self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationMap:
    """Layer -> choice for one model: the artefact the search produces.

    Raises:
        MapError: if a layer with a static choice has no calibrated range, or one that is smoothed no factors.
    """

    #: Layer name -> choice, in execution order.
    choices: Mapping[str, LayerChoice]
    #: Layer name -> calibrated input range; needed for static choices, others are ignored.
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [
            name for name, choice in self.choices.items() if choice.needs_calibration and name not in self.ranges
        ]
        if missing:
            raise MapError(f"static layers need a calibrated range, but {', '.join(missing)} have none; calibrate them")
        rough = [n for n, choice in self.choices.items() if choice.is_smooth and self.ranges[n].smoothing is None]
        if rough:
            raise MapError(f"smoothed layers need calibrated factors, but {', '.join(rough)} have none; calibrate them")

    @classmethod
    def from_names(
        cls, names: Mapping[str, str], ranges: Mapping[str, ActivationRange] | None = None
    ) -> "QuantizationMap":
        """Return the map for layer name -> choice name.

        Raises:
            ChoiceError: if a choice is unknown.
        """
        return cls(choices={layer: choice_named(name) for layer, name in names.items()}, ranges=ranges or {})

    def smoothing(self, layer: str) -> Smoothing | None:
        """Return how a layer's input is smoothed, or None if its choice does not do so."""
        return self.ranges[layer].smoothing if self.choices[layer].is_smooth else None

    @property
    def names(self) -> dict[str, str]:
        """Return layer name -> choice name."""
        return {layer: choice.name for layer, choice in self.choices.items()}

    @property
    def key(self) -> str:
        """Return the identity of the choices: two candidates with one key are the same candidate."""
        return map_key(self.names)


def map_key(names: Mapping[str, str]) -> str:
    """Return a 32-digit hexadecimal digest of layer name -> choice name, whatever its order."""
    canonical = json.dumps(dict(names), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
