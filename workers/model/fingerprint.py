"""Identity of a model's weights."""

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Return the hexadecimal sha256 over the names, shapes, types and bytes of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
