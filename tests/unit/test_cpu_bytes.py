import pytest
import torch
from torch import nn
from workers.backends.cpu.backend import CpuBackend

from search_spaces.choice import CHOICES
from search_spaces.quantization_map import ActivationRange
from workers.backends.packed import PackedLayer

BACKEND = CpuBackend()
RANGE = ActivationRange(low=-1.0, high=1.0)
PRODUCTS = ["bf16", "int8_static", "int8_dynamic"]
CASES = [
    *((lambda: nn.Linear(64, 48), choice) for choice in (*PRODUCTS, "int8_weight_only", "int4_weight_only")),
    *((lambda: nn.Linear(33, 7, bias=False), choice) for choice in (*PRODUCTS, "int8_weight_only")),
    *((lambda: nn.Conv2d(6, 8, 3, groups=2), choice) for choice in PRODUCTS),
    *((lambda: nn.Conv1d(6, 8, 3), choice) for choice in PRODUCTS),
    (lambda: nn.Embedding(9, 6), "bf16"),
]


def prepare(module: nn.Module, choice: str) -> PackedLayer:
    prepared = BACKEND.prepare(module, CHOICES[choice], RANGE)
    assert isinstance(prepared, PackedLayer)
    return prepared


@pytest.mark.parametrize(("build", "choice"), CASES)
def test_bytes_are_those_of_all_tensors_held(build: type[nn.Module], choice: str) -> None:
    prepared = prepare(build(), choice)
    held = [value for value in vars(prepared).values() if isinstance(value, torch.Tensor)]
    assert BACKEND.weight_bytes(prepared) == sum(tensor.nbytes for tensor in held)
    assert [*prepared.parameters(), *prepared.buffers(), *prepared.children()] == []


@pytest.mark.parametrize(
    ("choice", "pack"),
    [
        ("int8_weight_only", torch.ops.quantized.embedding_bag_byte_prepack),
        ("int4_weight_only", torch.ops.quantized.embedding_bag_4bit_prepack),
    ],
)
def test_embedding_bytes_are_those_of_the_packed_rows(choice: str, pack: torch._ops.OpOverloadPacket) -> None:
    embedding = nn.Embedding(11, 6)
    # The same rows as a plain tensor; the packed object does not show its storage.
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
    text = repr(prepare(nn.Linear(32, 16), "int8_dynamic"))
    assert text == "Int8Linear(in_features=32, out_features=16, bias=True, packed_bytes=704)"
