"""Tasks without held-out data: the rest of a final measurement is taken, and what is missing is said."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autotune.jobs.records import TrialKind, TrialState
from autotune.search.trials import PlannedTrial
from workers import quality
from workers.candidate import Candidate, Outcome
from workers.evaluation.evaluator import Evaluator
from workers.setup import MeasurementSettings, WorkerSetup
from workers.task import Split, splits_with_data
from workers.tasks import build_task

TASK_FILE = str(Path(__file__).parents[2] / "data" / "difficult_tasks.py")
MISSING = {
    "raises": "NotImplementedError: no held-out data yet",
    "empty": "the task has no held_out data: its method evaluation returned 0 batches without a sample",
    "no-samples": "the task has no held_out data: its method evaluation returned 1 batches without a sample",
    "accuracy": "KeyError: 'held_out'",
    "nan": "the accuracy of full precision on held-out data is nan",
}


def evaluator(held_out: str) -> Evaluator:
    settings = MeasurementSettings(threads=1, repeats=20, final_repeats=20, warmup_s=0.0)
    return Evaluator(
        WorkerSetup(task="difficult", task_parameters={"held_out": held_out}, measurement=settings, task_file=TASK_FILE)
    )


@pytest.mark.parametrize(("held_out", "why"), MISSING.items())
def test_a_final_measurement_without_held_out_data_is_complete_and_says_so(held_out: str, why: str) -> None:
    candidate = Candidate(number=1, choices={"0": "fp32", "2": "int8_weight_only"}, final=True)
    measured = evaluator(held_out).measure(candidate)
    assert measured.held_out is None
    assert str(measured.held_out_missing).startswith(why)
    planned = PlannedTrial(job_id="j", number=1, kind=TrialKind.FINAL, label=None, choices=candidate.choices)
    outcome = Outcome(candidate=candidate, result=measured, attempts=1, worker="w")
    trial = planned.finished(outcome, None, (), {})
    assert trial.state is TrialState.COMPLETE
    assert trial.message == f"no held-out accuracy: {measured.held_out_missing}"
    assert "latency_p50_ms" in trial.figures
    assert "held_out_accuracy" not in trial.figures


def test_a_final_measurement_with_held_out_data_misses_nothing() -> None:
    found = evaluator("nothing")
    final = found.measure(Candidate(number=1, choices={}, final=True))
    assert (final.held_out is not None, final.held_out_missing) == (True, None)
    assert found.measure(Candidate(number=2, choices={})).held_out_missing is None


def test_outputs_on_held_out_data_are_judged_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    outputs = quality.outputs

    def watched(task: Any, model: nn.Module, split: Split, *more: Any) -> torch.Tensor:
        found = outputs(task, model, split, *more)
        if split is Split.HELD_OUT:
            made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(quality, "outputs", watched)
    found = evaluator("nothing")
    for number in (1, 2):
        found.measure(Candidate(number=number, choices={"0": "int8_weight_only"}, final=True))
    assert [each() for each in made] == [None] * 3, "full precision once, and both maps"


@pytest.mark.parametrize(
    ("held_out", "expected"),
    [("nothing", (Split.EVALUATION, Split.HELD_OUT)), ("raises", (Split.EVALUATION,)), ("empty", (Split.EVALUATION,))],
)
def test_splits_with_data_are_those_that_exports_are_compared_on(held_out: str, expected: tuple[Split, ...]) -> None:
    evaluator("nothing")  # registers the task
    task = build_task("difficult", {"held_out": held_out})
    assert splits_with_data(task) == expected
    assert isinstance(task.build_model(), nn.Module)
