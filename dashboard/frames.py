"""From records to data frames: one row a job, a candidate or a layer. Pure functions of their arguments."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from autotune.budget import searched
from autotune.job_spec import JobSpec
from autotune.metrics import METRICS, Constraint
from autotune.store.records import JobRecord, TrialKind, TrialRecord, TrialState
from dashboard.text import (
    ABSENT,
    bytes_text,
    cause_text,
    duration,
    figure_text,
    label_in_sentence,
    one_line,
    state_text,
    value_text,
)
from search_spaces.choice import FULL_PRECISION, ActivationMode, LayerChoice, choice_named
from search_spaces.layer import Layer
from workers.setup import ModelDescription

#: More points than this make clicks slow; the front and the baselines are always among them.
MOST_POINTS = 2000

#: Readable without colour: how a quantized layer treats its input.
LETTERS = {ActivationMode.STATIC: "S", ActivationMode.DYNAMIC: "D", ActivationMode.NONE: "W"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A job with what the list of jobs says about its trials."""

    job: JobRecord
    trials: Sequence[TrialRecord]
    #: Maps on the current front.
    front_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A constraint as a line across an axis."""

    #: Where the line is, in the axis's unit.
    value: float
    #: Whether larger values break the limit.
    at_most: bool
    #: The limit in words.
    label: str


def spec_of(job: JobRecord) -> JobSpec:
    """Return the job's specification.

    Raises:
        JobSpecError: if another version wrote it and this one cannot read it.
    """
    return JobSpec.parse(dict(job.spec), source=f"job {job.id}")


def candidate_name(trial: TrialRecord) -> str:
    """Return the name of a candidate for people: a baseline's label, or its number."""
    return one_line(trial.label) if trial.label else f"trial {trial.number}"


