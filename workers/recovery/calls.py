"""Calls of one module of a model: its inputs and outputs while the model runs."""

import copy
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from search_spaces.tensors import replaced, tensors_in
from workers.recovery.blocks import Block
from workers.task import Batch, Task


class _Reached(BaseException):
    """Ends a pass once the module was called for the last time; a task's own code does not catch it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: Main output, shape ``(samples, ...)``.
    output: torch.Tensor


def recorded(task: Task, model: nn.Module, block: Block, batches: Sequence[Batch]) -> Generator[list[Call], None, None]:
    """Yield the calls of a block in a pass over each batch; a pass ends with the last of them."""
    module = model.get_submodule(block.name)
    found: list[Call] = []
    pending: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending.append(_all_copied(args, kwargs))  # the block may change its inputs

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        taken, named = pending.pop()
        found.append(Call(args=taken, kwargs=named, output=main_output(output).clone()))
        if len(found) == block.calls:
            raise _Reached

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        for batch in batches:
            with torch.no_grad(), suppress(_Reached):
                task.forward(model, batch)
            calls, found = found, []
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def outputs_of(module: nn.Module, call: Call) -> torch.Tensor:
    """Return the main output of a module for the inputs of a call."""
    args, kwargs = _all_copied(call.args, call.kwargs)
    return main_output(module(*args, **kwargs))


def main_output(output: Any) -> torch.Tensor:
    """Return the first floating-point tensor of a module's output, such as the hidden states."""
    return next(tensor for tensor in tensors_in(output) if tensor.is_floating_point())


def _copied(value: Any) -> Any:
    """Return a copy of an argument: its tensors without gradients, and objects such as the cache of a decoder."""
    if isinstance(value, tuple | list | dict | torch.Tensor):
        return replaced(value, lambda tensor: tensor.detach().clone())
    return copy.deepcopy(value)


def _all_copied(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_copied, args)), {name: _copied(value) for name, value in kwargs.items()}
