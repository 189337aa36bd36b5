import platform
from dataclasses import replace

import pytest
import torch

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.backends import build_backend
from workers.backends.cpu import kernels
from workers.backends.cpu.backend import CpuBackend
from workers.candidate import Candidate
from workers.device.processor import MASK
from workers.errors import BackendError
from workers.measurement import Measurement
from workers.model.prepared import PreparedModel
from workers.pools.inline import InlinePool
from workers.setup import MeasurementSettings, WorkerSetup
from workers.tasks import register
from workers.tasks.generic import GenericTask

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
    monkeypatch.delenv(MASK, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    return CpuBackend()


def test_every_kind_takes_full_precision() -> None:
    assert [CpuBackend().refuses(layer, CHOICES["fp32"]) for layer in (LINEAR, CONV, UP, LSTM, EMBEDDING, BAG)] == [
        None
    ] * 6


@pytest.mark.parametrize(
    ("layer", "choice", "reason"),
    [
        (LINEAR, "fp8_dynamic", "no CPU kernel computes fp8_dynamic linear layers; they take fp32, bf16, fp16, int8"),
        (CONV, "int8_weight_only", "int8_weight_only conv2d layers; they take fp32, bf16, fp16, int8_static"),
        (CONV, "int4_weight_only", "no CPU kernel computes int4_weight_only conv2d"),
        (UP, "int8_static", "int8 kernels of transposed convolutions are wrong"),
        (UP, "int4_weight_only", "int4_weight_only conv_transpose2d layers; they take fp32, bf16, fp16"),
        (BAG, "int8_static", "integer indices"),
        (BAG, "int4_weight_only", "two features per byte"),
        (EMBEDDING, "int8_static", "integer indices"),
        (LSTM, "int8_static", "hidden states are inputs too"),
        (LSTM, "int8_weight_only", "int8_weight_only lstm layers; they take fp32, bf16, fp16, int8_dynamic"),
        (EMBEDDING, "int8_dynamic", "integer indices"),
        (replace(LINEAR, weight_shape=(64, 100)), "int4_weight_only", "divisible by 32, but this layer has 100"),
        (replace(EMBEDDING, weight_shape=(10, 7)), "int4_weight_only", "two features per byte"),
        (replace(LINEAR, frozen_reason="never ran"), "bf16", "never ran"),
    ],
)
def test_refusal_says_why(monkeypatch: pytest.MonkeyPatch, layer: Layer, choice: str, reason: str) -> None:
    backend = with_processor(monkeypatch, avx2=True, avx512_vnni=True, avx512_bf16=True)
    assert reason in str(backend.refuses(layer, CHOICES[choice]))


def test_bf16_needs_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "AVX512-BF16" in str(with_processor(monkeypatch, avx2=True).refuses(LINEAR, CHOICES["bf16"]))
    assert with_processor(monkeypatch, amx_bf16=True).refuses(LINEAR, CHOICES["bf16"]) is None


def test_lookups_of_bf16_need_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = with_processor(monkeypatch, avx2=True)
    assert [backend.refuses(layer, CHOICES["bf16"]) for layer in (EMBEDDING, BAG)] == [None, None]


@pytest.mark.parametrize(
    ("features", "linear", "lstm"),
    [
        ({"avx2": True}, 7, 7),
        ({"avx2": True, "avx_vnni": True}, 8, 7),  # FBGEMM has no VNNI of 256 bits
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True}, 8, 8),
    ],
)
def test_bits_follow_the_processor(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], linear: int, lstm: int
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    backend = with_processor(monkeypatch, **features)
    assert [backend.int8_weight_bits(layer) for layer in (LINEAR, CONV, LSTM)] == [linear, linear, lstm]


