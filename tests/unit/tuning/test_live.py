"""The task of a live model: the user's objects stay as they are, and misfits are named before anything is measured."""

import time
from typing import Any

import pytest
import torch
from torch import nn

from autotune.tuning.inputs import Inputs
from autotune.tuning.live import live_task
from workers import quality
from workers.errors import TaskError
from workers.task import Split
from workers.tasks import build_task, list_tasks
from workers.tasks.live import LIVE, hold


def values(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


def build() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_the_model_stays_as_it_is() -> None:
    model = build().train()
    task, _ = live_task(model, Inputs(batches=values()), None)
    built = task.build_model()
    assert model.training
    assert not built.training
    assert built[0].weight is not model[0].weight
    assert torch.equal(built[0].weight, model[0].weight)


def test_without_labels_full_precision_agrees_with_itself() -> None:
    task, told = live_task(build(), Inputs(batches=values()), None)
    model = task.build_model()
    assert task.accuracy(quality.outputs(task, model, Split.HELD_OUT), Split.HELD_OUT) == 1.0
    assert told == [
        "10 samples calibrate and 20 are evaluated. 10 were split off as held-out data, which check the chosen maps at "
        "the end."
    ]


@pytest.mark.parametrize("paired", [False, True])
def test_a_metric_gets_the_outputs_and_labels_of_a_split(paired: bool) -> None:
    samples, labels = values(), torch.arange(40)
    seen = []

    def metric(outputs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        seen.append((outputs, own))
        return torch.tensor(0.25)

    inputs = Inputs(batches=(samples, labels) if paired else samples, metric=metric, labels=None if paired else labels)
    task, _ = live_task(build(), inputs, None)
    model = task.build_model()
    for split in (Split.EVALUATION, Split.HELD_OUT):
        assert quality.number(task.accuracy(quality.outputs(task, model, split), split)) == 0.25
        outputs, own = seen[-1]
        assert torch.allclose(outputs, model(samples[own]))
    assert [len(own) for _, own in seen] == [20, 10]


def test_a_judge_gets_the_model_and_nothing_is_held_out() -> None:
    task, told = live_task(build(), Inputs(batches=values(), metric=lambda model: float(len(model))), None)
    model = task.build_model()
    _, judged = quality.outputs_and_judged(task, model, Split.EVALUATION)
    assert task.accuracy(judged, Split.EVALUATION) == 3.0
    assert task.evaluation(Split.HELD_OUT) == ()
    assert "nothing is held out" in told[-1]


def test_samples_follow_the_budget() -> None:
    class Slow(nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            time.sleep(0.002 * len(values))
            return super().forward(values)

    task, told = live_task(Slow(4, 3), Inputs(batches=[values(8) for _ in range(30)]), 10.0)
    assert sum(map(len, task.evaluation(Split.EVALUATION))) == pytest.approx(50, abs=20)
    assert "as many as the budget allows" in told[0]


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        pytest.param({"batches": torch.ones(8, 5)}, "does not take the first batch as its arguments", id="shape"),
        pytest.param({"batches": {"x": torch.ones(8, 4)}}, "as its keyword arguments", id="name"),
        pytest.param({"batches": (torch.ones(8, 4), torch.ones(8))}, "pass metric, too", id="labels"),
    ],
)
def test_batches_that_the_model_does_not_take_are_refused(inputs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint):
        live_task(build(), Inputs(**inputs), None)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = build()
    model.kept = model[0](values())  # type: ignore[assignment]
    with pytest.raises(TaskError, match="the model cannot be copied"):
        live_task(model, Inputs(batches=values()), None)


def test_only_the_process_that_holds_a_model_can_build_its_task() -> None:
    task, _ = live_task(build(), Inputs(batches=values()), None)
    parameters = hold(task, "Net")
    assert build_task(LIVE, parameters) is task
    assert LIVE not in {info.name for info in list_tasks()}
    with pytest.raises(TaskError, match="an object of the process that tuned it"):
        build_task(LIVE, {"model": "Net-0"})