def full_precision(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the measured trial that leaves every layer as it is; None before there is one."""
    for trial in trials:
        if trial.kind is TrialKind.BASELINE and set(trial.choices.values()) == {FULL_PRECISION.name}:
            return trial if trial.figures else None
    return None


def best_feasible(trials: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """Return the feasible trial with the best ``metric``; None if none is feasible."""
    feasible = [trial for trial in trials if trial.feasible and metric in trial.figures]
    sign = -1 if METRICS[metric].maximise else 1
    return min(feasible, key=lambda trial: sign * trial.figures[metric].value, default=None)


def misses_text(trial: TrialRecord, constraints: Sequence[Constraint]) -> str:
    """Return which limits a candidate breaks and by how much; empty if it breaks none."""
    broken = []
    for constraint in constraints:
        violation = trial.violations.get(constraint.metric, 0.0)
        if violation > 0:
            figure = figure_text(constraint.metric, trial.figures.get(constraint.metric))
            limit = value_text(constraint.metric, constraint.limit)
            broken.append(f"{label_in_sentence(constraint.metric)} {figure} (limit {limit})")
    return "; ".join(broken)


def remaining_seconds(job: JobRecord, spec: JobSpec, done: int) -> float | None:
    """Return the seconds a live job has left at its pace so far; None before it has a pace."""
    if not job.state.is_live or done == 0:
        return None
    left = job.elapsed_s / done * max(0, spec.search.trials - done)
    if spec.search.time_limit_s is not None:
        left = min(left, max(0.0, spec.search.time_limit_s - job.elapsed_s))
    return left


def jobs_frame(summaries: Sequence[JobSummary], now: datetime) -> pd.DataFrame:
    """Return one row a job, as the list of jobs shows it."""
    return pd.DataFrame([_job_row(summary, now) for summary in summaries])


def _job_row(summary: JobSummary, now: datetime) -> dict[str, object]:
    job, spec, done = summary.job, spec_of(summary.job), searched(summary.trials)
    left = remaining_seconds(job, spec, done)
    return {
        "name": one_line(job.name),
        "state": state_text(job.state),
        "progress": round(min(1.0, done / spec.search.trials), 2),
        "trials": f"{done} of {spec.search.trials}",
        "left": duration(left) if left is not None else ABSENT,
        "best": _best_text(summary.trials, spec.objectives[0]),
        "front": summary.front_size,
        "task": one_line(job.task),
        "age": duration((now - job.created_at).total_seconds()),
        "hardware": one_line(job.description.environment.hardware) if job.description else ABSENT,
        "id": job.id,
    }


def _best_text(trials: Sequence[TrialRecord], metric: str) -> str:
    best = best_feasible(trials, metric)
    if best is None:
        return "none feasible" if trials else ABSENT
    return f"{METRICS[metric].label} {figure_text(metric, best.figures[metric])}"


def trial_frame(
    trials: Sequence[TrialRecord], members: Collection[int], constraints: Sequence[Constraint]
) -> pd.DataFrame:
    """Return one row a trial with every metric, its interval (``_low``, ``_high``; NaN if unknown) and its standing.

    Args:
        trials: the job's trials.
        members: numbers of the trials on the front.
        constraints: the job's limits.
    """
    columns = ["number", "name", "baseline", "feasible", "on_front", "misses"]
    metrics = [f"{metric}{part}" for metric in METRICS for part in ("", "_low", "_high")]
    rows = [_trial_row(trial, members, constraints) for trial in trials]
    # An empty frame would have columns of objects, which pandas takes for labels instead of a mask.
    types = {**dict.fromkeys(("baseline", "feasible", "on_front"), bool), **dict.fromkeys(metrics, float)}
    return pd.DataFrame(rows, columns=[*columns, *metrics]).astype(types)


def _trial_row(trial: TrialRecord, members: Collection[int], constraints: Sequence[Constraint]) -> dict[str, object]:
    row: dict[str, object] = {
        "number": trial.number,
        "name": candidate_name(trial),
        "baseline": trial.label is not None,  # one measured again keeps its label
        "feasible": trial.feasible,
        "on_front": trial.number in members,
        "misses": misses_text(trial, constraints),
    }
    for metric in METRICS:
        # The latency of a rejected candidate was not measured to the end.
        figure = trial.figures.get(metric) if trial.state is TrialState.COMPLETE else None
        row[metric] = figure.value if figure else math.nan
        row[f"{metric}_low"] = figure.low if figure and figure.low is not None else math.nan
        row[f"{metric}_high"] = figure.high if figure and figure.high is not None else math.nan
    return row


def drawn(frame: pd.DataFrame, x: str, y: str, most: int = MOST_POINTS) -> pd.DataFrame:
    """Return the rows that have both metrics, at most ``most``: the front, the baselines, then the newest."""
    known = frame.dropna(subset=[x, y])
    if len(known) <= most:
        return known
    wanted = known.assign(first=known["on_front"] | known["baseline"])
    kept = wanted.sort_values(["first", "number"], ascending=False).head(most)
    return known.loc[kept.index].sort_values("number")


def left_out(trials: Sequence[TrialRecord], shown: Collection[int]) -> pd.DataFrame:
    """Return the candidates that are not drawn, each with the reason."""
    rows = [
        {"number": trial.number, "name": candidate_name(trial), "why": _why_left_out(trial)}
        for trial in trials
        if trial.number not in shown
    ]
    return pd.DataFrame(rows, columns=["number", "name", "why"])


def _why_left_out(trial: TrialRecord) -> str:
    said = f": {one_line(trial.message)}" if trial.message else ""
    if trial.state is TrialState.FAILED:
        return f"Failed, {cause_text(trial.failure) if trial.failure else 'for an unknown reason'}{said}"
    if trial.state is TrialState.REJECTED:
        return f"Ruled out before it was measured in full{said}"
    return "One of the two figures was not measured, or there are too many points"


def limits_on(metric: str, constraints: Sequence[Constraint], reference_accuracy: float | None) -> tuple[Limit, ...]:
    """Return the limits that are lines across the axis of ``metric``.

    Args:
        metric: what the axis shows.
        constraints: the job's limits.
        reference_accuracy: full precision's accuracy, which turns a relative drop into an accuracy.
    """
    limits = []
    for constraint in constraints:
        bound = value_text(constraint.metric, constraint.limit)
        if constraint.metric == metric:
            limits.append(Limit(value=constraint.limit, at_most=constraint.at_most, label=f"limit {bound}"))
        elif constraint.metric == "accuracy_drop" and metric == "accuracy" and reference_accuracy is not None:
            floor = reference_accuracy - constraint.limit * abs(reference_accuracy)
            limits.append(Limit(value=floor, at_most=False, label=f"limit: {bound} below fp32"))
    return tuple(limits)


def layer_frame(description: ModelDescription, choices: Mapping[str, str]) -> pd.DataFrame:
    """Return one row a layer in execution order: what it is, what it takes, and what it may not take."""
    total = sum(layer.flops for layer in description.layers)
    return pd.DataFrame([_layer_row(layer, description, choices, total) for layer in description.layers])


def _layer_row(
    layer: Layer, description: ModelDescription, choices: Mapping[str, str], total_flops: int
) -> dict[str, object]:
    choice = choice_named(choices[layer.name])
    sizes = description.layer_bytes.get(layer.name, {})
    found = description.calibration.ranges.get(layer.name)
    return {
        "layer": layer.name,
        "kind": layer.kind.value,
        "shape": " x ".join(map(str, layer.weight_shape)),
        "choice": choice.name,
        "precision": choice.precision.value,
        "letter": letter(choice),
        "bytes": bytes_text(sizes.get(choice.name, layer.weight_bytes)),
        "flops_share": layer.flops / total_flops if total_flops else 0.0,
        "range": f"{found.low:.4g} to {found.high:.4g}" if found else ABSENT,
        "refused": "; ".join(f"{name}: {why}" for name, why in refusals(layer, description).items()),
    }


def letter(choice: LayerChoice) -> str:
    """Return S, D or W for a quantized layer, and nothing for a floating-point one."""
    return LETTERS[choice.activation] if choice.precision.is_quantized else ""


def refusals(layer: Layer, description: ModelDescription) -> dict[str, str]:
    """Return choice name -> why the layer cannot take it; one entry for all if it is frozen."""
    if layer.frozen_reason:
        return {"every quantized choice": layer.frozen_reason}
    return dict(description.refusals.get(layer.name, {}))
