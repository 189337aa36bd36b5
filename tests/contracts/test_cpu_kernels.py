"""What every CPU kernel promises: the original's forms, its own bytes, and the numbers of the other kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES, Precision
from search_spaces.discovery import discover, kind_of
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange, Smoothing
from search_spaces.tensors import tensors_in
from workers.backends.cpu.backend import CpuBackend
from workers.backends.cpu.kernels import KERNELS, Kernel
from workers.backends.cpu.selection import only
from workers.backends.packed import PackedLayer, range_of
from workers.calibration.moments import MomentSketch
from workers.device.processor import this_processor

BUILDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(64, 48), (5, 7, 64)),
    "linear-of-one-row": (lambda: nn.Linear(128, 32, bias=False), (1, 128)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 12)),
    "conv2d": (lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1), (2, 8, 9, 9)),
    "conv2d-depthwise": (lambda: nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False), (1, 8, 6, 6)),
    "transposed-conv1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 12)),
    "transposed-conv2d": (lambda: nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=2), (2, 8, 9, 9)),
    "lstm": (lambda: nn.LSTM(32, 48), (7, 3, 32)),
    "gru": (lambda: nn.GRU(6, 7, bidirectional=True), (5, 2, 6)),
    "embedding": (lambda: nn.Embedding(20, 10), (3, 4)),
    "embedding-bag": (lambda: nn.EmbeddingBag(20, 10, mode="sum"), (3, 4)),
}
CASES = [
    pytest.param(kernel, choice, bits, case, id=f"{kernel.name}-{choice}-{bits}-{case}")
    for kernel in KERNELS
    for choice in kernel.choices
    for bits in ((8, 7) if CHOICES[choice].needs_int8_products else (8,))
    for case, (build, _) in BUILDS.items()
    if kind_of(build()) in kernel.kinds
]


def made(case: str) -> tuple[nn.Module, Layer, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = BUILDS[case]
    model = nn.Sequential(build()).eval()
    looks_up = isinstance(model[0], nn.Embedding | nn.EmbeddingBag)
    x = torch.randint(0, 20, shape) if looks_up else torch.randn(shape).clamp(-4.0, 4.0)
    (layer,) = discover(model, lambda m: m(x))
    return model[0], layer, x


def calibrated(module: nn.Module) -> ActivationRange:
    channels = getattr(module, "in_features", 1)
    factors = tuple(1.0 + 0.5 * (channel % 3) for channel in range(channels))
    sketch = MomentSketch(channels)
    sketch.add(torch.randn(64, channels, generator=torch.Generator().manual_seed(0)).cumsum(dim=1))
    smoothing = Smoothing(factors=factors, low=-4.1, high=4.2)
    # No input is a tie between two integers, which libraries may round to either.
    return ActivationRange(low=-4.1, high=4.2, smoothing=smoothing, moments=sketch.moments())


def prepared(kernel: Kernel, module: nn.Module, choice: str, bits: int) -> PackedLayer | None:
    """The layer, or None if this processor lacks what the kernel needs."""
    wanted = CHOICES[choice].with_weight_bits(bits)
    if kernel.lacks(this_processor(), wanted) is not None:
        return None
    with torch.no_grad():
        return only(kernel, []).prepare(module, wanted, range_of(wanted, calibrated(module)))


@pytest.mark.parametrize(("kernel", "choice", "bits", "case"), CASES)
def test_kernel_computes_what_the_others_do(kernel: Kernel, choice: str, bits: int, case: str) -> None:
    module, layer, x = made(case)
    found = prepared(kernel, module, choice, bits)
    if found is None:
        pytest.skip(str(kernel.lacks(this_processor(), CHOICES[choice].with_weight_bits(bits))))
    assert found.packed_bytes == CpuBackend().layer_bytes(layer, CHOICES[choice])
    with torch.inference_mode():
        exact, actual = module(x), found(x)
        assert all(torch.equal(*pair) for pair in zip(tensors_in(actual), tensors_in(found(x)), strict=True))
    for was, now in zip(tensors_in(exact), tensors_in(actual), strict=True):
        assert (now.shape, now.dtype, now.stride()) == (was.shape, was.dtype, was.stride())
        coarse = {Precision.INT4: 0.15, Precision.INT8: 0.05}.get(CHOICES[choice].precision, 0.02)
        assert (now - was).norm() < coarse * was.norm()
    others = [k for k in KERNELS if LayerKind(layer.kind) in k.kinds and choice in k.choices and k is not kernel]
    for other in others:
        twin = prepared(other, module, choice, bits)
        if twin is not None:
            with torch.inference_mode():
                apart = (actual - twin(x)).norm() / actual.norm()
            # bf16 products round inputs; all else are the same integers, or the same weights in fp32.
            assert apart < (1e-5 if {"bf16", "int8pack", "int4pack"}.isdisjoint((kernel.name, other.name)) else 5e-3)


def test_a_kernel_without_needs_comes_first() -> None:
    for kind in LayerKind:
        for choice in CHOICES:
            able = [kernel for kernel in KERNELS if kind in kernel.kinds and choice in kernel.choices]
            assert len(able) < 2 or able[0].name == "fp32"
