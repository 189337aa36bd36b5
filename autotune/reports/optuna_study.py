"""Copy a job into an Optuna storage, for optuna-dashboard and notebooks."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState as OptunaState

from autotune.errors import ConflictError, StoreError
from autotune.jobs.records import JobRecord, TrialRecord, TrialState
from autotune.metrics.catalog import Metric
from autotune.metrics.objectives import Objectives
from search_spaces.choice import CHOICES

_STATES = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.REJECTED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}


def export_study(job: JobRecord, trials: Sequence[TrialRecord], storage: str) -> str:
    """Create a study with every trial of ``job`` in the Optuna storage and return its name.

    Parameters are the layers' choices. Values are the job's objectives, minimised as in the search. Figures, the kind,
    the label, our trial number and that of a recovered map's parent are user attributes.

    Raises:
        ConflictError: if the storage already has a study of that name.
        StoreError: if the storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = job.spec.objectives
    objectives = Objectives.named(names)
    choices = [name for name in CHOICES if any(name in trial.choices.values() for trial in trials)]
    name = f"{job.name} {job.id}"
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(names))
    except optuna.exceptions.DuplicatedStudyError:
        raise ConflictError(f"the storage already has a study {name!r}; delete it or use another storage") from None
    except Exception as error:  # every database library raises its own exceptions
        raise StoreError(f"cannot open the Optuna storage: {str(error).splitlines()[0]}") from None
    with warnings.catch_warnings():
        # Optuna warns that metric names are experimental, which users cannot change.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([_label(metric) for metric in objectives.metrics])
    study.set_user_attr("autotune_job", job.id)
    study.add_trials([_frozen(trial, choices, objectives) for trial in trials])
    return name


def _frozen(trial: TrialRecord, choices: Sequence[str], objectives: Objectives) -> optuna.trial.FrozenTrial:
    state = _STATES[trial.state]
    figures = {name: figure.value for name, figure in trial.figures.items()}
    return optuna.create_trial(
        state=state,
        values=list(objectives.values(trial.figures)) if state is OptunaState.COMPLETE else None,
        params=dict(trial.choices),
        distributions={layer: CategoricalDistribution(choices) for layer in trial.choices},
        constraints=dict(trial.violations),
        user_attrs={
            "number": trial.number,
            "kind": trial.kind.value,
            "label": trial.label,
            "backend": trial.ran_on,
            "parent": trial.parent,
            "figures": figures,
        },
    )


def _label(metric: Metric) -> str:
    """Return the name of a metric's minimised value."""
    if metric.logarithmic:
        return f"log10 {metric.name}"
    return f"-{metric.name}" if metric.maximise else metric.name
