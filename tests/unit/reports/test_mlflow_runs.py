"""A copied experiment has what the job has; the tracking store is a real one on SQLite."""

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from autotune import exporters
from autotune.errors import ConflictError, StoreError
from autotune.jobs.records import JobRecord, JobState, TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.reports.mlflow_runs import export_runs
from workers.timing.estimates import Figure

DOCUMENT = {"name": "small", "task": {"name": "t"}, "objectives": ["latency_p50_ms", "divergence"]}
JOB = JobRecord(
    id="abc", name="small", task="t", document=DOCUMENT,
    state=JobState.FINISHED, created_at=now(), updated_at=now(),
)  # fmt: skip
#: More layers than MLflow takes in one call, and a name it does not take.
CHOICES = {f"layer.{number}": "fp32" for number in range(101)} | {"odd[0]": "int8_static"}
FIRST = TrialRecord(
    job_id="abc", number=0, kind=TrialKind.BASELINE, label="fp32", state=TrialState.COMPLETE, choices=CHOICES, key="k",
    figures={"latency_p50_ms": Figure(value=2.0, low=1.9), "divergence": Figure(value=0.0)},
    violations={"accuracy_drop": -0.5}, seconds=1.5, finished_at=now(),
)  # fmt: skip
LOST = replace(FIRST, number=1, state=TrialState.FAILED, figures={}, violations={}, message="out of memory")


@pytest.mark.slow  # MLflow takes its time to make a database
def test_every_trial_is_a_run(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    name = export_runs(JOB, [FIRST, LOST], (0,), store)
    with exporters.libraries("mlflow"):
        client = MlflowClient(tracking_uri=store)
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"trial 0", "trial 1"}
    first, lost = runs["trial 0"], runs["trial 1"]
    assert first.data.metrics == {
        "latency_p50_ms": 2.0, "latency_p50_ms_low": 1.9, "divergence": 0.0, "violation.accuracy_drop": -0.5,
    }  # fmt: skip
    assert len(first.data.params) == len(CHOICES)
    assert first.data.params["layer.odd_0_"] == "int8_static"
    assert first.data.tags["autotune.on_front"] == "true"
    assert first.info.end_time - first.info.start_time == 1500
    assert (first.info.status, lost.info.status) == ("FINISHED", "FAILED")
    assert lost.data.tags["autotune.message"] == "out of memory"
    with pytest.raises(ConflictError, match="already has an experiment 'small abc'"):
        export_runs(JOB, [FIRST], (), store)


def test_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    # MLflow writes no more to plain folders.
    with pytest.raises(StoreError, match="cannot write to the MLflow store: The filesystem tracking backend"):
        export_runs(JOB, [FIRST], (), f"file://{tmp_path}/mlruns")
