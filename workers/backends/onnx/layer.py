"""A layer as part of an ONNX graph, which PyTorch can emulate."""

import torch
from torch import nn
from torch.func import functional_call

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from workers.backends.onnx.builder import Fragment
from workers.backends.packed import PackedLayer
from workers.backends.rounding.activations import ZERO_OF_ROWS, affine_of, scales_of_rows, to_steps
from workers.backends.rounding.weights import rounded


class OnnxLayer(PackedLayer):
    """A layer as part of an ONNX graph.

    A call emulates the nodes in PyTorch, with the dequantized weights and with the input rounded to the same integers.
    Products are computed in fp32, so outputs differ from the nodes' in their last bits.
    """

    def __init__(
        self, original: nn.Module, choice: LayerChoice, input_range: ActivationRange | None, fragment: Fragment
    ) -> None:
        super().__init__(original)
        #: Nodes and constants.
        self.fragment = fragment
        self.packed_bytes = self.fragment.nbytes
        # In a list, so that PyTorch does not register the original's weights as parameters of this layer.
        self._original = [original]
        self._choice = choice
        self._moments = input_range.moments if choice.is_gptq and input_range is not None else None
        smoothing = input_range.smoothing if choice.is_smooth and input_range is not None else None
        self._factors = None if smoothing is None else torch.tensor(smoothing.factors)
        calibrated = input_range if smoothing is None else smoothing.range
        self._affine = None if calibrated is None else calibrated.affine_uint8()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nodes' output for ``x``, up to rounding in the last bits."""
        (original,) = self._original
        if self._factors is not None:
            x = x * self._factors.reciprocal()
        if self._choice.needs_int8_products:
            x = self._rounded(x)
        result: torch.Tensor = functional_call(original, self._stored(original), (x,))
        return result

    def _stored(self, original: nn.Module) -> dict[str, torch.Tensor]:
        """Return the dequantized parameters that differ from the original's."""
        assert isinstance(original.weight, torch.Tensor)
        full = original.weight if self._factors is None else original.weight * self._factors
        stored = rounded(full, self._choice, self._moments, by_row=isinstance(original, nn.Embedding))
        return {"weight": torch.empty_like(original.weight).copy_(stored)}  # in its memory format

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        if self._choice.is_per_token:
            scales = scales_of_rows(x)
            return to_steps(x / scales, 1.0, ZERO_OF_ROWS) * scales
        scale, zero_point = self._affine or affine_of(x)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
