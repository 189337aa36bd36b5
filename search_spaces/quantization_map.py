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
class QuantizationMap:
    """Layer -> choice for one model: the artefact the search produces.

    Raises:
        MapError: if a layer with a static choice has no calibrated range.
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

    @classmethod
    def from_names(
        cls, names: Mapping[str, str], ranges: Mapping[str, ActivationRange] | None = None
    ) -> "QuantizationMap":
        """Return the map for layer name -> choice name.

        Raises:
            ChoiceError: if a choice is unknown.
        """
        return cls(choices={layer: choice_named(name) for layer, name in names.items()}, ranges=ranges or {})

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
