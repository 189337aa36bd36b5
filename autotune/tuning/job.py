"""The job that ``tune`` runs, from limits and a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.errors import JobSpecError
from autotune.jobs.spec import SUGGESTED_OBJECTIVES, JobSpec
from autotune.metrics.catalog import METRICS, Kind

#: Longest name of a job.
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a user wants of a search."""

    #: Metric -> limit.
    limits: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds of the search, or text with a unit; None for no time limit.
    budget: str | float | None = None
    #: Runtimes to search, or ``all``, as in job files; None takes the default.
    backend: str | Sequence[str] | None = None
    #: Samples per timed pass.
    batch_size: int = 1
    #: Number of Ray workers; None measures in this process unless there is an address.
    workers: int | None = None
    #: Address of a Ray cluster; None for a private one.
    ray_address: str | None = None
    #: Further keys of a job file, which win.
    job: Mapping[str, Any] = field(default_factory=dict)


def job_of(
    name: str, task: Mapping[str, Any], settings: Settings, objectives: Sequence[str] = SUGGESTED_OBJECTIVES
) -> JobSpec:
    """Return the job with a name and a section ``task``.

    Raises:
        JobSpecError: if it is not valid.
    """
    document: dict[str, Any] = {
        "name": name[:_LONGEST_NAME],
        "task": dict(task),
        "objectives": list(objectives),
        "constraints": {metric: _limit(metric, value) for metric, value in settings.limits.items()},
        "search": {} if settings.budget is None else {"time_limit_s": settings.budget},
        "measurement": {"batch_sizes": [settings.batch_size]},
        "workers": {"pool": "inline"},
    }
    if settings.backend is not None:
        document["backend"] = settings.backend if isinstance(settings.backend, str) else list(settings.backend)
    if settings.workers is not None or settings.ray_address is not None:
        address = settings.ray_address or "local"
        document["workers"] = {"pool": "ray", "count": settings.workers or 1, "ray_address": address}
    return JobSpec.parse(_merged(document, settings.job), source="tune")


def _limit(metric: str, value: Any) -> Any:
    """Return the limit as job files write it: accuracies have a least value, everything else a largest one."""
    if isinstance(value, Mapping):
        return value
    is_floor = metric in METRICS and METRICS[metric].kind is Kind.ACCURACY
    return {"min" if is_floor else "max": value}


def _merged(document: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``document`` with the keys of ``more``, which win, merged in at every level."""
    merged = dict(document)
    for key, value in more.items():
        mine = document.get(key)
        if isinstance(mine, dict) and not isinstance(value, Mapping):
            raise JobSpecError(f"tune: {key} must be a mapping of keys to values, but got {value!r}")
        merged[key] = _merged(mine, value) if isinstance(mine, dict) else value
    return merged
