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
    found = {layer.name: layer.frozen_reason for layer in without_uncalled(model, layers, lambda: model(X))}
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
    assert without_uncalled(model, layers, lambda: model(X)) == layers
    assert not model.first._forward_pre_hooks


def test_layers_called_by_their_names_stay_as_they_are() -> None:
    model = Plain()
    layers = discover(model, lambda m: m(X))
    assert without_uncalled(model, layers, lambda: model(X)) == layers
