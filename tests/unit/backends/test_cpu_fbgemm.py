"""FBGEMM's int8 weights come from quantized tensors: in silence, and refused where PyTorch has none."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from search_spaces.choice import CHOICES
from workers.backends.cpu.fbgemm import has_fbgemm, packs_int8
from workers.backends.cpu.kernels import KERNELS
from workers.device.processor import this_processor

#: Prepares and runs a layer with every kernel that this processor has, and prints warnings about quantized tensors.
EVERY_KERNEL = """
import warnings
import torch
from torch import nn
from search_spaces.choice import CHOICES
from search_spaces.layer import LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.kernels import KERNELS
from workers.backends.cpu.selection import only
from workers.device.processor import this_processor

LAYERS = {
    LayerKind.LINEAR: (nn.Linear(32, 32), torch.randn(3, 32)),
    LayerKind.CONV1D: (nn.Conv1d(4, 4, 3), torch.randn(1, 4, 8)),
    LayerKind.CONV2D: (nn.Conv2d(4, 4, 3), torch.randn(1, 4, 8, 8)),
    LayerKind.LSTM: (nn.LSTM(8, 8), torch.randn(3, 1, 8)),
    LayerKind.GRU: (nn.GRU(8, 8), torch.randn(3, 1, 8)),
    LayerKind.EMBEDDING: (nn.Embedding(5, 4), torch.tensor([1, 4])),
    LayerKind.EMBEDDING_BAG: (nn.EmbeddingBag(5, 4), torch.tensor([[1, 4]])),
}
torch.set_warn_always(True)
done = 0
with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
    warnings.simplefilter("always")
    for kernel in KERNELS:
        for kind in set(kernel.kinds) & set(LAYERS):
            for choice in map(CHOICES.get, kernel.choices):
                choice = choice.with_weight_bits(7)
                if choice.is_smooth or choice.is_gptq or kernel.lacks(this_processor(), choice):
                    continue
                module, x = LAYERS[kind]
                only(kernel, []).prepare(module, choice, ActivationRange(low=-4.0, high=4.0))(x)
                done += 1
assert done > 10
print(*(warning.message for warning in caught if "quantized tensor" in str(warning.message)))
"""


def test_no_kernel_warns_of_quantized_tensors() -> None:
    # PyTorch prints some warnings itself, past Python.
    done = subprocess.run([sys.executable, "-c", EVERY_KERNEL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert "quantized tensor" not in done.stderr


@pytest.fixture
def without_quantized_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A PyTorch that has removed them."""
    packs_int8.cache_clear()
    monkeypatch.delattr(torch, "_make_per_channel_quantized_tensor")
    yield
    packs_int8.cache_clear()


@pytest.mark.skipif(not has_fbgemm(), reason="x86 only")
def test_fbgemm_packs_int8() -> None:
    assert packs_int8()


@pytest.mark.usefixtures("without_quantized_tensors")
def test_a_pytorch_without_quantized_tensors_packs_no_int8() -> None:
    assert not packs_int8()


@pytest.mark.skipif(not has_fbgemm(), reason="x86 only")
@pytest.mark.usefixtures("without_quantized_tensors")
def test_fbgemm_is_refused_only_what_needs_quantized_tensors() -> None:
    reasons = {
        (kind, choice): kernel.lacks(this_processor(), CHOICES[choice].with_weight_bits(7))
        for kernel in KERNELS
        if kernel.name == "fbgemm"
        for kind in kernel.kinds
        for choice in kernel.choices
    }
    for (_, choice), reason in reasons.items():
        assert (reason is None) == (choice == "fp16")
        assert reason is None or "quantized tensors, which this version of PyTorch has removed" in reason
