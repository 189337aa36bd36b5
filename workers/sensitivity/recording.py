"""Record the inputs and outputs of the full-precision model's layers on one batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    #: Output of the layer: its tensor, or several tensors joined into one of shape ``(samples, features)``.
    output: torch.Tensor
    #: Sample dimension of each of several output tensors; None where it is unknown.
    samples: tuple[int | None, ...]


@dataclass(slots=True)
class Recording:
    """Calls of layers in order, for as many layers as fit into the memory bound."""

    #: Bound of the bytes of all calls; the first layer is recorded regardless of its size.
    most_bytes: int
    #: Number of gradients per output to count towards the bytes.
    gradients: int
    calls: list[Call] = field(default_factory=list)
    #: Names, in order, of layers that ran but were not recorded.
    left: dict[str, None] = field(default_factory=dict)
    #: Names of layers whose calls are all recorded.
    taken: set[str] = field(default_factory=set)
    nbytes: int = 0

    def takes(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> bool:
        """Return whether to record a call; a layer has all of its calls recorded or none."""
        nbytes = _nbytes((args, kwargs)) + (1 + self.gradients) * _nbytes(output)
        if name in self.left or (name not in self.taken and self.taken and self.nbytes + nbytes > self.most_bytes):
            self.left[name] = None
            return False
        self.taken.add(name)
        self.nbytes += nbytes
        return True


def record(
    task: Task, model: nn.Module, layers: Iterable[str], batch: Batch, *, gradients: int, most_bytes: int
) -> tuple[Recording, torch.Tensor]:
    """Return the calls of the first ``layers`` that fit into the memory bound, and the model's outputs.

    Args:
        task: runs the model.
        model: the full-precision model.
        layers: names of the layers to record.
        batch: the batch to run.
        gradients: number of gradients that will be held per layer output. If not 0, the outputs carry an autograd
            graph that starts at the recorded layers' outputs and excludes parameters.
        most_bytes: bound of the bytes of layer inputs, outputs and gradients.
    """
    recording = Recording(most_bytes, gradients)
    handles = [
        model.get_submodule(name).register_forward_hook(_keep(name, recording), with_kwargs=True) for name in layers
    ]
    try:
        with torch.set_grad_enabled(gradients > 0), _without_parameters(model):
            outputs = task.forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return recording, outputs


def errors(call: Call, module: nn.Module) -> torch.Tensor:
    """Return the output of ``module`` on the call's inputs minus the recorded output."""
    with torch.no_grad():
        return _joined(module(*call.args, **call.kwargs), call.samples) - call.output


def _keep(name: str, recording: Recording) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not recording.takes(name, args, kwargs, output):
            return output
        samples = _sample_dimensions(module, output)
        joined = _joined(output, samples)
        if torch.is_grad_enabled() and not joined.requires_grad:
            joined.requires_grad_()
        # Copy, because later operations may change the layer's inputs and outputs in place.
        recording.calls.append(Call(name, _copied(args), _copied(kwargs), joined, samples))
        return _parted(joined.clone(), output, samples)

    return hook


def _nbytes(value: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors_in(value))


def _copied(value: Any) -> Any:
    return replaced(value, lambda tensor: tensor.detach().clone())


def _sample_dimensions(module: nn.Module, output: Any) -> tuple[int | None, ...]:
    """Return the sample dimension of each floating-point tensor of ``output``; None where it is unknown."""
    dims = [tensor.dim() for tensor in _floats(output)]
    if isinstance(module, nn.LSTM | nn.GRU) and set(dims) == {3}:
        return (0 if module.batch_first else 1, *[1] * (len(dims) - 1))
    return (None,) * len(dims)


def _floats(output: Any) -> Iterator[torch.Tensor]:
    return (tensor for tensor in tensors_in(output) if tensor.is_floating_point())


def _joined(output: Any, samples: tuple[int | None, ...]) -> torch.Tensor:
    """Return a single tensor unchanged, and several joined into one row per sample, or into one row in all."""
    if isinstance(output, torch.Tensor):
        return output
    tensors = zip(_floats(output), samples, strict=True)
    return torch.cat([t.reshape(1, -1) if at is None else t.movedim(at, 0).flatten(1) for t, at in tensors], dim=1)


def _parted(joined: torch.Tensor, output: Any, samples: tuple[int | None, ...]) -> Any:
    """Return ``output`` with its floating-point tensors replaced by the matching parts of ``joined``."""
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
