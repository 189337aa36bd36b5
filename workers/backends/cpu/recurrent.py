"""LSTM and GRU on CPUs: bf16, fp16 weights, and W8A8 with dynamic ranges.

Static W8A8 has no kernel: PyTorch quantizes the hidden state again at every step, and a calibration pass cannot observe
the states of the quantized layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from search_spaces.choice import LayerChoice, Precision
from search_spaces.quantization_map import ActivationRange
from search_spaces.tensors import replaced
from workers.backends.cpu.fbgemm import packed_fp16, packed_int8
from workers.backends.packed import PackedLayer, stored_bytes
from workers.backends.rounding.weights import fp16, int8_per_channel

Recurrent = nn.LSTM | nn.GRU

#: Hidden state, and cell state of an LSTM; shape ``(layers x directions, batch, hidden)``.
_States = tuple[torch.Tensor, ...]


class _PackedRecurrent(PackedLayer):
    """Base of all kernels: the forms of input, output and states."""

    def __init__(self, module: Recurrent) -> None:
        super().__init__(module)
        # Attributes that a model may read to create an initial state.
        self.input_size, self.hidden_size, self.num_layers = module.input_size, module.hidden_size, module.num_layers
        self.bidirectional, self.batch_first, self.bias = module.bidirectional, module.batch_first, module.bias
        self._is_lstm = isinstance(module, nn.LSTM)

    def flatten_parameters(self) -> None:
        """Do nothing; some models call this before they run the layer."""

    def forward(self, x: torch.Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Return outputs and last states, in the same forms as ``torch.nn.LSTM`` and ``torch.nn.GRU``."""
        if isinstance(x, PackedSequence):
            return self._forward_packed(x, hx)
        if x.dim() == 2:
            batch = 0 if self.batch_first else 1
            output, hx = self.forward(x.unsqueeze(batch), replaced(hx, lambda state: state.unsqueeze(1)))
            return output.squeeze(batch), replaced(hx, lambda state: state.squeeze(1))
        output, *states = self._run(x, None, self._states(hx, x, x.shape[0 if self.batch_first else 1]))
        return output, self._in_form(states)

    def _forward_packed(self, x: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        data, batch_sizes, order, back = x
        if order is not None:
            hx = replaced(hx, lambda state: state.index_select(1, order))
        output, *states = self._run(data, batch_sizes, self._states(hx, data, int(batch_sizes[0])))
        if back is not None:
            states = [state.index_select(1, back) for state in states]
        return PackedSequence(output, batch_sizes, order, back), self._in_form(states)

    def _states(self, hx: Any, x: torch.Tensor, batch: int) -> _States:
        """Return the initial states; zeros if none are given."""
        if hx is not None:
            return tuple(hx) if self._is_lstm else (hx,)
        zeros = x.new_zeros(self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size)
        return (zeros, zeros) if self._is_lstm else (zeros,)

    def _in_form(self, states: Sequence[torch.Tensor]) -> Any:
        return tuple(states) if self._is_lstm else states[0]

    def _run(self, x: torch.Tensor, batch_sizes: torch.Tensor | None, states: _States) -> Sequence[torch.Tensor]:
        """Return outputs and last states of a batch, or of packed data with the batch size of each step."""
        raise NotImplementedError


class Bf16Recurrent(_PackedRecurrent):
    """Weights, states and products in bf16; input, output and the states passed in and out in fp32."""

    def __init__(self, module: Recurrent, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(module)
        self._weights = [weight.detach().to(torch.bfloat16) for weight in module._flat_weights if weight is not None]
        self._kernel: Any = torch.lstm if self._is_lstm else torch.gru
        self.packed_bytes = stored_bytes(*self._weights)

    def _run(self, x: torch.Tensor, batch_sizes: torch.Tensor | None, states: _States) -> Sequence[torch.Tensor]:
        narrow: list[Any] = [state.to(torch.bfloat16) for state in states]
        shared = (narrow if self._is_lstm else narrow[0], self._weights, self.bias, self.num_layers, 0.0, False)
        x = x.to(torch.bfloat16)
        if batch_sizes is None:
            found = self._kernel(x, *shared, self.bidirectional, self.batch_first)
        else:
            found = self._kernel(x, batch_sizes, *shared, self.bidirectional)
        return [tensor.to(torch.float32) for tensor in found]


class FbgemmRecurrent(_PackedRecurrent):
    """Weights packed by FBGEMM: int8 with dynamic ranges (W8A8), or fp16 with products and sums in fp32.

    W8A8 has per-channel symmetric weights. The input of all steps together and the hidden state of each step are
    asymmetric uint8.
    """

    def __init__(self, module: Recurrent, choice: LayerChoice, input_range: ActivationRange | None) -> None:
        super().__init__(module)
        each = 4 if self.bias else 2  # weights and biases of one layer and direction
        flat = [weight.detach() for weight in module._flat_weights if weight is not None]
        self._dtype = torch.float16 if choice.precision is Precision.FP16 else torch.int8
        self._cells = [_cell(choice, *flat[start : start + each]) for start in range(0, len(flat), each)]
        self.packed_bytes = sum(self._held(weight) if weight.dim() == 2 else weight.nbytes for weight in flat)

    def _held(self, weight: torch.Tensor) -> int:
        # Int8 has a scale, a zero point and a sum of weights per output, with four bytes each.
        return 2 * weight.numel() if self._dtype is torch.float16 else weight.numel() + 3 * 4 * len(weight)

    def _run(self, x: torch.Tensor, batch_sizes: torch.Tensor | None, states: _States) -> Sequence[torch.Tensor]:
        shared = (self._cells, True, self.num_layers, 0.0, False, self.bidirectional)
        batch_first = (self.batch_first,) if batch_sizes is None else ()
        data = (x,) if batch_sizes is None else (x, batch_sizes)
        found: Sequence[torch.Tensor] = (
            torch.quantized_lstm(*data, states, *shared, *batch_first, dtype=self._dtype, use_dynamic=True)
            if self._is_lstm
            else torch.quantized_gru(*data, states[0], *shared, *batch_first)
        )
        return found


def _cell(
    choice: LayerChoice,
    input_weight: torch.Tensor,
    hidden_weight: torch.Tensor,
    input_bias: torch.Tensor | None = None,
    hidden_bias: torch.Tensor | None = None,
) -> Any:
    """Return the packed weights of one layer and direction."""
    pairs = (input_weight, input_bias), (hidden_weight, hidden_bias)
    if choice.precision is Precision.FP16:
        halves = [packed_fp16(fp16(weight).float(), bias) for weight, bias in pairs]
        return torch.ops.quantized.make_quantized_cell_params_fp16(*halves)
    packed = [
        packed_int8(*int8_per_channel(weight, bits=choice.weight_bits), None if bias is None else bias.clone())
        for weight, bias in pairs
    ]
    # The kernel reads the packed biases; these arguments are only stored.
    nothing = torch.empty(0)
    return torch.ops.quantized.make_quantized_cell_params_dynamic(*packed, nothing, nothing, False)
