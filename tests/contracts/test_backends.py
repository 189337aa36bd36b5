"""What every backend promises, over every choice and type of layer."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES, FULL_PRECISION, LayerChoice, Precision
from search_spaces.discovery import discover
from search_spaces.errors import MapError
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange, Smoothing
from search_spaces.tensors import tensors_in
from workers.backends import BACKENDS
from workers.backends.base import Backend, Deployed
from workers.backends.rounding.bias_correction import has_correction
from workers.backends.torchao.backend import TorchAoBackend
from workers.calibration.calibrate import calibrate, with_moments, with_smoothing
from workers.calibration.moments import MomentSketch
from workers.device.placement import moved, placed
from workers.model.attention import unroll_attention
from workers.model.prepared import PreparedModel
from workers.setup import CalibrationSettings
from workers.task import OutputKind, Split


def calibrated(module: nn.Module) -> ActivationRange:
    """The range of a layer's input, and factors and second moments of its channels."""
    channels = getattr(module, "in_features", 1)
    factors = tuple(1.0 + 0.5 * (channel % 3) for channel in range(channels))
    smoothing, sketch = Smoothing(factors=factors, low=-4.0, high=4.0), MomentSketch(channels)
    sketch.add(torch.randn(64, channels, generator=torch.Generator().manual_seed(0)).cumsum(dim=1))
    return ActivationRange(low=-5.0, high=5.0, smoothing=smoothing, moments=sketch.moments())


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(64, 48), (5, 7, 64)),
    "linear-without-bias": (lambda: nn.Linear(32, 16, bias=False), (1, 32)),
    "linear-of-odd-size": (lambda: nn.Linear(33, 5), (2, 3, 33)),
    "linear-of-one-vector": (lambda: nn.Linear(32, 16), (32,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 12)),
    "conv2d": (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 9, 9)),
    "conv2d-depthwise": (lambda: nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False), (1, 8, 6, 6)),
    "conv2d-in-groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 9, 9)),
    "conv2d-channels-last": (lambda: nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last), (2, 3, 9, 9)),
    "transposed-conv1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 12)),
    "transposed-conv2d": (lambda: nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=2), (2, 8, 9, 9)),
    "transposed-conv2d-channels-last": (
        lambda: nn.ConvTranspose2d(3, 8, 2, stride=2, bias=False).to(memory_format=torch.channels_last),
        (2, 3, 9, 9),
    ),
    "lstm": (lambda: nn.LSTM(32, 48), (7, 3, 32)),
    "lstm-of-two-directions": (lambda: nn.LSTM(5, 7, 2, bidirectional=True, batch_first=True, bias=False), (2, 4, 5)),
    "gru": (lambda: nn.GRU(32, 48, 2), (7, 3, 32)),
    "gru-of-one-sequence": (lambda: nn.GRU(6, 7, bidirectional=True), (5, 6)),
    "embedding": (lambda: nn.Embedding(20, 10), (3, 4)),
    "embedding-of-odd-size": (lambda: nn.Embedding(20, 7, padding_idx=0), (3,)),
    "embedding-bag": (lambda: nn.EmbeddingBag(20, 10), (3, 4)),
    "embedding-bag-of-sums": (lambda: nn.EmbeddingBag(20, 8, mode="sum"), (5, 2)),
}


#: The backends, and those for GPUs on the CPU too.
TESTED: dict[str, Callable[[], Backend]] = {
    **BACKENDS,
    "torchao-on-cpu": lambda: TorchAoBackend("cpu"),
    "torchao-compiled-on-cpu": lambda: TorchAoBackend("cpu", compiler="eager"),
}
ON_GPU = ("torchao", "torchao-compiled")
each_backend = [pytest.param(name, marks=[pytest.mark.gpu] if name in ON_GPU else []) for name in TESTED]


def build(name: str) -> Backend:
    built = TESTED[name]()
    reason = built.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return built


