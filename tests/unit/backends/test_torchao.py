"""What the torchao backend computes and compiles, on the CPU."""

import base64
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from search_spaces.choice import CHOICES, choice_named
from search_spaces.quantization_map import ActivationRange, SecondMoments, Smoothing
from workers.backends import build_backend
from workers.backends.torchao.backend import TorchAoBackend
from workers.device.processor import this_processor
from workers.errors import BackendError, CalibrationError

BACKEND = TorchAoBackend("cpu")
RANGE = ActivationRange(
    low=-1.0,
    high=3.0,
    smoothing=Smoothing(factors=(0.5, 1.0) * 32, low=-2.0, high=3.0),
    moments=SecondMoments(squares=(1.0, 2.0) * 32, scales=(0.01,), basis=base64.b64encode(bytes(range(64))).decode()),
)
QUANTIZED = [name for name, choice in CHOICES.items() if choice.precision.is_quantized]


def linear(features: int = 64, outputs: int = 32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(features, outputs)


def prepared(name: str, module: nn.Module | None = None, backend: TorchAoBackend = BACKEND) -> nn.Module:
    choice = choice_named(name).with_weight_bits(this_processor().int8_weight_bits)
    return backend.prepare(module or linear(), choice, RANGE if choice.needs_calibration else None)


@torch.inference_mode()
def run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = module(x)
    return outputs


@pytest.mark.parametrize(("name", "largest"), [("int8_static", 127.0), ("fp8_static", 448.0)])
def test_static_scale_is_that_of_the_calibrated_range(name: str, largest: float) -> None:
    layer = prepared(name, nn.Linear(32, 32, bias=False))
    one = torch.zeros(1, 32)
    one[0, 0] = 3.0  # the range's larger end is exact, and what lies beyond is clipped to it
    assert RANGE.symmetric_scale(largest) == 3.0 / largest
    assert torch.equal(run(layer, one * 1.5), run(layer, one))
    assert torch.equal(run(layer, -one), -run(layer, one)), "symmetric"
    assert not torch.equal(run(layer, one * 0.9), run(layer, one))


def test_int8_static_rounds_to_the_integers_of_its_scale() -> None:
    layer, scale = prepared("int8_static"), 3.0 / 127.0
    x = torch.randn(40, 64)
    rounded = torch.round(x / scale).clamp(-128, 127) * scale
    assert torch.allclose(run(layer, x), run(layer, rounded), atol=1e-6)
    assert not torch.allclose(run(layer, x), run(layer, x + scale / 2), atol=1e-6)


@pytest.mark.parametrize("name", ["int8_dynamic", "fp8_dynamic"])
def test_dynamic_scales_are_those_of_each_row(name: str) -> None:
    layer, x = prepared(name, nn.Linear(64, 32, bias=False)), torch.randn(20, 64)
    scales = 2.0 ** torch.arange(-10, 10)[:, None]
    assert torch.allclose(run(layer, x * scales) / scales, run(layer, x), rtol=1e-2)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("rows", [0, 1, 16, 17])
def test_each_row_is_multiplied_as_it_is_among_many(name: str, rows: int) -> None:
    layer, x = prepared(name), torch.randn(64, 64)
    few = run(layer, x[:rows])
    assert few.shape == (rows, 32)
    assert torch.allclose(few, run(layer, x)[:rows], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["int8_static", "int8_dynamic"])
def test_kernel_of_integers_gets_the_rows_it_needs_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, kernel = [], torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: given.append(len(a)) or kernel(a, b))
    for rows in (1, 16, 17):
        run(prepared(name), torch.randn(rows, 64))
    assert given == [32, 32, 17], "CUDA refuses 16 and fewer"


def test_layers_of_one_shape_and_choice_are_compiled_once() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    backend = TorchAoBackend("cpu", compiler=counter)  # type: ignore[arg-type]
    x = torch.randn(40, 64)
    for name in QUANTIZED:
        for module in (linear(), linear(), linear(outputs=48)):
            layer, eager = prepared(name, module, backend), prepared(name, module)
            assert torch.equal(run(layer, x), run(eager, x))
            assert torch.equal(run(layer, x[:24]), run(eager, x[:24]))
            assert torch.equal(run(layer, x[:32].view(2, 16, 64)), run(eager, x[:32].view(2, 16, 64)))
    # That numbers of rows vary is found out once for int4 and once for all others. GPTQ has the product of int4.
    assert counter.frame_count == 2 * (len(QUANTIZED) - 1) + 2


@pytest.mark.parametrize("name", ["int8_dynamic", "fp8_static", "int4_weight_only"])
def test_compiled_layer_takes_any_number_of_rows(name: str) -> None:
    torch._dynamo.reset()
    layer, eager = prepared(name, backend=TorchAoBackend("cpu", compiler="eager")), prepared(name)
    for rows in (40, 24, 17, 16, 2, 1, 0, 64):
        x = torch.randn(rows, 64)
        assert torch.equal(run(layer, x), run(eager, x))
        with torch.no_grad():
            assert torch.equal(layer(x), eager(x))


def test_nothing_is_compiled_by_default() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run(prepared("int8_dynamic"), torch.randn(4, 64))
    assert not torch._dynamo.utils.counters["stats"]
    assert (TorchAoBackend("cpu").name, TorchAoBackend("cpu", compiler="eager").name) == ("torchao", "torchao-compiled")


@pytest.mark.parametrize("name", ["int8_static", "fp8_static"])
def test_static_choice_needs_a_range(name: str) -> None:
    with pytest.raises(CalibrationError, match=f"{name} needs the calibrated range"):
        BACKEND.prepare(linear(), choice_named(name), None)


def test_where_there_is_no_gpu_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match=r"the backend torchao needs a build of PyTorch with CUDA, but this is 2\."):
        build_backend("torchao")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        BackendError, match=r"torchao-compiled needs a CUDA device, but PyTorch sees none.*workers\.gpus"
    ):
        build_backend("torchao-compiled")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert TorchAoBackend().unavailable() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'quant-autotune[export]'" in str(TorchAoBackend().unavailable())
    assert "pip install 'quant-autotune[export]'" in str(TorchAoBackend("cpu").unavailable())


def test_gpu_is_asked_for_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SimpleNamespace(frozen_reason=None, kind="linear", weight_shape=(64, 64))
    for capability, refuses in (((8, 0), True), ((8, 9), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert (TorchAoBackend().refuses(layer, choice_named("fp8_dynamic")) is not None) is refuses  # type: ignore[arg-type]
