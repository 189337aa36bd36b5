import importlib.util
import platform
from dataclasses import replace

import pytest
import torch
from workers.backends.cpu.backend import CpuBackend

from search_spaces.choice import CHOICES
from search_spaces.layer import Layer, LayerKind
from workers.backends import build_backend
from workers.errors import BackendError

LINEAR = Layer(
    name="fc", kind=LayerKind.LINEAR, weight_shape=(64, 96), has_bias=True, weight_bytes=24_832, input_shape=(1, 96),
    flops=12_288, calls=1, order=0, group="fc",
)  # fmt: skip
CONV = replace(LINEAR, kind=LayerKind.CONV2D, weight_shape=(8, 3, 3, 3))
UP = replace(LINEAR, kind=LayerKind.CONV_TRANSPOSE2D, weight_shape=(8, 3, 2, 2))
LSTM = replace(LINEAR, kind=LayerKind.LSTM, weight_shape=(1, 1, 64, 96))
EMBEDDING = replace(LINEAR, kind=LayerKind.EMBEDDING, weight_shape=(10, 6), has_bias=False)
BAG = replace(EMBEDDING, kind=LayerKind.EMBEDDING_BAG, weight_shape=(10, 7))


def with_processor(monkeypatch: pytest.MonkeyPatch, **features: bool) -> CpuBackend:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    return CpuBackend()


def test_every_kind_takes_full_precision() -> None:
    assert [CpuBackend().refuses(layer, CHOICES["fp32"]) for layer in (LINEAR, CONV, UP, LSTM, EMBEDDING, BAG)] == [
        None
    ] * 6


@pytest.mark.parametrize(
    ("layer", "choice", "reason"),
    [
        (LINEAR, "fp16", "no fp16 kernel for linear layers; they take fp32, bf16"),
        (LINEAR, "fp8_dynamic", "no fp8_dynamic kernel"),
        (CONV, "int8_weight_only", "no int8_weight_only kernel for conv2d layers; they take fp32, bf16, int8_static"),
        (CONV, "int4_weight_only", "no int4_weight_only kernel for conv2d"),
        (UP, "int8_static", "int8 kernels of transposed convolutions are wrong"),
        (UP, "int4_weight_only", "no int4_weight_only kernel for conv_transpose2d layers; they take fp32, bf16"),
        (BAG, "int8_static", "integer indices"),
        (BAG, "int4_weight_only", "two features a byte"),
        (EMBEDDING, "int8_static", "integer indices"),
        (LSTM, "int8_static", "hidden states are inputs too"),
        (LSTM, "int8_weight_only", "no int8_weight_only kernel for lstm layers; they take fp32, bf16, int8_dynamic"),
        (EMBEDDING, "int8_dynamic", "integer indices"),
        (replace(LINEAR, weight_shape=(64, 100)), "int4_weight_only", "divisible by 32, but this layer has 100"),
        (replace(LINEAR, weight_shape=(10, 96)), "int4_weight_only", "divisible by 16, but this layer has 10"),
        (replace(EMBEDDING, weight_shape=(10, 7)), "int4_weight_only", "two features a byte"),
        (replace(LINEAR, frozen_reason="never ran"), "bf16", "never ran"),
    ],
)
def test_refusal_says_why(monkeypatch: pytest.MonkeyPatch, layer: Layer, choice: str, reason: str) -> None:
    backend = with_processor(monkeypatch, avx2=True, avx512_vnni=True, avx512_bf16=True)
    assert reason in str(backend.refuses(layer, CHOICES[choice]))


def test_bf16_needs_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "AVX512-BF16" in str(with_processor(monkeypatch, avx2=True).refuses(LINEAR, CHOICES["bf16"]))
    assert with_processor(monkeypatch, amx_bf16=True).refuses(LINEAR, CHOICES["bf16"]) is None


@pytest.mark.parametrize("choice", ["int8_static", "int8_dynamic"])
def test_int8_products_need_vnni(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    assert "saturate" in str(with_processor(monkeypatch, avx2=True).refuses(LINEAR, CHOICES[choice]))
    assert with_processor(monkeypatch, avx_vnni=True).refuses(LINEAR, CHOICES[choice]) is None


def test_weight_only_needs_no_int8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_processor(monkeypatch, avx2=True).refuses(LINEAR, CHOICES["int8_weight_only"]) is None


def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "this is aarch64" in str(CpuBackend().unavailable())
    with pytest.raises(BackendError, match=r"no backend can run on this hardware\. x86: needs an x86-64 processor"):
        build_backend("auto")


def test_processors_without_avx2_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert "AVX2" in str(with_processor(monkeypatch).unavailable())


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(BackendError, match="unknown backend 'x87'; did you mean 'x86'"):
        build_backend("x87")