@pytest.fixture(params=each_backend)
def backend(request: pytest.FixtureRequest) -> Backend:
    return build(request.param)


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Layer, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[request.param]
    model = nn.Sequential(build()).eval()
    x = torch.randint(0, 20, shape) if isinstance(model[0], nn.Embedding | nn.EmbeddingBag) else torch.randn(shape)
    (layer,) = discover(model, lambda m: m(x))
    return model[0], layer, x


#: Choices that layers are prepared for.
QUANTIZED = [choice for choice in CHOICES.values() if choice != FULL_PRECISION]
#: These, and those with int8 products also as processors without VNNI take them.
EVERY_CHOICE = [
    *QUANTIZED,
    *(choice.with_weight_bits(7) for choice in CHOICES.values() if choice.needs_int8_products),
]


@pytest.mark.parametrize("choice", EVERY_CHOICE, ids=lambda choice: f"{choice.name}-{choice.weight_bits}")
def test_choice_is_refused_in_a_sentence_or_runs(
    backend: Backend, case: tuple[nn.Module, Layer, torch.Tensor], choice: LayerChoice
) -> None:
    module, layer, x = case
    reason = backend.refuses(layer, choice)
    if reason is not None:
        assert len(reason.split()) >= 4
        return
    before = copy.deepcopy(module.state_dict())
    known = calibrated(module) if choice.needs_calibration else None
    prepared = backend.prepare(module, choice, known).to(backend.device)
    with torch.inference_mode():
        # The last call's input goes by the name it has in all of PyTorch's layers.
        results = (module(x), prepared(x.to(backend.device)), prepared(input=x.to(backend.device)))
    for exact, actual, again in zip(*map(tensors_in, results), strict=True):
        assert (actual.shape, actual.dtype, actual.stride()) == (exact.shape, exact.dtype, exact.stride())
        assert torch.equal(actual, again)
        error = (actual.cpu() - exact).norm() / exact.norm()
        assert error < {Precision.INT4: 0.15, Precision.FP8: 0.06}.get(choice.precision, 0.03)
    assert not prepared.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("choice", [c for c in CHOICES.values() if c.rounds_to_nearest], ids=lambda choice: choice.name)
def test_corrected_biases_take_off_the_mean_error(
    backend: Backend, case: tuple[nn.Module, Layer, torch.Tensor], choice: LayerChoice
) -> None:
    module, layer, x = case
    choice = choice.with_weight_bits(backend.int8_weight_bits(layer))
    if backend.refuses(layer, choice) is not None or not has_correction(layer):
        pytest.skip("there is nothing to correct")
    channels = 1 - len(layer.weight_shape)  # their dimension
    generator = torch.Generator().manual_seed(1)
    middles = 3.0 * torch.randn(x.shape[channels], *[1] * -(channels + 1), generator=generator)
    batches = list(middles + 0.3 * torch.randn(64, *x.shape, generator=generator))
    watched = (nn.Sequential(module), [layer], batches, lambda m, batch: m(batch))
    found = calibrate(*watched, CalibrationSettings(bias_correction=True))
    known = (with_smoothing(found, *watched) if choice.is_smooth else found).ranges["0"]
    before = copy.deepcopy(module.state_dict())

    def mean_error(known: ActivationRange) -> float:
        prepared = backend.prepare(module, choice, known).to(backend.device)
        with torch.inference_mode():
            errors = torch.stack([prepared(batch.to(backend.device)).cpu() - module(batch) for batch in batches])
        return float(errors.movedim(channels, 0).flatten(1).mean(dim=1).norm())

    # What is left is rounding of inputs, of outputs to bf16, and the padding of convolutions.
    assert mean_error(known) < 0.6 * mean_error(replace(known, means=None))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("choice", CHOICES.values(), ids=lambda choice: choice.name)
def test_bytes_are_known_without_preparing(
    backend: Backend, case: tuple[nn.Module, Layer, torch.Tensor], choice: LayerChoice
) -> None:
    module, layer, _ = case
    if backend.refuses(layer, choice) is None:
        prepared = module if choice == FULL_PRECISION else backend.prepare(module, choice, calibrated(module))
        assert backend.weight_bytes(prepared) == backend.layer_bytes(layer, choice)


