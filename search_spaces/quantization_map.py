"""The quantization map: which choice each layer of one model takes, with its calibrated ranges."""

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from search_spaces.choice import LayerChoice, choice_named
from search_spaces.errors import MapError


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRange:
    """Range of a layer's input that static quantization maps onto the integers.

    Raises:
        MapError: if the bounds are not finite numbers with ``low <= 0 <= high``, or a mean is not finite. The range
            includes zero so that padding is represented exactly.
    """

    #: Smallest value represented, at most 0.
    low: float
    #: Largest value represented, at least 0.
    high: float
    #: Smoothing of the input, for smoothing choices; None if calibration did not look for factors.
    smoothing: "Smoothing | None" = None
    #: Second moments of the input, for GPTQ choices; None if calibration did not collect them.
    moments: "SecondMoments | None" = None
    #: Mean of each input channel, for bias correction; None if biases are not corrected.
    means: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        # The comparison is also false for NaN; the bound keeps infinities out.
        if not (-float("inf") < self.low <= 0.0 <= self.high < float("inf")):
            raise MapError(
                f"an activation range must be finite with low <= 0 <= high, but got [{self.low}, {self.high}]"
            )
        wrong = [mean for mean in self.means or () if not math.isfinite(mean)]
        if wrong or self.means == ():
            raise MapError(f"means of input channels must be finite, but got {wrong[0] if wrong else 'none'}")

    def affine_uint8(self) -> tuple[float, int]:
        """Return the scale and zero point of asymmetric uint8 quantization over the range.

        Source: Jacob et al., arXiv:1712.05877, section 2.1.
        """
        scale = max((self.high - self.low) / 255.0, 1e-12)
        return scale, min(255, max(0, round(-self.low / scale)))

    def symmetric_scale(self, largest: float) -> float:
        """Return the symmetric scale that maps the bound farther from zero to ``largest``."""
        return max(-self.low, self.high, 1e-12) / largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """Divisors of a layer's input channels, and the range of the divided input.

    Raises:
        MapError: if a factor is not positive and finite, there are no factors, or the bounds are not a valid range.
    """

    #: One factor per input channel; the weights of that channel are multiplied by it.
    factors: tuple[float, ...]
    #: Bounds of the divided input, as in ``ActivationRange``.
    low: float
    high: float

    def __post_init__(self) -> None:
        wrong = [factor for factor in self.factors if not 0.0 < factor < float("inf")]
        if wrong or not self.factors:
            raise MapError(f"smoothing needs positive, finite factors, but got {wrong[0] if wrong else 'none'}")
        ActivationRange(low=self.low, high=self.high)

    @property
    def range(self) -> ActivationRange:
        """Range of the divided input."""
        return ActivationRange(low=self.low, high=self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondMoments:
    """Second moments ``E[x x^T]`` of a layer's input channels: the diagonal and a low-rank approximation of the rest.

    Off the diagonal they are ``sum_k scales[k]^2 b_k b_k^T``, where ``b_k`` are the rows of ``basis``.

    Raises:
        MapError: if a number is negative or not finite, there are no channels, or ``basis`` does not hold one row per
            scale with one byte per channel.
    """

    #: Mean square of each channel.
    squares: tuple[float, ...]
    #: Scale of each direction: multiplied by its integers in ``basis``, it gives the direction.
    scales: tuple[float, ...]
    #: Signed bytes of shape ``(len(scales), len(squares))``, in base64.
    basis: str

    def __post_init__(self) -> None:
        wrong = [number for number in (*self.squares, *self.scales) if not 0.0 <= number < float("inf")]
        if wrong or not self.squares:
            raise MapError(f"second moments must be finite and not negative, but got {wrong[0] if wrong else 'none'}")
        self.integers()

    def integers(self) -> bytes:
        """Return the bytes of ``basis``."""
        try:
            found = base64.b64decode(self.basis, validate=True)
        except (binascii.Error, ValueError):
            raise MapError(f"the basis of second moments must be base64, but got {self.basis[:20]!r}...") from None
        expected = len(self.scales) * len(self.squares)
        if len(found) != expected:
            raise MapError(
                f"the basis of second moments needs {expected} bytes for {len(self.scales)} scales and "
                f"{len(self.squares)} channels, but has {len(found)}"
            )
        return found


def without_means(ranges: Mapping[str, ActivationRange], layers: Container[str]) -> dict[str, ActivationRange]:
    """Return the ranges by layer name, without the means by which the biases of ``layers`` would be corrected."""
    return {name: replace(known, means=None) if name in layers else known for name, known in ranges.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationMap:
    """Layer -> choice for one model: the artefact the search produces.

    Raises:
        MapError: if a layer lacks what its choice needs: a calibrated range for static and GPTQ choices, smoothing
            factors for smoothed ones, second moments for GPTQ.
    """

    #: Layer name -> choice, in execution order.
    choices: Mapping[str, LayerChoice]
    #: Layer name -> calibrated input range; other ranges than those the choices need are ignored.
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [
            name for name, choice in self.choices.items() if choice.needs_calibration and name not in self.ranges
        ]
        if missing:
            raise MapError(
                f"static and GPTQ layers need a calibrated range, but {', '.join(missing)} have none; calibrate them"
            )
        missing = [n for n, choice in self.choices.items() if choice.is_smooth and self.ranges[n].smoothing is None]
        if missing:
            raise MapError(
                f"smoothed layers need calibrated factors, but {', '.join(missing)} have none; calibrate them"
            )
        missing = [n for n, choice in self.choices.items() if choice.is_gptq and self.ranges[n].moments is None]
        if missing:
            raise MapError(
                f"GPTQ layers need calibrated second moments, but {', '.join(missing)} have none; calibrate them"
            )

    @classmethod
    def from_names(
        cls,
        names: Mapping[str, str],
        ranges: Mapping[str, ActivationRange] | None = None,
        weight_bits: Mapping[str, int] = MappingProxyType({}),
    ) -> "QuantizationMap":
        """Return the map for layer name -> choice name.

        Args:
            names: layer name -> choice name.
            ranges: layer name -> calibrated input range.
            weight_bits: layer name -> bits of int8 weights in int8 products; absent layers use 8.

        Raises:
            ChoiceError: if a choice is unknown, or a number of bits is neither 8 nor 7.
        """
        choices = {
            layer: choice_named(name).with_weight_bits(weight_bits.get(layer, 8)) for layer, name in names.items()
        }
        return cls(choices=choices, ranges=ranges or {})

    def smoothing(self, layer: str) -> Smoothing | None:
        """Return the smoothing of a layer's input, or None if its choice does not smooth."""
        return self.ranges[layer].smoothing if self.choices[layer].is_smooth else None

    def moments(self, layer: str) -> SecondMoments | None:
        """Return the second moments that GPTQ rounds a layer's weights with, or None for other choices."""
        return self.ranges[layer].moments if self.choices[layer].is_gptq else None

    @property
    def names(self) -> dict[str, str]:
        """Layer name -> choice name."""
        return {layer: choice.name for layer, choice in self.choices.items()}

    @property
    def key(self) -> str:
        """Identity of the choices: candidates with equal keys are the same candidate."""
        return map_key(self.names)


def map_key(names: Mapping[str, str], backend: str = "", learned: str = "") -> str:
    """Return a 32-digit hexadecimal digest of layer name -> choice name; the order does not matter.

    ``backend`` tells equal maps on different backends of a job apart; it is empty for the first one. ``learned`` is the
    sha256 of the weights that a recovered map has instead of the model's own; it is empty for other maps.
    """
    canonical = json.dumps(dict(names), sort_keys=True, separators=(",", ":")) + backend + learned
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
