import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.errors import AutotuneError, ChoiceError, MapError
from search_spaces.quantization_map import ActivationRange
from workers.backends.cpu import backend as cpu
from workers.backends.cpu.backend import CpuBackend
from workers.backends.cpu.kernels import KERNELS
from workers.backends.packed import PackedLayer
from workers.device import memory
from workers.errors import CalibrationError
from workers.model.prepared import PreparedModel
from workers.setup import Calibration, ModelDescription

X = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
RANGE = ActivationRange(low=-4.0, high=4.0)


@pytest.fixture(autouse=True)
def _one_kernel_of_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have layers in fp16 be the same wherever the tests run."""
    monkeypatch.setattr(cpu, "KERNELS", tuple(k for k in KERNELS if (k.name, *k.choices) != ("fbgemm", "fp16")))


class CountingBackend(CpuBackend):
    """Counts how often layers are prepared, and can be told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared = 0
        self.fail_at = -1

    def prepare(self, *arguments: Any) -> nn.Module:
        self.prepared += 1
        if self.prepared == self.fail_at:
            raise MemoryError("no memory left")
        return super().prepare(*arguments)


class Model(nn.Module):
    """Layers in containers and as attributes, one under two names, a tied pair, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(32, 32)
        self.alias = self.head
        self.norm = nn.LayerNorm(32)
        self.left = nn.Linear(32, 32, bias=False)
        self.right = nn.Linear(32, 32, bias=False)
        self.right.weight = self.left.weight
        self.register_buffer("shift", torch.zeros(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.right(self.left(self.norm(self.alias(self.head(x))))) + self.shift


def prepared_model(
    model: nn.Module | None = None,
    *,
    cache_bytes: int | None = None,
    x: torch.Tensor = X,
    backend: CountingBackend | None = None,
) -> tuple[PreparedModel, CountingBackend]:
    torch.manual_seed(0)
    model = (model or Model()).eval()
    layers = discover(model, lambda m: m(x))
    backend = backend or CountingBackend()
    return PreparedModel(model, layers, backend, {"head": RANGE}, cache_bytes=cache_bytes), backend


FREE = ("blocks.0.0", "blocks.1.0", "head")


def uniform(choice: str) -> dict[str, str]:
    return dict.fromkeys(FREE, choice)


def outputs(prepared: PreparedModel, x: torch.Tensor = X) -> torch.Tensor:
    with torch.inference_mode():
        return prepared.model(x)


def kinds(prepared: PreparedModel) -> set[str]:
    return {type(module).__name__ for module in prepared.model.modules() if isinstance(module, nn.Linear | PackedLayer)}


def test_map_replaces_layers_in_containers_and_under_all_names() -> None:
    prepared, _ = prepared_model()
    prepared.apply(uniform("int8_dynamic"))
    model = prepared.model
    assert {type(model.blocks[0][0]), type(model.blocks[1][0]), type(model.head)} == {type(model.alias)}
    assert model.alias is model.head
    assert isinstance(model.head, PackedLayer)
    assert isinstance(model.left, nn.Linear)


def test_reset_brings_full_precision_back() -> None:
    prepared, _ = prepared_model()
    originals, exact = dict(prepared.model.named_modules()), outputs(prepared)
    prepared.apply(uniform("int4_weight_only"))
    assert not torch.equal(outputs(prepared), exact)
    prepared.reset()
    assert torch.equal(outputs(prepared), exact)
    assert dict(prepared.model.named_modules()) == originals


def test_result_depends_on_the_map_alone() -> None:
    prepared, _ = prepared_model()
    prepared.apply({"head": "fp16"})
    expected = outputs(prepared)
    prepared.apply(uniform("int8_weight_only"))
    prepared.apply({"head": "fp16"})
    assert torch.equal(outputs(prepared), expected)
    assert kinds(prepared) == {"Linear", "WidenedFp16"}


def test_each_layer_and_choice_is_prepared_once() -> None:
    prepared, backend = prepared_model()
    assert backend.prepared == 0
    for _ in range(3):
        prepared.apply(uniform("fp16"))
        prepared.apply(uniform("int8_dynamic"))
        prepared.reset()
    assert backend.prepared == 2 * len(FREE)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ({"headd": "fp16"}, MapError, "unknown layer 'headd'; did you mean 'head'"),
        ({"head": "int3"}, ChoiceError, "unknown choice 'int3'"),
        ({"head": "fp8_dynamic"}, MapError, "layer 'head' cannot take fp8_dynamic: no CPU kernel"),
        ({"left": "fp16"}, MapError, "layer 'left' cannot take fp16: shares its weight"),
        ({"blocks.0.0": "int8_static"}, CalibrationError, "int8_static needs the calibrated range"),
    ],
)
def test_map_that_does_not_fit_leaves_the_model_alone(
    names: Mapping[str, str], error: type[AutotuneError], message: str
) -> None:
    prepared, _ = prepared_model()
    prepared.apply(uniform("fp16"))
    before, installed = outputs(prepared), dict(prepared.model.named_modules())
    with pytest.raises(error, match=message):
        prepared.apply({"blocks.1.0": "int8_dynamic", **names})
    assert torch.equal(outputs(prepared), before)
    assert dict(prepared.model.named_modules()) == installed


def test_failure_while_preparing_leaves_the_model_alone() -> None:
    prepared, backend = prepared_model()
    exact, bytes_before = outputs(prepared), prepared.weight_bytes()
    backend.fail_at = 2
    with pytest.raises(MemoryError):
        prepared.apply(uniform("int8_dynamic"))
    assert torch.equal(outputs(prepared), exact)
    assert prepared.weight_bytes() == bytes_before
    prepared.apply(uniform("int8_dynamic"))
    assert kinds(prepared) == {"Linear", "Int8Linear"}


def counted(model: nn.Module) -> int:
    """Bytes of everything reachable in the model, each tensor once."""
    packed = sum(module.packed_bytes for module in model.modules() if isinstance(module, PackedLayer))
    return packed + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


MAPS = [{}, *map(uniform, ("fp16", "int8_dynamic", "int4_weight_only")), {"head": "int8_static", "blocks.1.0": "fp16"}]


@pytest.mark.parametrize("names", MAPS)
def test_bytes_are_those_of_everything_installed(names: Mapping[str, str]) -> None:
    prepared, _ = prepared_model()
    prepared.apply(names)
    assert prepared.weight_bytes() == counted(prepared.model)


@pytest.mark.parametrize("names", MAPS)
def test_bytes_are_known_beforehand(names: Mapping[str, str]) -> None:
    prepared, backend = prepared_model()
    layer_bytes = prepared.layer_bytes()
    assert backend.prepared == 0
    description = ModelDescription(
        fingerprint="", layers=(), refusals={}, layer_bytes=layer_bytes, other_bytes=prepared.other_bytes(),
        calibration=Calibration(ranges={}, samples=0, seconds=0.0), environment=None,
    )  # fmt: skip
    prepared.apply(names)
    assert description.weight_bytes(dict.fromkeys(layer_bytes, "fp32") | names) == prepared.weight_bytes()


def test_bytes_are_listed_for_every_choice_not_refused() -> None:
    prepared, _ = prepared_model()
    assert set(prepared.layer_bytes()["head"]) - {"bf16"} == {
        name for name in CHOICES if name != "bf16" and not name.startswith("fp8")
    }
    assert set(prepared.layer_bytes()["left"]) == {"fp32"}


FP16_BYTES = 2 * 32 * 32 + 4 * 32


def test_cache_drops_what_was_used_longest_ago() -> None:
    prepared, backend = prepared_model(cache_bytes=2 * FP16_BYTES)
    for layer in FREE:
        prepared.apply({layer: "fp16"})
    prepared.apply({"head": "fp16"})
    prepared.apply({"blocks.1.0": "fp16"})
    assert backend.prepared == 3
    prepared.apply({"blocks.0.0": "fp16"})
    assert backend.prepared == 4


@pytest.mark.parametrize(("least", "most", "expected"), [(0, 1 << 30, 1.0), (1 << 20, 1 << 30, 1 << 20), (0, 99, 99)])
def test_bound_of_the_cache_follows_the_model(
    least: int, most: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.model.prepared._LEAST_CACHED_BYTES", least)
    monkeypatch.setattr("workers.model.prepared._MOST_CACHED_BYTES", most)
    prepared, _ = prepared_model()
    assert prepared.cache_bytes == (counted(prepared.model) if expected == 1.0 else expected)


def test_cache_never_drops_what_is_installed() -> None:
    prepared, backend = prepared_model(cache_bytes=0)
    prepared.apply(uniform("fp16"))
    assert prepared.weight_bytes() == counted(prepared.model)
    prepared.apply({**uniform("fp16"), "head": "int8_dynamic"})
    assert backend.prepared == 4
    prepared.apply(uniform("fp16"))
    assert backend.prepared == 5


class Watching(CountingBackend):
    """Counts the prepared layers that are alive when another one is made."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.counts: list[int] = []

    def prepare(self, *arguments: Any) -> nn.Module:
        self.counts.append(len(self.alive))
        prepared = super().prepare(*arguments)
        self.alive.add(prepared)
        return prepared