def test_eight_bits_without_vnni_run_where_fp32_computes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    backend, choice = with_processor(monkeypatch, avx2=True), CHOICES["int8_dynamic"]
    assert [backend.refuses(layer, choice) for layer in (LINEAR, CONV)] == [None, None]
    assert backend.kernel(torch.nn.Linear(96, 64), choice, [(1, 96)]) == "fp32"
    assert "products of 8-bit weights would saturate" in str(backend.refuses(LSTM, choice))
    assert backend.refuses(LSTM, choice.with_weight_bits(7)) is None


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> CpuBackend:
    """The backend on a pretended ARM64 processor, whose build of PyTorch has neither FBGEMM nor oneDNN."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(kernels, "has_fbgemm", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    return with_processor(monkeypatch, neon=True)


def test_auto_finds_something_on_arm(arm: CpuBackend) -> None:
    assert build_backend("auto").name == "cpu"
    assert (arm.unavailable(), arm.int8_weight_bits(LINEAR)) == (None, 8)
    assert "NEON" in arm.hardware()


def test_layers_run_without_any_kernel_of_x86(arm: CpuBackend) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Unflatten(1, (1, 64)), torch.nn.Conv1d(1, 4, 3))
    x = torch.randn(5, 64)
    layers = [layer for layer in discover(model, lambda m: m(x)) if layer.kind is not LayerKind.EMBEDDING]
    names = {"0": "int8_static", "2": "int8_dynamic"}
    prepared = PreparedModel(model, layers, arm, {"0": ActivationRange(low=-4.0, high=4.0)})
    with torch.inference_mode():
        exact = model(x)
        for linear in ("int8_static", "int8_dynamic_per_token", "int8_weight_only", "int4_weight_only", "fp16"):
            prepared.apply(names | {"0": linear})
            assert 0.0 < (model(x) - exact).norm() < 0.15 * exact.norm()
    assert prepared.kernels()["0"]["int8_static"] == "fp32"


@register("on-arm")
def on_arm() -> GenericTask:
    def build() -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    return GenericTask(build, torch.randn(6, 8, 32, generator=torch.Generator().manual_seed(1)))


@pytest.mark.usefixtures("arm")
def test_a_model_is_probed_and_measured_on_arm() -> None:
    pool = InlinePool(WorkerSetup(task="on-arm", measurement=MeasurementSettings(repeats=5, warmup_s=0.0)))
    assert pool.describe().kernels["0"]["int8_static"] == "fp32"
    assert {probe.choice for probe in pool.probe().layers} >= {"fp32", "fp16", "int8_static", "int8_weight_only"}
    pool.submit(Candidate(number=0, choices={"0": "int8_static", "2": "int8_dynamic_per_token"}))
    (outcome,) = pool.wait(0.0)
    assert isinstance(outcome.result, Measurement)
    assert outcome.result.divergence < 1e-3


def test_recurrent_layers_stay_in_full_precision_on_arm(arm: CpuBackend) -> None:
    assert "needs FBGEMM" in str(arm.refuses(LSTM, CHOICES["int8_dynamic"]))


def test_int8_runs_without_quantized_tensors_where_other_kernels_compute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "packs_int8", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    backend, choice = with_processor(monkeypatch, avx2=True), CHOICES["int8_dynamic"].with_weight_bits(7)
    assert backend.refuses(LINEAR, choice) is None
    assert backend.kernel(torch.nn.Linear(96, 64), choice, [(1, 96)]) in ("fp32", "onednn")
    assert "needs quantized tensors" in str(backend.refuses(LSTM, choice))
    assert backend.refuses(LSTM, CHOICES["fp16"]) is None


def test_int4_takes_any_number_of_outputs() -> None:
    linear, x = torch.nn.Linear(96, 10), torch.randn(3, 96)
    assert CpuBackend().refuses(replace(LINEAR, weight_shape=(10, 96)), CHOICES["int4_weight_only"]) is None
    prepared = CpuBackend().prepare(linear, CHOICES["int4_weight_only"], None, [(3, 96)])
    with torch.inference_mode():
        assert (prepared(x) - linear(x)).norm() < 0.15 * linear(x).norm()


def test_weight_only_needs_no_int8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_processor(monkeypatch, avx2=True).refuses(LINEAR, CHOICES["int8_weight_only"]) is None


def test_jobs_of_before_name_the_backend_x86() -> None:
    assert build_backend("x86").name == "cpu"


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(BackendError, match="unknown backend 'cpi'; did you mean 'cpu'"):
        build_backend("cpi")
