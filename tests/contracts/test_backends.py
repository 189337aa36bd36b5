"""What every backend promises, over every choice and type of layer."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES, FULL_PRECISION, LayerChoice
from search_spaces.discovery import discover
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.backends import BACKENDS
from workers.backends.base import Backend

RANGE = ActivationRange(low=-5.0, high=5.0)

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(64, 48), (5, 7, 64)),
    "linear-without-bias": (lambda: nn.Linear(32, 16, bias=False), (1, 32)),
    "linear-of-odd-size": (lambda: nn.Linear(33, 5), (2, 3, 33)),
    "linear-of-one-vector": (lambda: nn.Linear(32, 16), (32,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 12)),
    "conv2d": (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 9, 9)),
    "conv2d-depthwise": (lambda: nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False), (1, 8, 6, 6)),
    "conv2d-channels-last": (lambda: nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last), (2, 3, 9, 9)),
    "embedding": (lambda: nn.Embedding(20, 10), (3, 4)),
    "embedding-of-odd-size": (lambda: nn.Embedding(20, 7, padding_idx=0), (3,)),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    built = BACKENDS[request.param]()
    reason = built.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return built


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Layer, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[request.param]
    model = nn.Sequential(build()).eval()
    x = torch.randint(0, 20, shape) if isinstance(model[0], nn.Embedding) else torch.randn(shape)
    (layer,) = discover(model, lambda m: m(x))
    return model[0], layer, x


@pytest.mark.parametrize("choice", CHOICES.values(), ids=lambda choice: choice.name)
def test_choice_is_refused_in_a_sentence_or_runs(
    backend: Backend, case: tuple[nn.Module, Layer, torch.Tensor], choice: LayerChoice
) -> None:
    module, layer, x = case
    reason = backend.refuses(layer, choice)
    if reason is not None:
        assert len(reason.split()) >= 4
        return
    before = copy.deepcopy(module.state_dict())
    prepared = backend.prepare(module, choice, RANGE if choice.needs_calibration else None).to(backend.device)
    with torch.inference_mode():
        exact, actual, again = module(x), prepared(x.to(backend.device)), prepared(x.to(backend.device))
    assert (actual.shape, actual.dtype, actual.stride()) == (exact.shape, exact.dtype, exact.stride())
    assert torch.equal(actual, again)
    error = (actual.cpu() - exact).norm() / exact.norm()
    assert error < {4: 0.15}.get(choice.precision.bits, 0.03)
    assert not prepared.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("choice", CHOICES.values(), ids=lambda choice: choice.name)
def test_bytes_are_known_without_preparing(
    backend: Backend, case: tuple[nn.Module, Layer, torch.Tensor], choice: LayerChoice
) -> None:
    module, layer, _ = case
    if backend.refuses(layer, choice) is None:
        prepared = backend.prepare(module, choice, RANGE)
        assert backend.weight_bytes(prepared) == backend.layer_bytes(layer, choice)


def test_bytes_follow_the_width_of_the_weights(backend: Backend) -> None:
    model = nn.Sequential(nn.Linear(1024, 1024))
    (layer,) = discover(model, lambda m: m(torch.randn(1, 1024)))
    for choice in CHOICES.values():
        if backend.refuses(layer, choice) is None:
            weights = math.prod(layer.weight_shape) * choice.precision.bits / 8
            assert weights <= backend.layer_bytes(layer, choice) <= 1.3 * weights


def test_full_precision_is_the_layer_itself(backend: Backend) -> None:
    module = nn.Linear(8, 4)
    with torch.inference_mode():
        x = torch.randn(2, 8)
        assert torch.equal(backend.prepare(module, FULL_PRECISION, None).cpu()(x), module(x))
    assert backend.weight_bytes(module) == 4 * (8 * 4 + 4)


def test_backend_names_itself_and_its_hardware(backend: Backend) -> None:
    assert BACKENDS[backend.name] is type(backend)
    assert backend.hardware()
