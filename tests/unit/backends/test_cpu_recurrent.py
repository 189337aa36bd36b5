"""LSTM and GRU: in every form they may be called, against the originals and against a loop in float64."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from search_spaces.choice import CHOICES
from search_spaces.layer import LayerKind
from search_spaces.tensors import tensors_in
from workers.backends.cpu.backend import CpuBackend
from workers.backends.cpu.kernels import KERNELS
from workers.candidate import Candidate
from workers.device.processor import this_processor
from workers.measurement import Measurement
from workers.pools.inline import InlinePool
from workers.setup import Estimator, MeasurementSettings, WorkerSetup
from workers.tasks import register
from workers.tasks.generic import GenericTask

BACKEND = CpuBackend()
PROCESSOR = this_processor()
#: Choice -> largest error relative to the outputs.
LIMITS = {"bf16": 0.02, "fp16": 0.002, "int8_dynamic": 0.05}


def prepare(module: nn.RNNBase, choice: str) -> nn.Module:
    (kernel,) = [k for k in KERNELS if LayerKind.LSTM in k.kinds and choice in k.choices]
    wanted = CHOICES[choice].with_weight_bits(PROCESSOR.int8_weight_bits)
    lacking = kernel.lacks(PROCESSOR, wanted)
    if lacking is not None:
        pytest.skip(lacking)
    return BACKEND.prepare(module, wanted, None)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def states(module: nn.RNNBase, *batch: int) -> Any:
    directions = 2 if module.bidirectional else 1
    state = normal(module.num_layers * directions, *batch, 20)
    return (state, state.tanh()) if isinstance(module, nn.LSTM) else state


FORMS = {
    "batch": lambda module: (normal(3, 5, 12),),
    "batch with states": lambda module: (normal(3, 5, 12), states(module, 3 if module.batch_first else 5)),
    "one sequence with states": lambda module: (normal(5, 12), states(module)),
    "packed": lambda module: (pack_sequence([normal(steps, 12) for steps in (5, 3, 1)]),),
    "packed with states": lambda module: (
        pack_sequence([normal(steps, 12) for steps in (2, 5, 1)], enforce_sorted=False),
        states(module, 3),
    ),
}


@pytest.mark.parametrize("choice", LIMITS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_every_form_gives_what_the_original_gives(kind: type[nn.RNNBase], form: str, choice: str) -> None:
    torch.manual_seed(0)
    for layers, two_directions, batch_first, bias in itertools.product((1, 2), *[(False, True)] * 3):
        module = kind(12, 20, layers, bidirectional=two_directions, batch_first=batch_first, bias=bias).eval()
        arguments = FORMS[form](module)
        with torch.inference_mode():
            exact, actual = module(*arguments), prepare(module, choice)(*arguments)
        assert type(actual[0]) is type(exact[0])
        for was, now in zip(tensors_in(exact), tensors_in(actual), strict=True):
            assert (now.shape, now.dtype, now.stride()) == (was.shape, was.dtype, was.stride())
            assert (now.double() - was.double()).norm() <= LIMITS[choice] * was.double().norm()


def fake_weight(weight: torch.Tensor) -> torch.Tensor:
    steps = weight.double().abs().amax(dim=1, keepdim=True) / {8: 127, 7: 63}[PROCESSOR.int8_weight_bits]
    return torch.round(weight.double() / steps) * steps


def fake_input(x: torch.Tensor) -> torch.Tensor:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255 or 1.0
    zero_point = round(-low / step)
    return (torch.round(x / step + zero_point).clamp(0, 255) - zero_point) * step


def lstm_in_float64(module: nn.LSTM, x: torch.Tensor) -> torch.Tensor:
    """The outputs, ranges taken of the whole input and of each step's hidden states."""
    inputs, hidden = (fake_weight(getattr(module, f"weight_{name}_l0").detach()) for name in ("ih", "hh"))
    bias = (module.bias_ih_l0 + module.bias_hh_l0).detach().double()
    h = c = torch.zeros(x.shape[1], module.hidden_size, dtype=torch.float64)
    outputs = []
    for from_input in fake_input(x.double()) @ inputs.T + bias:
        i, f, g, o = (from_input + fake_input(h) @ hidden.T).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def gru_in_float64(module: nn.GRU, x: torch.Tensor) -> torch.Tensor:
    """The outputs, ranges taken of the whole input and of each step's hidden states."""
    inputs, hidden = (fake_weight(getattr(module, f"weight_{name}_l0").detach()) for name in ("ih", "hh"))
    h = torch.zeros(x.shape[1], module.hidden_size, dtype=torch.float64)
    outputs = []
    for from_input in fake_input(x.double()) @ inputs.T + module.bias_ih_l0.detach().double():
        r, z, n = from_input.chunk(3, dim=1)
        hidden_r, hidden_z, hidden_n = (fake_input(h) @ hidden.T + module.bias_hh_l0.detach().double()).chunk(3, dim=1)
        reset, update = torch.sigmoid(r + hidden_r), torch.sigmoid(z + hidden_z)
        h = (1 - update) * torch.tanh(n + reset * hidden_n) + update * h
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize(("kind", "oracle"), [(nn.LSTM, lstm_in_float64), (nn.GRU, gru_in_float64)])
def test_int8_is_rounded_where_it_is_said_to_be(kind: type[nn.RNNBase], oracle: Any) -> None:
    torch.manual_seed(1)
    for steps, batch in ((1, 1), (6, 3), (20, 2)):
        module, x = kind(24, 40).eval(), normal(steps, batch, 24)
        with torch.inference_mode():
            exact, actual = module(x)[0], prepare(module, "int8_dynamic")(x)[0]
        expected = oracle(module, x)
        # A last bit may round a state to the neighbouring integer, which is little beside rounding at all.
        assert (actual - expected).norm() < 0.2 * (exact - expected).norm()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_models_may_ask_a_quantized_layer_for_its_sizes(kind: type[nn.RNNBase]) -> None:
    module = kind(6, 8, 2, batch_first=True, bidirectional=True).eval()
    prepared = prepare(module, "int8_dynamic")
    for name in ("input_size", "hidden_size", "num_layers", "batch_first", "bidirectional", "bias"):
        assert getattr(prepared, name) == getattr(module, name)
    prepared.flatten_parameters()


