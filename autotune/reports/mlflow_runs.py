"""Copy a job into an MLflow tracking store: one experiment, with one run per trial."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from autotune.errors import ConflictError, StoreError
from autotune.exporters import libraries
from autotune.jobs.records import JobRecord, TrialRecord, TrialState

_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.REJECTED: "KILLED", TrialState.FAILED: "FAILED"}
#: MLflow's limits: parameters per call, and characters per name.
_MOST_PARAMS, _LONGEST_NAME = 100, 250
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]", re.ASCII)


def export_runs(job: JobRecord, trials: Sequence[TrialRecord], front: Collection[int], tracking_uri: str) -> str:
    """Create an experiment with every trial of ``job`` as a run, and return its name.

    Metrics are the figures, with ``_low`` and ``_high`` for intervals, and the violations. Parameters are the layers'
    choices, and tags contain the rest. Characters that MLflow does not allow in names become underscores.

    Raises:
        ConflictError: if the store has an experiment of that name, including deleted ones.
        StoreError: if the store cannot be written.
        ExportError: if mlflow is not installed.
    """
    # MLflow would report its use to its makers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    name = f"{job.name} {job.id}"
    with libraries("mlflow"):
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            client = MlflowClient(tracking_uri=tracking_uri)
            experiment = client.create_experiment(name, tags={"autotune.job": job.id, "autotune.task": job.task})
            for trial in trials:
                _log(client, experiment, trial, trial.number in front)
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                raise ConflictError(
                    f"the store already has an experiment {name!r}; delete it permanently or use another store"
                ) from None
            raise StoreError(f"cannot write to the MLflow store: {str(error).splitlines()[0]}") from None
    return name


def _log(client: Any, experiment: str, trial: TrialRecord, on_front: bool) -> None:
    from mlflow.entities import Metric, Param

    end = round(1000 * trial.finished_at.timestamp())  # in ms
    run = client.create_run(
        experiment,
        start_time=end - round(1000 * trial.seconds),
        run_name=f"trial {trial.number}",
        tags=_tags(trial, on_front),
    ).info.run_id
    metrics = [Metric(name, value, end, 0) for name, value in _metrics(trial)]
    client.log_batch(run, metrics=metrics)
    named = {_NOT_IN_NAMES.sub("_", f"layer.{layer}")[:_LONGEST_NAME]: name for layer, name in trial.choices.items()}
    params = [Param(layer, choice) for layer, choice in named.items()]
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run, params=params[start : start + _MOST_PARAMS])
    client.set_terminated(run, status=_STATUS[trial.state], end_time=end)


def _metrics(trial: TrialRecord) -> Iterator[tuple[str, float]]:
    for name, figure in trial.figures.items():
        sides = ((name, figure.value), (f"{name}_low", figure.low), (f"{name}_high", figure.high))
        yield from ((side, value) for side, value in sides if value is not None)
    yield from ((f"violation.{name}", value) for name, value in trial.violations.items())


def _tags(trial: TrialRecord, on_front: bool) -> dict[str, str]:
    values = {
        "kind": trial.kind.value,
        "label": trial.label,
        "state": trial.state.value,
        "feasible": str(trial.feasible).lower(),
        "on_front": str(on_front).lower(),
        "map_key": trial.key,
        "backend": trial.ran_on,
        "parent": None if trial.parent is None else str(trial.parent),
        "message": trial.message,
        "worker": trial.worker,
    }
    return {f"autotune.{name}": value for name, value in values.items() if value}
