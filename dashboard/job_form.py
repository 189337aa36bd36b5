"""Converts a filled-in form to a job file, and a job file to a job. Pure functions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from autotune.errors import JobSpecError
from autotune.jobs.spec import MAX_BYTES, JobSpec
from autotune.jobs.strict_yaml import load_yaml
from autotune.metrics.catalog import METRICS, UNDER_LOAD, WORKLOADS, Metric
from dashboard.formatting import value_text
from dashboard.tables.trials import full_precision_row
from workers.measurement import Split, Workload

#: Group of metrics that only some tasks have -> its name for people.
SPECIAL = {
    "shifted": "Shifted data",
    **{workload.value: label for workload, label in WORKLOADS.items() if workload is not Workload.FORWARD},
    "queued": UNDER_LOAD,
}
#: Metrics that a job can limit, in reading order.
LIMITED = tuple(name for name, metric in METRICS.items() if metric.can_be_limited)
#: Metrics that a job can trade off.
OBJECTIVES = tuple(name for name, metric in METRICS.items() if not metric.reported_only)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobForm:
    """The values of a filled-in form."""

    name: str
    task: str
    #: The task's parameters as YAML; empty for none.
    parameters: str = ""
    objectives: Sequence[str]
    #: Metric -> limit; None without one.
    limits: Mapping[str, float | None]
    choices: Sequence[str]
    #: Rules for layers as YAML; empty for none.
    layers: str = ""
    sampler: str
    trials: int
    #: None means no limit.
    time_limit_s: float | None = None
    repeats: int
    #: Comma-separated.
    batch_sizes: str = "1"
    #: Mean arrival rate of requests; None without a load.
    requests_per_second: float | None = None


def document(form: JobForm) -> dict[str, Any]:
    """Return the job file as plain data, without empty fields.

    Raises:
        JobSpecError: if a field that must be YAML is not valid YAML.
    """
    search: dict[str, Any] = {"choices": list(form.choices), "sampler": form.sampler, "trials": form.trials}
    if form.time_limit_s is not None:
        search["time_limit_s"] = form.time_limit_s
    if form.layers.strip():
        search["layers"] = _plain(form.layers.encode(), "layer rules")
    task: dict[str, Any] = {"name": form.task}
    if form.parameters.strip():
        task["parameters"] = _plain(form.parameters.encode(), "task parameters")
    limits = {
        metric: {"min" if METRICS[metric].maximise else "max": limit}
        for metric, limit in form.limits.items()
        if limit is not None
    }
    measurement = {"batch_sizes": _plain(f"[{form.batch_sizes}]".encode(), "batch sizes"), "repeats": form.repeats}
    if form.requests_per_second is not None:
        measurement["requests_per_second"] = form.requests_per_second
    return {
        "schema": "autotune.job/v1",
        "name": form.name,
        "task": task,
        "objectives": list(form.objectives),
        **({"constraints": limits} if limits else {}),
        "search": search,
        "measurement": measurement,
    }


def as_text(data: Mapping[str, Any]) -> str:
    """Return the text of a job file."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)


def read_job(raw: bytes) -> JobSpec:
    """Return the job in a file.

    Raises:
        JobSpecError: if it is too large, is not YAML or breaks the schema; the message lists all errors.
    """
    if len(raw) > MAX_BYTES:
        raise JobSpecError(f"a job file must be at most {MAX_BYTES} bytes, but this one has {len(raw)}")
    return JobSpec.parse(_plain(raw, "this file"), source="this file")


def offered(metrics: Sequence[str], special: Collection[str]) -> list[str]:
    """Return those of ``metrics`` that a task with these ``SPECIAL`` groups has."""
    return [name for name in metrics if (group := _group(METRICS[name])) is None or group in special]


def special_in(frame: pd.DataFrame | None) -> list[str]:
    """Return the ``SPECIAL`` groups of the metrics measured in a frame of ``trial_frame``; none without a frame."""
    measured = () if frame is None else frame.columns[frame.notna().any()]
    groups = {_group(metric) for name, metric in METRICS.items() if name in measured}
    return [group for group in SPECIAL if group in groups]


def _group(metric: Metric) -> str | None:
    if metric.split is Split.SHIFTED:
        return "shifted"
    if metric.queued:
        return "queued"
    return None if metric.workload is Workload.FORWARD else metric.workload.value


def baselines_text(frame: pd.DataFrame | None, metric: str) -> str:
    """Return the values of full precision and of the best other baseline; empty if none was measured.

    Args:
        frame: ``dashboard.tables.trials.trial_frame`` of a job of the same task; None if there is none.
        metric: the metric to limit.
    """
    if frame is None or frame[metric].isna().all():
        return ""
    known = frame[frame["baseline"] & frame[metric].notna()]
    full = full_precision_row(frame)
    others = known[known.index != (-1 if full is None else full.name)]
    parts = [] if full is None else [f"fp32 {value_text(metric, full[metric])}"]
    if len(others):
        best = others.sort_values(metric, ascending=not METRICS[metric].maximise, kind="stable").iloc[0]
        parts.append(f"{best['name']} {value_text(metric, best[metric])}")
    return ", ".join(parts)


def _plain(text: bytes, what: str) -> Any:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobSpecError(f"{what}: not valid YAML: {error}") from None
