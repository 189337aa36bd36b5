"""Tensors among the inputs and outputs of modules: single, in nested containers, or in packed sequences."""

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
    """Return ``value`` with every tensor replaced by ``replace(tensor)``; other parts are unchanged."""
    if isinstance(value, torch.Tensor):
        return replace(value)
    if isinstance(value, Mapping):
        parts_by_key = {key: replaced(part, replace) for key, part in value.items()}
        # Such as a transformers BatchEncoding; a mapping that cannot be made of a dict becomes one.
        try:
            return type(value)(parts_by_key)  # type: ignore[call-arg]
        except TypeError:
            return parts_by_key
    if not isinstance(value, tuple | list):
        return value
    parts = [replaced(part, replace) for part in value]
    # A named tuple, such as a packed sequence, takes its parts as separate arguments.
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def layer_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the input of a PyTorch layer call: the first argument, which every layer names ``input``.

    For a packed sequence this is its data, shape ``(steps of all samples, features)``.
    """
    return next(tensors_in(args[0] if args else kwargs["input"]))
