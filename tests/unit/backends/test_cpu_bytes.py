from collections.abc import Callable

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.layer import LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu.backend import CpuBackend
from workers.backends.cpu.int8_products import OneDnnProduct, WidenedProduct
from workers.backends.cpu.kernels import KERNELS, Kernel
from workers.backends.cpu.selection import only
from workers.backends.packed import PackedLayer
from workers.device.processor import this_processor

BACKEND = CpuBackend()
RANGE = ActivationRange(low=-1.0, high=1.0)
BUILDS: dict[LayerKind, list[Callable[[], nn.Module]]] = {
    LayerKind.LINEAR: [lambda: nn.Linear(64, 48), lambda: nn.Linear(32, 16, bias=False)],
    LayerKind.CONV2D: [lambda: nn.Conv2d(6, 8, 3, groups=2)],
    LayerKind.CONV1D: [lambda: nn.Conv1d(6, 8, 3)],
    LayerKind.EMBEDDING: [lambda: nn.Embedding(9, 6)],
    LayerKind.EMBEDDING_BAG: [lambda: nn.EmbeddingBag(9, 6)],
}
#: Kernels that hold plain tensors; the objects of others do not show their storage.
CASES = [
    pytest.param(build, kernel, choice, id=f"{kind}-{number}-{kernel.name}-{choice}")
    for kind, builds in BUILDS.items()
    for number, build in enumerate(builds)
    for kernel in KERNELS
    if kind in kernel.kinds and kernel.name != "fbgemm"
    for choice in kernel.choices
    if not (CHOICES[choice].is_smooth or CHOICES[choice].is_gptq)
]


def prepare(module: nn.Module, choice: str) -> PackedLayer:
    bits = this_processor().int8_weight_bits
    prepared = BACKEND.prepare(module, CHOICES[choice].with_weight_bits(bits), RANGE)
    assert isinstance(prepared, PackedLayer)
    return prepared


@pytest.mark.parametrize(("build", "kernel", "choice"), CASES)
def test_bytes_are_those_of_all_tensors_held(build: Callable[[], nn.Module], kernel: Kernel, choice: str) -> None:
    wanted = CHOICES[choice].with_weight_bits(7)
    lacking = kernel.lacks(this_processor(), wanted)
    if lacking is not None:
        pytest.skip(lacking)
    with torch.no_grad():
        prepared = only(kernel, []).prepare(build(), wanted, RANGE)
    held = {id(tensor): tensor.nbytes for tensor in tensors_of(prepared)}
    outputs = layer_outputs(prepared)
    # Zero points of weights are counted, of which fp32 needs none.
    unneeded = 4 * outputs if kernel.name == "fp32" and wanted.needs_int8_products else 0
    assert prepared.packed_bytes == sum(held.values()) + unneeded
    assert [*prepared.parameters(), *prepared.buffers(), *prepared.children()] == []


def layer_outputs(prepared: PackedLayer) -> int:
    holder = vars(prepared).get("_product", prepared)
    return len(getattr(holder, "_scales", ()))


def tensors_of(holder: object) -> list[torch.Tensor]:
    """All tensors that a layer holds, also in its product and in a module it hides."""
    found = []
    for value in vars(holder).values():
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list):
            found += [tensor for item in value if isinstance(item, nn.Module) for tensor in item.parameters()]
        elif isinstance(value, OneDnnProduct | WidenedProduct):
            found += tensors_of(value)
    return found


@pytest.mark.parametrize(
    ("choice", "pack"),
    [
        ("int8_weight_only", torch.ops.quantized.embedding_bag_byte_prepack),
        ("int4_weight_only", torch.ops.quantized.embedding_bag_4bit_prepack),
    ],
)
def test_embedding_bytes_are_those_of_the_packed_rows(choice: str, pack: torch._ops.OpOverloadPacket) -> None:
    embedding = nn.Embedding(11, 6)
    assert BACKEND.weight_bytes(prepare(embedding, choice)) == pack(embedding.weight.detach()).nbytes


def test_preparing_shares_nothing_with_the_original() -> None:
    linear = nn.Linear(32, 16)
    prepared = prepare(linear, "int8_dynamic")
    x = torch.randn(2, 32)
    before = prepared(x)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    assert torch.equal(prepared(x), before)


def test_prepared_layer_says_what_it_holds() -> None:
    layer = prepare(nn.Linear(32, 16), "int8_dynamic")
    assert layer.kernel in ("fp32", "onednn", "fbgemm")
    assert repr(layer) == (
        f"Int8Linear(in_features=32, out_features=16, bias=True, kernel={layer.kernel}, packed_bytes=704)"
    )
