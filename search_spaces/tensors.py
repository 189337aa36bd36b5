"""Tensors in whatever modules take and return: alone, in nested containers, or as a packed sequence."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in ``value``, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


def replaced(value: Any, replace: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return ``value`` with ``replace`` of every tensor in the place of the tensor; other parts stay as they are."""
    if isinstance(value, torch.Tensor):
        return replace(value)
    if isinstance(value, Mapping):
        return {key: replaced(part, replace) for key, part in value.items()}
    if not isinstance(value, tuple | list):
        return value
    parts = [replaced(part, replace) for part in value]
    # A named tuple, as packed sequences are, takes its parts one by one.
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def layer_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return what a layer of PyTorch was called with: its first argument, which all of them name ``input``.

    A packed sequence counts with its data, shape ``(steps of all samples, features)``.
    """
    return next(tensors_in(args[0] if args else kwargs["input"]))