class Tagger(nn.Module):
    """Uses outputs and states of two recurrent layers, and asks one of them to flatten its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(50, 16), nn.Linear(16, 10)
        self.lstm = nn.LSTM(16, 32, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(64, 16, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.lstm.flatten_parameters()
        x, (h, _) = self.lstm(self.rows(tokens))
        outputs, last = self.gru(x, hx=torch.tanh(h[:1, :, :16]).contiguous())
        tags: torch.Tensor = self.head(outputs[:, -1] + last[0])
        return tags


@register("tagger")
def tagger() -> GenericTask:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Tagger()

    return GenericTask(build, torch.randint(0, 50, (6, 8, 12), generator=torch.Generator().manual_seed(1)))


def test_recurrent_model_is_probed_and_measured() -> None:
    settings = MeasurementSettings(repeats=5, warmup_s=0.0)
    pool = InlinePool(WorkerSetup(task="tagger", task_parameters={}, backend="cpu", measurement=settings))
    assert pool.describe().skipped == {}
    probes = pool.probe()
    assert probes.estimator is Estimator.GRADIENT
    expected = {(probe.layer, probe.choice): probe.divergence for probe in probes.layers}
    for number, layer in enumerate(("lstm", "gru")):
        pool.submit(Candidate(number=number, choices={layer: "int8_dynamic"}))
        (outcome,) = pool.wait(0.0)
        assert isinstance(outcome.result, Measurement)
        assert expected[layer, "int8_dynamic"] / 4 < outcome.result.divergence < 4 * expected[layer, "int8_dynamic"]
        assert outcome.result.weight_bytes < 4 * sum(p.numel() for p in Tagger().parameters())
