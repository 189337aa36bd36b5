"""Learns the weights of one block, so that its outputs on quantized inputs come close to those of full precision.

Block reconstruction: Li et al., BRECQ, arXiv:2102.05426; with the inputs of the quantized blocks before it, as in
AutoRound (Cheng et al., arXiv:2309.05516). Rounding is passed over by the straight-through estimator.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from search_spaces.choice import LayerChoice
from search_spaces.quantization_map import ActivationRange
from search_spaces.tensors import tensors_in
from workers.model.prepared import describe, slots
from workers.model.skeleton import sharing_weights
from workers.recovery.calls import Call, outputs_of
from workers.recovery.fake_layer import LearningLayer
from workers.recovery.learned import LearnedLayer

#: Learning rate of weights, in steps of their grid, and of biases, in root mean squares of the block's outputs. Both
#: fall to zero.
_WEIGHTS_RATE, _BIAS_RATE = 0.01, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """What a block gets from the quantized model, and what it should return."""

    #: The inputs of the quantized model, with the output of full precision.
    call: Call
    #: Which positions count, in the shape of the output without its last dimension; None counts all.
    counts: torch.Tensor | None
    #: Samples of which it is the first example.
    samples: int

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in tensors_in((self.call.args, self.call.kwargs, self.call.output)))

    def error(self, output: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error over all positions that count."""
        squares = (output - self.call.output).square()
        return squares.mean() if self.counts is None else squares[self.counts].mean()


def reconstructed(
    block: nn.Module,
    layers: Mapping[str, tuple[LayerChoice, ActivationRange | None]],
    examples: Sequence[Example],
    *,
    epochs: int,
    seed: int,
) -> dict[str, LearnedLayer]:
    """Return what a block's layers learned.

    Args:
        block: the block in full precision; it is not changed.
        layers: name within the block -> choice and calibrated range of the layers that learn. Name "" is the block.
        examples: batches to learn from.
        epochs: passes over them.
        seed: of their order.

    Raises:
        ValueError: if the outputs of full precision are all zero, or not finite.
        RuntimeError: if no gradient passes the block.
    """
    twin, fakes = _twin(block, layers)
    weights = [fake.latent for fake in fakes.values()]
    biases = [fake.bias for fake in fakes.values() if fake.bias is not None]
    scale = float(torch.stack([example.call.output.square().mean() for example in examples]).mean().sqrt())
    if not 0.0 < scale < math.inf:
        raise ValueError(f"the root mean square of its outputs in full precision is {scale:g}")
    optimizer = torch.optim.Adam(
        [{"params": weights, "lr": _WEIGHTS_RATE}, {"params": biases, "lr": _BIAS_RATE * scale}], betas=(0.9, 0.99)
    )
    steps = epochs * len(examples)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    order = random.Random(seed)
    for _ in range(epochs):
        for example in order.sample(examples, len(examples)):
            optimizer.zero_grad()
            loss = example.error(outputs_of(twin, example.call)) / (scale * scale)
            loss.backward(inputs=[*weights, *biases])  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return {name: fake.learned() for name, fake in fakes.items()}


def _twin(
    block: nn.Module, layers: Mapping[str, tuple[LayerChoice, ActivationRange | None]]
) -> tuple[nn.Module, dict[str, LearningLayer]]:
    """Return a copy of a block whose layers learn, and these layers by name."""
    twin = sharing_weights(block)
    _clone_inference_tensors(twin)
    fakes = {
        name: LearningLayer(block.get_submodule(name), choice, calibrated)
        for name, (choice, calibrated) in layers.items()
    }
    if "" in fakes:
        return fakes[""], fakes
    for name, places in slots(twin, {name: twin.get_submodule(name) for name in fakes}).items():
        describe(fakes[name], block.get_submodule(name))
        for children, attribute in places:
            children[attribute] = fakes[name]
    return twin, fakes


def _clone_inference_tensors(twin: nn.Module) -> None:
    """Give a module normal tensors for its inference tensors, because autograd saves none of these."""
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()