def test_bytes_follow_the_width_of_the_weights(backend: Backend) -> None:
    model = nn.Sequential(nn.Linear(1024, 1024))
    (layer,) = discover(model, lambda m: m(torch.randn(1, 1024)))
    for choice in CHOICES.values():
        if backend.refuses(layer, choice) is None:
            weights = math.prod(layer.weight_shape) * choice.precision.bits / 8
            assert weights <= backend.layer_bytes(layer, choice) <= 1.6 * weights


def test_a_layer_in_full_precision_weighs_its_parameters(backend: Backend) -> None:
    assert backend.weight_bytes(nn.Linear(8, 4)) == 4 * (8 * 4 + 4)


def test_backend_names_itself_and_its_hardware(backend: Backend) -> None:
    assert type(BACKENDS[backend.name]()) is type(backend)
    assert backend.hardware()


class Model(nn.Module):
    """One layer of each kind but the 2-d convolution, one of them used twice, and a weight outside all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(20, 64)
        self.conv = nn.Conv1d(64, 32, 3, padding=1)
        self.twice = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(self.rows(tokens).transpose(1, 2))).transpose(1, 2)
        outputs: torch.Tensor = self.head(self.norm(torch.tanh(self.twice(torch.tanh(self.twice(x))))))
        return outputs


class ModelTask:
    """Runs it on batches of two lengths."""

    output_kind = OutputKind.LOGITS

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return Model().eval()

    def batch(self, samples: int, length: int) -> torch.Tensor:
        return torch.randint(0, 20, (samples, length), generator=torch.Generator().manual_seed(length))

    def calibration(self) -> Sequence[torch.Tensor]:
        return [self.batch(4, 9)]

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return [self.batch(3, 7), self.batch(2, 5)]

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(batch)
        return outputs

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        return 1.0

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return self.batch(batch_size, 9)


TASK = ModelTask()


@dataclass(frozen=True)
class Running:
    """A backend's deployed model, and the same model in PyTorch."""

    backend: Backend
    prepared: PreparedModel
    deployed: Deployed

    def uniform(self, choice: str) -> dict[str, str]:
        return {x.name: choice for x in self.prepared.layers if choice not in self.prepared.refusals(x.name)}

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return TASK.forward(self.deployed.model, moved(batch, self.backend.device))

    def outputs(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.run(X).cpu()

    def computed(self, names: Mapping[str, str]) -> torch.Tensor:
        """What the prepared modules compute, one after the other in PyTorch."""
        own = prepared_model(self.backend)
        own.apply(names)
        with torch.inference_mode():
            return TASK.forward(own.model, moved(X, self.backend.device)).cpu()


X = TASK.batch(6, 11)


def prepared_model(backend: Backend, own: ModelTask = TASK) -> PreparedModel:
    task = placed(own, backend.device)
    model = task.build_model()
    assert unroll_attention(model, lambda m: task.forward(m, task.calibration()[0])) == {}
    layers = discover(model, lambda m: task.forward(m, task.calibration()[0]))
    found = calibrate(model, layers, task.calibration(), task.forward, CalibrationSettings())
    found = with_smoothing(found, model, layers, task.calibration(), task.forward)
    found = with_moments(found, model, layers, task.calibration(), task.forward)
    return PreparedModel(model, layers, backend, found.ranges)


@pytest.fixture(scope="module", params=each_backend)
def running(request: pytest.FixtureRequest) -> Running:
    built = build(request.param)
    prepared = prepared_model(built)
    return Running(built, prepared, built.deploy(TASK, prepared, (1, 4)))


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("choice", CHOICES)
def test_deployed_map_computes_what_its_layers_do(running: Running, choice: str) -> None:
    names = running.uniform(choice)
    running.deployed.apply(names)
    # Where sums differ in their last bits, an activation may be rounded to the neighbouring integer, or number in bf16.
    apart = {"bf16": 5e-4}.get(choice, 5e-3 if CHOICES[choice].needs_int8_products else 1e-5)
    assert difference(running.outputs(), running.computed(names)) < apart


def test_deployed_map_weighs_what_its_layers_do(running: Running) -> None:
    for choice in CHOICES:
        names = running.uniform(choice)
        running.deployed.apply(names)
        of_layers = [
            running.backend.layer_bytes(layer, CHOICES[names.get(layer.name, "fp32")])
            for layer in running.prepared.layers
        ]
        assert running.deployed.weight_bytes() == running.deployed.other_bytes() + sum(of_layers)
    assert running.deployed.other_bytes() >= 4 * (32 + 32), "the norm is there"


def test_deployed_model_goes_back_to_full_precision(running: Running) -> None:
    running.deployed.apply({})
    before = running.outputs()
    assert difference(before, running.computed({})) < 1e-5
    running.deployed.apply(running.uniform("int8_weight_only"))
    assert not torch.equal(running.outputs(), before)
    running.deployed.apply({})
    assert torch.equal(running.outputs(), before)


def test_map_that_does_not_fit_leaves_the_deployed_model_alone(running: Running) -> None:
    running.deployed.apply({"head": "int8_weight_only"})
    before, weight_bytes = running.outputs(), running.deployed.weight_bytes()
    with pytest.raises(MapError, match="layer 'rows' cannot take fp8_static"):
        running.deployed.apply({"rows": "fp8_static"})
    assert torch.equal(running.outputs(), before)
    assert running.deployed.weight_bytes() == weight_bytes


def test_deployed_model_tells_its_working_memory(running: Running) -> None:
    def pass_of(samples: int) -> int:
        return running.deployed.working_bytes(lambda: running.run(TASK.batch(samples, 9)))

    running.deployed.apply(running.uniform("int8_dynamic"))
    with torch.inference_mode():
        small, large = pass_of(8), pass_of(80)
    assert 8 * 9 * 64 * 4 <= small <= large / 4


def test_deployed_model_times_every_layer_and_choice(running: Running) -> None:
    choices = {
        layer.name: [name for name in CHOICES if name not in running.prepared.refusals(layer.name)]
        for layer in running.prepared.layers
    }
    with torch.inference_mode():
        latency_ms, pass_ms = running.deployed.layer_latencies(running.prepared.layers, choices, lambda: running.run(X))
    assert set(latency_ms) == {(layer, choice) for layer, names in choices.items() for choice in names}
    assert all(0.0 < elapsed < 1e3 for elapsed in latency_ms.values())
    assert pass_ms > 0.0
    assert torch.equal(running.outputs(), running.outputs())
    assert difference(running.outputs(), running.computed({})) < 1e-5, "full precision runs again"


def test_only_a_runtime_of_its_own_makes_sessions(running: Running) -> None:
    running.deployed.apply(running.uniform("int8_dynamic"))
    assert (running.deployed.session_seconds is None) == running.backend.runs_modules


class EncoderTask(ModelTask):
    """Runs PyTorch's own encoder, whose attention has to be unrolled."""

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        return nn.Sequential(nn.Embedding(20, 32), nn.TransformerEncoder(block, 1), nn.Linear(32, 10)).eval()


def test_encoder_of_pytorch_is_deployed_by_its_layers(backend: Backend) -> None:
    task = EncoderTask()
    prepared = prepared_model(backend, task)
    deployed = backend.deploy(task, prepared, (1, 4))
    running, own = Running(backend, prepared, deployed), prepared_model(backend, task)
    assert {layer.frozen_reason for layer in prepared.layers} == {None}
    with torch.inference_mode():
        assert difference(running.outputs(), task.build_model()(X)) < 1e-5
        names = running.uniform("int8_dynamic") or running.uniform("int8_static")
        assert {"1.layers.0.self_attn.q_proj", "1.layers.0.self_attn.out_proj", "1.layers.0.linear1"} <= set(names)
        deployed.apply(names)
        own.apply(names)
        assert difference(running.outputs(), own.model(moved(X, backend.device)).cpu()) < 5e-3
