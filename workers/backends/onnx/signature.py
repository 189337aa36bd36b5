"""The signature of a task's model calls: inputs, their varying dimensions, and the form of the output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers.errors import BackendError
from workers.task import Batch, Task, splits


class _Caught(Exception):
    """Aborts a forward pass after its inputs have been captured."""


#: Arguments of one call, by position and by name.
Arguments = dict[int | str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """How a model is called: tensors vary between calls, all other arguments are fixed to the first call's."""

    #: The arguments of the first call.
    arguments: Arguments
    #: Position or name of each tensor -> dimensions whose size varies.
    varying: Mapping[int | str, tuple[int, ...]]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Tensors of the first call, in the order of ``varying``."""
        return tuple(self.arguments[key] for key in self.varying)

    def call(self, model: nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the result of ``model`` for ``tensors``, given in the order of ``varying``."""
        arguments = self.arguments | dict(zip(self.varying, tensors, strict=True))
        args = [value for key, value in arguments.items() if isinstance(key, int)]
        return model(*args, **{key: value for key, value in arguments.items() if isinstance(key, str)})


def task_batches(task: Task, batch_sizes: Sequence[int]) -> list[Batch]:
    """Return every batch that the task runs its model on, starting with a real evaluation batch."""
    timed = [task.latency_batch(size) for size in batch_sizes]
    return [*(batch for split in splits(task) for batch in task.evaluation(split)), *task.calibration(), *timed]


def signature(task: Task, model: nn.Module, batches: Sequence[Batch]) -> Signature:
    """Return the signature with which ``task`` calls ``model`` for ``batches``; runs no layer.

    The first dimension counts samples and always varies; other dimensions vary if the batches differ in them.

    Raises:
        BackendError: if an argument is a container, or batches pass different kinds of arguments.
    """
    seen = [_arguments(task, model, batch) for batch in batches]
    varying: dict[int | str, tuple[int, ...]] = {}
    for key, value in seen[0].items():
        if isinstance(value, list | tuple | dict):
            raise BackendError(
                f"the model's argument {key!r} is a {type(value).__name__}; only tensors can be exported"
            )
        if isinstance(value, torch.Tensor):
            varying[key] = _varying(key, [arguments.get(key) for arguments in seen])
    return Signature(arguments=seen[0], varying=varying)


def _varying(key: int | str, values: Sequence[Any]) -> tuple[int, ...]:
    shapes = {tuple(value.shape) for value in values if isinstance(value, torch.Tensor)}
    if not all(isinstance(value, torch.Tensor) for value in values) or len({len(shape) for shape in shapes}) > 1:
        raise BackendError(f"the model's argument {key!r} is not the same kind of tensor for every batch of the task")
    return tuple(dim for dim, sizes in enumerate(zip(*shapes, strict=True)) if dim == 0 or len(set(sizes)) > 1)


def _arguments(task: Task, model: nn.Module, batch: Batch) -> Arguments:
    caught: list[Arguments] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(dict([*enumerate(args), *kwargs.items()]))
        raise _Caught

    handle = model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        task.forward(model, batch)
    except _Caught:
        return caught[0]
    finally:
        handle.remove()
    raise BackendError("the task's forward never calls its model, so there is nothing to export")


class Outputs(dict[str, torch.Tensor]):
    """A model's outputs by name, read by key, by attribute or by position."""

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the exported model has no output {name!r}; it has {', '.join(self)}") from None

    def __getitem__(self, key: str | int) -> torch.Tensor:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def named_outputs(result: Any) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the form of a model's result and its tensors by name.

    Forms are ``tensor``, ``sequence`` and ``mapping``. Entries of a mapping that are not tensors, such as caches, are
    omitted.

    Raises:
        BackendError: if the result has another form.
    """
    if isinstance(result, torch.Tensor):
        return "tensor", {"output": result}
    if isinstance(result, Mapping):
        tensors = {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}
        if tensors:
            return "mapping", tensors
    if isinstance(result, tuple | list) and result and all(isinstance(value, torch.Tensor) for value in result):
        return "sequence", {f"output_{number}": value for number, value in enumerate(result)}
    raise BackendError(
        f"the model returns a {type(result).__name__}, but only tensors by position or name are exported"
    )


def in_form(form: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return named tensors in the form of the model's result."""
    match form:
        case "tensor":
            return next(iter(tensors.values()))
        case "sequence":
            return tuple(tensors.values())
    return Outputs(tensors)