def test_one_map_goes_as_the_next_one_comes() -> None:
    prepared, backend = prepared_model(cache_bytes=0, backend=Watching())
    prepared.apply(uniform("fp16"))
    prepared.apply(uniform("int8_dynamic"))
    assert backend.counts == [0, 1, 2, 3, 3, 3]


def test_failure_brings_back_layers_that_were_dropped() -> None:
    prepared, backend = prepared_model(cache_bytes=0)
    prepared.apply(uniform("fp16"))
    before = outputs(prepared)
    backend.fail_at = len(FREE) + 2
    with pytest.raises(MemoryError):
        prepared.apply(uniform("int8_dynamic"))
    assert torch.equal(outputs(prepared), before)
    assert kinds(prepared) == {"Linear", "WidenedFp16"}


def test_layers_of_one_map_do_not_push_each_other_out() -> None:
    prepared, backend = prepared_model(cache_bytes=2 * FP16_BYTES)
    for _ in range(3):
        prepared.apply(uniform("fp16"))
        prepared.reset()
    assert backend.prepared == 5


def test_memory_is_given_back_while_layers_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    released_at: list[int] = []
    model, backend = prepared_model()
    monkeypatch.setattr(memory, "release", lambda: released_at.append(backend.prepared))
    of_one_layer = 4 * (32 * 32 + 32)  # which is not yet more
    monkeypatch.setattr("workers.model.prepared.RELEASE_BYTES", of_one_layer)
    model.apply(uniform("int8_dynamic"))
    model.apply({})
    model.apply(uniform("int8_dynamic"))
    assert released_at == [2]
    model.apply(uniform("fp16"))
    assert released_at == [2, 4, 6]


