"""A layer choice: weight precision and how its input activations are quantized."""

import enum
import itertools
from dataclasses import dataclass, replace

from search_spaces.errors import ChoiceError, unknown


class Precision(enum.StrEnum):
    """Number format of a layer's weights."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bits(self) -> int:
        """Width of one weight in bits, scales excluded."""
        return int("".join(filter(str.isdigit, self.value)))

    @property
    def is_quantized(self) -> bool:
        """Whether weights of this precision carry scales."""
        return self in (Precision.FP8, Precision.INT8, Precision.INT4)


class ActivationMode(enum.StrEnum):
    """Where the quantization range of a layer's input comes from."""

    #: Not quantized: activations stay in the floating-point format of the layer.
    NONE = "none"
    #: Fixed beforehand by a calibration pass.
    STATIC = "static"
    #: Taken from each input at run time.
    DYNAMIC = "dynamic"


class Method(enum.StrEnum):
    """Refinement of a choice beyond rounding weights and inputs to the nearest integer."""

    #: No refinement.
    PLAIN = "plain"
    #: Per-token scales: every row of the input has its own, so that an outlier cannot coarsen other tokens or samples.
    PER_TOKEN = "per_token"
    #: SmoothQuant (Xiao et al., arXiv:2211.10438): input channels are divided by factors and the matching weights
    #: multiplied by them, so that an outlier channel does not widen the range of all.
    SMOOTH = "smooth"
    #: GPTQ (Frantar et al., arXiv:2210.17323): where input channels are correlated, each weight compensates for the
    #: rounding errors of the weights before it.
    GPTQ = "gptq"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """How one layer runs; an illegal combination cannot be built.

    Raises:
        ChoiceError: if activations are quantized but weights are not, int4 weights meet quantized activations (no
            supported runtime has a W4A8 kernel), smoothing is not combined with int8 static, GPTQ with int4 or
            per-token scales with int8 dynamic, or ``weight_bits`` is not 8 or 7.
    """

    #: Weight format.
    precision: Precision
    #: Input activation quantization.
    activation: ActivationMode = ActivationMode.NONE
    #: Refinement beyond rounding to the nearest integer.
    method: Method = Method.PLAIN
    #: Bits that int8 weights use: 8, or 7 to keep products exact on processors that sum them in 16 bits. Weights are
    #: stored in 8 bits either way.
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if self.weight_bits != 8 and not (self.needs_int8_products and self.weight_bits == 7):
            raise ChoiceError(
                f"weight_bits must be 8, or 7 for int8 weights with quantized activations, but got {self.weight_bits} "
                f"for {self.precision} and {self.activation}"
            )
        if self.is_smooth and (self.precision, self.activation) != (Precision.INT8, ActivationMode.STATIC):
            raise ChoiceError(
                f"smoothing needs int8 weights and static activations, but got {self.precision} and "
                f"{self.activation}; use int8_static_smooth"
            )
        if self.is_gptq and self.precision is not Precision.INT4:
            raise ChoiceError(f"GPTQ needs int4 weights, but got {self.precision}; use int4_weight_only_gptq")
        if self.is_per_token and (self.precision, self.activation) != (Precision.INT8, ActivationMode.DYNAMIC):
            raise ChoiceError(
                f"per-token scales need int8 weights and dynamic activations, but got {self.precision} and "
                f"{self.activation}; use int8_dynamic_per_token"
            )
        if self.activation is ActivationMode.NONE:
            return
        if not self.precision.is_quantized:
            raise ChoiceError(
                f"{self.activation} activations need quantized weights, but precision is "
                f"{self.precision}; use int8 or fp8, or leave activations unquantized"
            )
        if self.precision is Precision.INT4:
            raise ChoiceError(
                f"int4 weights need unquantized activations, but got {self.activation}; "
                "use int4_weight_only, or int8 for quantized activations"
            )

    def with_weight_bits(self, bits: int) -> "LayerChoice":
        """Return the choice with ``bits``-bit int8 weights; choices without int8 products are returned unchanged."""
        return replace(self, weight_bits=bits) if self.needs_int8_products else self

    @property
    def name(self) -> str:
        """Name of the choice in job files, maps and the database, for example ``int8_static``."""
        if not self.precision.is_quantized:
            return self.precision.value
        inputs = "weight_only" if self.activation is ActivationMode.NONE else self.activation
        method = () if self.method is Method.PLAIN else (self.method,)
        return "_".join((self.precision, inputs, *method))

    @property
    def has_integer_weights(self) -> bool:
        """Whether weights are rounded to integers."""
        return self.precision in (Precision.INT8, Precision.INT4)

    @property
    def rounds_to_nearest(self) -> bool:
        """Whether weights are integers, each rounded to the nearest."""
        return self.has_integer_weights and not self.is_gptq

    @property
    def needs_int8_products(self) -> bool:
        """Whether both operands of the layer's products are 8-bit integers (W8A8)."""
        return self.precision is Precision.INT8 and self.activation is not ActivationMode.NONE

    @property
    def needs_calibration(self) -> bool:
        """Whether the choice needs calibration of the layer's input."""
        return self.activation is ActivationMode.STATIC or self.is_gptq

    @property
    def is_per_token(self) -> bool:
        """Whether every row of the input has its own scale, set by its largest absolute value."""
        return self.method is Method.PER_TOKEN

    @property
    def is_smooth(self) -> bool:
        """Whether input channels are first divided by calibrated factors."""
        return self.method is Method.SMOOTH

    @property
    def is_gptq(self) -> bool:
        """Whether weights are rounded with the calibrated second moments of the input."""
        return self.method is Method.GPTQ


def _legal_choices() -> dict[str, LayerChoice]:
    choices = {}
    for precision, activation, method in itertools.product(Precision, ActivationMode, Method):
        try:
            choice = LayerChoice(precision=precision, activation=activation, method=method)
        except ChoiceError:
            continue
        choices[choice.name] = choice
    return choices


#: Every legal choice by name, full precision first.
CHOICES: dict[str, LayerChoice] = _legal_choices()

#: The choice that leaves a layer as it is.
FULL_PRECISION = CHOICES["fp32"]


def choice_named(name: str) -> LayerChoice:
    """Return the choice called ``name``.

    Raises:
        ChoiceError: if no legal choice has that name.
    """
    try:
        return CHOICES[name]
    except KeyError:
        raise ChoiceError(unknown("choice", name, CHOICES)) from None
