"""Products of uint8 inputs with int8 weights. All choices that multiply by the same weights share one packed copy."""

from collections import defaultdict
from typing import Protocol
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from workers.backends.cpu.fbgemm import packed_int8
from workers.backends.rounding.activations import to_steps, to_uint8
from workers.backends.rounding.weights import int8_per_channel


class Int8Product(Protocol):
    """The product of inputs quantized to uint8 with packed int8 weights.

    It is built from int8 values of shape ``(out, in)``, fp32 scales of shape ``(out,)`` and the bias.
    """

    #: Whether the bias is packed with the weights, so that layers with different biases cannot share a product.
    packs_bias: bool
    #: The bias that is packed with the weights, if any.
    bias: torch.Tensor | None

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None: ...

    def __call__(self, rows: torch.Tensor, scale: float, zero_point: int, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the fp32 product plus bias, shape ``(rows, out)``, for fp32 rows of shape ``(rows, in)``."""
        ...


class OneDnnProduct:
    """oneDNN's int8 matrix product. See ``Int8Product``."""

    packs_bias = False
    bias: torch.Tensor | None = None

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(values, None)
        self._scales = scales
        self._zero_points = torch.zeros(len(scales), dtype=torch.int32)

    def __call__(self, rows: torch.Tensor, scale: float, zero_point: int, bias: torch.Tensor | None) -> torch.Tensor:
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            to_uint8(rows, scale, zero_point), scale, zero_point, self._packed, self._scales, self._zero_points,
            bias, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product


class FbgemmProduct:
    """FBGEMM's int8 matrix product, which quantizes the input while packing it. See ``Int8Product``."""

    packs_bias = True
    bias: torch.Tensor | None

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.bias = bias
        self._packed = packed_int8(values, scales, bias)

    def __call__(self, rows: torch.Tensor, scale: float, zero_point: int, bias: torch.Tensor | None) -> torch.Tensor:
        product: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows, scale, zero_point, self._packed
        )
        return product


class WidenedProduct:
    """The product computed in fp32, for any processor: sums are rounded, never saturated. See ``Int8Product``."""

    packs_bias = False
    bias: torch.Tensor | None = None

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._values, self._scales = values, scales

    def __call__(self, rows: torch.Tensor, scale: float, zero_point: int, bias: torch.Tensor | None) -> torch.Tensor:
        product = F.linear(to_steps(rows, scale, zero_point), self._values.float()).mul_(self._scales * scale)
        return product if bias is None else product.add_(bias)


#: Full-precision weight -> (kind of product, bits, version of the weight) -> products that a prepared layer still uses.
_packed = WeakIdKeyDictionary()


def packed_once(kind: type[Int8Product], linear: nn.Linear, bits: int, bias: torch.Tensor | None) -> Int8Product:
    """Return the product of a layer's weights, the same one for all layers that can share it.

    Args:
        kind: computes the product.
        linear: the full-precision layer.
        bits: bits of the weights.
        bias: what the layer adds to the product, or None. A product that packs it is shared by layers with equal ones;
            others get it with every call.
    """
    weight = linear.weight
    if weight.is_inference():  # it has no version, so that nobody knows whether it was changed since
        return kind(*int8_per_channel(weight, bits=bits), bias)
    by_kind: defaultdict[tuple[type[Int8Product], int, int], WeakSet[Int8Product]]
    by_kind = _packed.setdefault(weight, defaultdict(WeakSet))  # type: ignore[no-untyped-call]
    products = by_kind[kind, bits, weight._version]
    for product in products:
        if not kind.packs_bias or _equal(product.bias, bias):
            return product
    product = kind(*int8_per_channel(weight, bits=bits), bias)
    products.add(product)
    return product


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)
