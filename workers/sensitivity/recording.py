"""What the layers of the full-precision model take and return on one batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from workers.task import Batch, Task


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one layer."""

    layer: str
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor


def record(
    task: Task, model: nn.Module, layers: Iterable[str], batch: Batch, *, differentiable: bool
) -> tuple[list[Call], torch.Tensor]:
    """Return every call of ``layers`` in order, and the model's outputs.

    If it is to be ``differentiable``, the graph between them comes along. It begins at the layers'
    outputs; parameters are no part of it.
    """
    calls: list[Call] = []
    handles = [model.get_submodule(name).register_forward_hook(_keep(name, calls)) for name in layers]
    try:
        with torch.set_grad_enabled(differentiable), _without_parameters(model):
            outputs = task.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls, outputs


def errors(call: Call, module: nn.Module) -> torch.Tensor:
    """Return what ``module`` in the place of the called layer returns, less what the layer returned."""
    with torch.no_grad():
        replaced: torch.Tensor = module(*call.inputs)
        return replaced - call.output


def _keep(name: str, calls: list[Call]) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
        # Copies, because what follows may change in place what the layer took and what it returned.
        calls.append(Call(name, tuple(value.detach().clone() for value in inputs), output))
        return output.clone()

    return hook


@contextmanager
def _without_parameters(model: nn.Module) -> Iterator[None]:
    wanted: Sequence[nn.Parameter] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
