"""A copied study has what the job has."""

from pathlib import Path

import optuna
import pytest

from autotune.errors import ConflictError, StoreError
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.reports.optuna_study import export_study
from workers.timing.estimates import Figure

DOCUMENT = {"name": "small", "task": {"name": "t"}, "objectives": ["latency_p50_ms", "divergence", "accuracy"]}
JOB = JobRecord(
    id="abc", name="small", task="t", document=DOCUMENT,
    state=JobState.FINISHED, created_at=now(), updated_at=now(),
)  # fmt: skip


def trial(number: int, state: TrialState, **figures: float) -> TrialRecord:
    return TrialRecord(
        job_id="abc", number=number, kind=TrialKind.SEARCH, label=None, state=state,
        choices={"first": "fp32", "second": "int8_static"}, key=str(number),
        figures={name: Figure(value=value) for name, value in figures.items()},
        violations={"accuracy_drop": 0.5 if number == 1 else -0.5}, finished_at=now(),
    )  # fmt: skip


TRIALS = [
    trial(0, TrialState.COMPLETE, latency_p50_ms=2.0, divergence=1e-3, accuracy=0.9),
    trial(1, TrialState.COMPLETE, latency_p50_ms=1.0, divergence=0.1, accuracy=0.5),
    trial(2, TrialState.REJECTED, accuracy=0.1),
    trial(3, TrialState.FAILED),
]


def test_every_trial_is_copied(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    study = optuna.load_study(study_name=export_study(JOB, TRIALS, storage), storage=storage)
    assert study.metric_names == ["latency_p50_ms", "log10 divergence", "-accuracy"]
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL"]
    assert study.trials[0].values == [2.0, -3.0, -0.9]
    assert study.trials[0].params == {"first": "fp32", "second": "int8_static"}
    assert study.trials[2].user_attrs["figures"] == {"accuracy": 0.1}
    assert [t.number for t in study.best_trials] == [0], "trial 1 breaks a constraint"
    with pytest.raises(ConflictError, match="already has a study 'small abc'"):
        export_study(JOB, TRIALS, storage)


def test_storage_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot open the Optuna storage"):
        export_study(JOB, TRIALS, f"sqlite:///{tmp_path}/missing/optuna.db")