def test_cache_keeps_its_bound_while_layers_are_probed() -> None:
    prepared, backend = prepared_model(cache_bytes=FP16_BYTES)
    prepared.apply({"head": "fp16"})
    for _ in range(2):
        for layer in FREE:
            prepared.module(layer, "fp16")
    assert backend.prepared == 5
    assert prepared.weight_bytes() == counted(prepared.model)


def test_layers_that_are_probed_in_turn_stay_as_far_as_they_fit() -> None:
    prepared, backend = prepared_model(cache_bytes=2 * FP16_BYTES)
    for _ in range(3):
        for layer in FREE:
            prepared.module(layer, "fp16")
    assert len(FREE) == 3
    assert backend.prepared == 5


def test_the_full_precision_layer_is_found_beside_an_installed_one_that_does_not_fit() -> None:
    prepared, _ = prepared_model(cache_bytes=0)
    original = prepared.module("head", "fp32")
    prepared.apply({"head": "fp16"})
    assert prepared.module("head", "fp32") is original
    assert prepared.module("head", "fp16") is prepared.model.get_submodule("head")


class Reader(nn.Module):
    """Takes the type of its input from a layer's weight, as transformers' CLIP does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x.double().to(self.layer.weight.device, self.layer.weight.dtype))
        return y


def test_a_prepared_layer_describes_its_weight_but_has_none() -> None:
    x = torch.randn(3, 32)
    prepared, _ = prepared_model(Reader(), x=x)
    prepared.apply({"layer": "fp16"})
    assert outputs(prepared, x).isfinite().all()
    weight = prepared.model.get_submodule("layer").weight
    assert isinstance(weight, torch.Tensor)
    assert (weight.shape, weight.dtype, weight.untyped_storage().nbytes()) == ((16, 32), torch.float32, 4)
    assert weight.isnan().all()
    assert prepared.weight_bytes() == 2 * 16 * 32 + 4 * 16


class Encoder(nn.Module):
    """PyTorch's fused encoder layer, which reads its parts' weights without calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.project(x)))


@pytest.mark.parametrize("choice", ["fp16", "int8_dynamic", "int8_weight_only"])
def test_model_with_fused_encoder_layers_runs(choice: str) -> None:
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    prepared, _ = prepared_model(Encoder(), x=x)
    exact = outputs(prepared, x)
    free = [name for name, choices in prepared.layer_bytes().items() if choice in choices]
    prepared.apply(dict.fromkeys(free, choice))
    assert free == ["project", "head"]
    assert (outputs(prepared, x) - exact).abs().max() < 0.05 * exact.abs().max()
