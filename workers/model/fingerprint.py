"""Identity of a model's weights."""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Return the hexadecimal sha256 over the names, shapes, types and bytes of the state dict.

    What ``nn.Module.get_extra_state`` returned counts as far as it consists of tensors, text, numbers and containers of
    those; of any other object only its type does.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        for part in _parts(name, value):
            digest.update(part)
    return digest.hexdigest()


def _parts(name: str, value: object) -> Iterator[bytes | memoryview]:
    if isinstance(value, torch.Tensor):
        yield f"{name}:{tuple(value.shape)}:{value.dtype};".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _parts(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _parts(f"{name}.{index}", part)
    else:
        plain = value is None or isinstance(value, str | bytes | int | float | complex)
        yield f"{name}:{value!r};".encode() if plain else f"{name}:{type(value).__qualname__};".encode()
