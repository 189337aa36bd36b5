"""Transposed convolutions in half precision take what ``nn.ConvTranspose2d`` takes."""

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from workers.backends.base import Backend
from workers.backends.cpu.backend import CpuBackend
from workers.backends.torchao.backend import TorchAoBackend


@pytest.mark.parametrize("backend", [CpuBackend(), TorchAoBackend("cpu")], ids=lambda backend: backend.name)
@pytest.mark.parametrize("choice", ["bf16", "fp16"])
@pytest.mark.parametrize("output_size", [[15, 15], [16, 15]])
def test_size_of_the_output_may_be_told(backend: Backend, choice: str, output_size: list[int]) -> None:
    conv, x = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1).eval(), torch.randn(2, 4, 8, 8)
    (layer,) = discover(nn.Sequential(conv), lambda model: model(x))
    reason = backend.refuses(layer, CHOICES[choice])
    if reason is not None:
        pytest.skip(reason)
    prepared = backend.prepare(conv, CHOICES[choice], None)
    with torch.inference_mode():
        exact = conv(x, output_size=output_size)
        for actual in (prepared(x, output_size), prepared(input=x, output_size=output_size)):
            assert actual.shape == exact.shape
            assert (actual - exact).norm() < 0.02 * exact.norm()
