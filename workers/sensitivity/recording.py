"""What the layers of the full-precision model take and return on one batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from search_spaces.tensors import replaced, tensors_in
from workers.task import Batch, Task


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one layer."""

    layer: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: What the layer returned: its tensor, or several joined to one of shape ``(samples, features)``.
    output: torch.Tensor
    #: Dimension that counts samples in each of several tensors; None where that is not known.
    samples: tuple[int | None, ...]


def record(
    task: Task, model: nn.Module, layers: Iterable[str], batch: Batch, *, differentiable: bool
) -> tuple[list[Call], torch.Tensor]:
    """Return every call of ``layers`` in order, and the model's outputs.

    If it is to be ``differentiable``, the graph between them comes along. It begins at the layers'
    outputs; parameters are no part of it.
    """
    calls: list[Call] = []
    handles = [model.get_submodule(name).register_forward_hook(_keep(name, calls), with_kwargs=True) for name in layers]
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
        return _joined(module(*call.args, **call.kwargs), call.samples) - call.output


def _keep(name: str, calls: list[Call]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        samples = _sample_dimensions(module, output)
        joined = _joined(output, samples)
        if torch.is_grad_enabled() and not joined.requires_grad:
            joined.requires_grad_()
        # Copies, because what follows may change in place what the layer took and what it returned.
        calls.append(Call(name, _copied(args), _copied(kwargs), joined, samples))
        return _parted(joined.clone(), output, samples)

    return hook


def _copied(value: Any) -> Any:
    return replaced(value, lambda tensor: tensor.detach().clone())


def _sample_dimensions(module: nn.Module, output: Any) -> tuple[int | None, ...]:
    """Return which dimension counts samples in each floating-point tensor of several; None if none is known to."""
    dims = [tensor.dim() for tensor in _floats(output)]
    if isinstance(module, nn.LSTM | nn.GRU) and set(dims) == {3}:
        return (0 if module.batch_first else 1, *[1] * (len(dims) - 1))
    return (None,) * len(dims)


def _floats(output: Any) -> Iterator[torch.Tensor]:
    return (tensor for tensor in tensors_in(output) if tensor.is_floating_point())


def _joined(output: Any, samples: tuple[int | None, ...]) -> torch.Tensor:
    """Return one tensor as it is, and several as a row for each sample, or as one row in all."""
    if isinstance(output, torch.Tensor):
        return output
    tensors = zip(_floats(output), samples, strict=True)
    return torch.cat([t.reshape(1, -1) if at is None else t.movedim(at, 0).flatten(1) for t, at in tensors], dim=1)


def _parted(joined: torch.Tensor, output: Any, samples: tuple[int | None, ...]) -> Any:
    """Return ``output`` with its floating-point tensors cut out of ``joined``."""
    if isinstance(output, torch.Tensor):
        return joined
    columns = torch.split(joined, [tensor.numel() // len(joined) for tensor in _floats(output)], dim=1)
    parts = zip(columns, samples, strict=True)

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        part, at = next(parts)
        return part.reshape(tensor.shape if at is None else tensor.movedim(at, 0).shape).movedim(0, at or 0)

    return replaced(output, cut)


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
