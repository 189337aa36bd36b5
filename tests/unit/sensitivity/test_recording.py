"""Calls of layers as they are recorded, what they may take of the memory, and errors on them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from workers.sensitivity.local import relative_errors
from workers.sensitivity.recording import Call, Recording, errors, record

EVERYTHING = 1 << 30


class Runs:
    """All that recording needs of a task."""

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(batch)
        return outputs


def recorded(
    model: nn.Module, layers: list[str], batch: torch.Tensor, *, gradients: int = 1, most_bytes: int = EVERYTHING
) -> tuple[Recording, torch.Tensor]:
    return record(Runs(), model, layers, batch, gradients=gradients, most_bytes=most_bytes)  # type: ignore[arg-type]


class Recurrent(nn.Module):
    """A recurrent layer whose outputs and states all reach the output; shape ``(samples, features)``."""

    def __init__(self, build: Callable[..., nn.Module], batch_first: bool) -> None:
        super().__init__()
        self.layer, self.batch_first = build(4, 3, num_layers=2, batch_first=batch_first), batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, states = self.layer(x if self.batch_first else x.transpose(0, 1))
        y = y if self.batch_first else y.transpose(0, 1)
        first, *rest = states if isinstance(states, tuple) else (states,)
        each = [first, *(2.0 * state for state in rest)]
        return torch.cat([y.flatten(1), *(state.transpose(0, 1).flatten(1) for state in each)], dim=1)


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("build", [nn.LSTM, nn.GRU])
def test_outputs_of_recurrent_layers_are_one_row_per_sample(build: type[nn.Module], batch_first: bool) -> None:
    torch.manual_seed(0)
    model, x = Recurrent(build, batch_first), batch(5, 7, 4)
    recording, outputs = recorded(model, ["layer"], x)
    torch.testing.assert_close(outputs, model(x))
    (call,) = recording.calls
    states = 2 * (2 if build is nn.LSTM else 1)  # of two layers each
    assert call.output.shape == (5, 7 * 3 + states * 3)
    assert errors(call, model.layer).abs().max() < 1e-6
    # The first sample's outputs depend on its own row only, by as much as the model takes of every value.
    (gradient,) = torch.autograd.grad(outputs[0].sum(), call.output)
    assert not gradient[1:].any()
    assert gradient[0, : 7 * 3 + 2 * 3].tolist() == [1.0] * (7 * 3 + 2 * 3)
    assert gradient[0, 7 * 3 + 2 * 3 :].tolist() == [2.0] * (states - 2) * 3


class Several(nn.Module):
    """A layer that returns tensors of unrelated shapes, and one of integers."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"wide": 2.0 * x, "index": torch.arange(3), "one": (x.sum(), x[0])}


class AroundSeveral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Several()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.layer(x)
        assert found["index"].tolist() == [0, 1, 2]
        total, row = found["one"]
        outputs: torch.Tensor = found["wide"] + 3.0 * total + 5.0 * row
        return outputs


def test_tensors_of_unknown_samples_are_one_row() -> None:
    model, x = AroundSeveral(), batch(2, 3)
    recording, outputs = recorded(model, ["layer"], x)
    torch.testing.assert_close(outputs, model(x))
    (call,) = recording.calls
    torch.testing.assert_close(call.output.detach(), torch.cat([2.0 * x.flatten(), x.sum()[None], x[0]])[None])
    (gradient,) = torch.autograd.grad(outputs.sum(), call.output)
    assert gradient.tolist() == [[1.0] * 6 + [3.0 * 6] + [5.0 * 2] * 3]


class TwoByTwo(nn.Module):
    """Runs a, b, a; each call takes 3 x 4 values and returns as many: 48 bytes either way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.a(self.b(self.a(x)))
        return outputs


@pytest.mark.parametrize(
    ("gradients", "most_bytes", "calls", "left"),
    [
        (0, 1, "aa", "b"),  # the first layer is recorded whatever its size, with all of its calls
        (0, 2 * 96, "aba", ""),
        (0, 2 * 96 - 1, "aa", "b"),
        (2, 2 * (48 + 3 * 48), "aba", ""),
        (2, 2 * (48 + 3 * 48) - 1, "aa", "b"),
    ],
)
def test_layers_are_recorded_as_a_whole_while_memory_lasts(
    gradients: int, most_bytes: int, calls: str, left: str
) -> None:
    recording, _ = recorded(TwoByTwo(), ["a", "b"], batch(3, 4), gradients=gradients, most_bytes=most_bytes)
    assert "".join(call.layer for call in recording.calls) == calls
    assert "".join(recording.left) == left


def test_a_layer_that_was_left_out_once_stays_out() -> None:
    class Shrinking(TwoByTwo):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.b(self.a(x)).sum() + self.b(x[:1])  # the second call of b would fit
            return outputs

    recording, _ = recorded(Shrinking(), ["a", "b"], batch(3, 4), gradients=0, most_bytes=96 + 40)
    assert [call.layer for call in recording.calls] == ["a"]
    assert list(recording.left) == ["b"]


class Prepared:
    """A prepared model whose only choice moves every output by one tenth."""

    def __init__(self, layer: nn.Linear) -> None:
        self._moved = nn.Linear(layer.in_features, layer.out_features)
        self._moved.weight.data, self._moved.bias.data = layer.weight.data, layer.bias.data + 0.1

    def module(self, name: str, choice: str) -> nn.Module:
        return self._moved


def test_errors_are_relative_to_all_outputs_of_a_layer() -> None:
    torch.manual_seed(0)
    layer, done = nn.Linear(4, 2), list[str]()
    calls = [Call("a", (x,), {}, layer(x), (None,)) for x in (batch(3, 4), 10.0 * batch(5, 4))]
    found = relative_errors(calls, Prepared(layer), {"a": ["moved"]}, done=done.append)  # type: ignore[arg-type]
    signal = sum(float(call.output.detach().double().square().sum()) for call in calls)
    assert found == {("a", "moved"): pytest.approx(0.1**2 * (3 + 5) * 2 / signal, rel=1e-4)}
    assert done == ["a", "a"]


def test_a_layer_that_returns_zeros_is_infinitely_wrong_or_right() -> None:
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    call = Call("a", (batch(3, 4),), {}, torch.zeros(3, 2), (None,))
    wrong = relative_errors([call], Prepared(layer), {"a": ["moved"]}, done=str)  # type: ignore[arg-type]
    assert wrong["a", "moved"] > 1e300
    right = Prepared(layer)
    right._moved.bias.data.zero_()
    assert relative_errors([call], right, {"a": ["moved"]}, done=str) == {("a", "moved"): 0.0}  # type: ignore[arg-type]
