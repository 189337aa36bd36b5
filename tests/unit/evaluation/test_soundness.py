"""Models whose figures would mean nothing are refused, or their layers left alone, with the cause."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from search_spaces.discovery import discover
from workers.errors import TaskError
from workers.evaluation.soundness import check_full_precision, without_uncalled
from workers.task import OutputKind
from workers.tasks.generic import GenericTask

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(torch.relu(self.first(x)))
        return result


class ChangesItsInput(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(1.5))


class DropsOut(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.1, training=True))


class Overflows(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * torch.nan


class CallsByList(nn.Module):
    """Calls its steps by a plain list, one of them by a mapping, and its head by name."""

    def __init__(self) -> None:
        super().__init__()
        self.step0, self.step1, self.other = (nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 4)
        self.steps = [self.step0, self.step1]
        self.table = {"other": self.other}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = torch.relu(step(x))
        result: torch.Tensor = self.head(self.table["other"](x)) * self.head.out_features
        return result


def check(build: Callable[[], nn.Module], kind: OutputKind = OutputKind.LOGITS) -> None:
    task = GenericTask(build, [X.clone() for _ in range(3)], output_kind=kind)
    check_full_precision(task, build().eval(), X.clone())


@pytest.mark.parametrize("build", [Plain, Overflows])
@pytest.mark.parametrize("kind", OutputKind)
def test_a_model_that_repeats_itself_passes(build: type[Plain], kind: OutputKind) -> None:
    check(build, kind)


@pytest.mark.parametrize(
    ("build", "cause"),
    [
        (ChangesItsInput, "changes its input in place.*clone the input"),
        (DropsOut, "does not repeat itself: .*at most 1e-05 is allowed.*dropout"),
        (lambda: Plain(features=1), r"at least two features, but got shape \(8, 1\)"),
    ],
    ids=["in-place", "dropout", "one-value"],
)
def test_a_model_that_cannot_be_compared_is_refused_with_the_cause(build: Callable[[], Plain], cause: str) -> None:
    with pytest.raises(TaskError, match=cause):
        check(build)


def test_layers_that_are_called_by_another_reference_are_frozen() -> None:
    model = CallsByList()
    layers = discover(model, lambda m: m(X))
    before = dict(model.named_modules())
    found = {layer.name: layer.frozen_reason for layer in without_uncalled(model, layers, [lambda: model(X)])}
    assert found["head"] is None
    for name, holder in {"step0": "steps", "step1": "steps", "other": "table"}.items():
        assert found[name] == (
            f"the model calls it by {holder} rather than by its registered name, so a replacement would never run"
        )
    assert dict(model.named_modules()) == before, "the model is as it was"


def test_layers_are_what_they_are_during_the_check() -> None:
    class Insists(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert type(self.first) is nn.Linear
            return super().forward(x) * self.first.in_features * self.first.weight.mean()

    model = Insists()
    layers = discover(model, lambda m: m(X))
    assert without_uncalled(model, layers, [lambda: model(X)]) == layers
    assert not model.first._forward_pre_hooks


def test_layers_called_by_their_names_stay_as_they_are() -> None:
    model = Plain()
    layers = discover(model, lambda m: m(X))
    assert without_uncalled(model, layers, [lambda: model(X)]) == layers


class Experts(nn.Module):
    """Sends each sample to the expert that its first feature names."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 4) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x.new_zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            rows = x[:, 0] == number
            if rows.any():
                out[rows] = expert(x[rows])
        return out


def sent_to(*experts: int) -> torch.Tensor:
    x = X[: len(experts)].clone()
    x[:, 0] = torch.tensor(experts)
    return x


def test_layers_that_later_batches_reach_are_found_and_called() -> None:
    model, batches = Experts(), [sent_to(0), sent_to(1, 1), sent_to(0, 0)]
    first, *more = [lambda m, x=x: m(x) for x in batches]
    layers = discover(model, first, more)
    found = {layer.name: (layer.input_shape, layer.calls, layer.frozen_reason) for layer in layers}
    idle = "never ran on any of 3 example batches, so nothing can be calibrated or measured"
    assert found == {
        "experts.0": ((1, 16), 1, None), "experts.1": ((2, 16), 1, None), "experts.2": ((), 0, idle),
    }  # fmt: skip
    assert without_uncalled(model, layers, [lambda x=x: model(x) for x in batches]) == layers


def test_further_batches_are_run_only_while_a_layer_is_idle() -> None:
    def fail(model: nn.Module) -> None:
        raise AssertionError("not needed")

    layers = discover(Experts(2), lambda m: m(sent_to(0)), [lambda m: m(sent_to(1)), fail])
    assert [layer.frozen_reason for layer in layers] == [None, None]


def test_layers_whose_forward_is_called_are_told_apart_from_idle_ones() -> None:
    class ByForward(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first.forward(x)))

    model = ByForward()
    found = {layer.name: layer.frozen_reason for layer in discover(model, lambda m: m(X))}
    assert found == {
        "first": "the model calls its method forward, which calibration cannot observe; call the layer itself",
        "last": None,
    }
    assert "forward" not in vars(model.first)


def test_an_empty_first_batch_is_refused() -> None:
    with pytest.raises(TaskError, match="first evaluation batch has no samples; leave out empty batches"):
        check_full_precision(GenericTask(Plain, [X, X, X]), Plain().eval(), X[:0])
