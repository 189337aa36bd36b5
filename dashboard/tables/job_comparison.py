"""Compares jobs: fronts relative to each job's full precision, and differences in how jobs were measured."""

from collections.abc import Mapping, Sequence

import pandas as pd

from autotune.jobs.records import JobRecord
from autotune.metrics.catalog import METRICS
from dashboard.formatting import ABSENT, one_line
from dashboard.tables.trials import full_precision_row, staircase


def relative_front(judged: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Return the rows of the front with ``x``, ``y`` and ``memory`` relative to full precision, by ascending ``x``.

    Logarithmic metrics, such as divergence, stay absolute. Only rows that no other row beats on both axes are
    kept; none before full precision was measured.
    """
    full = full_precision_row(judged)
    if full is None:
        return pd.DataFrame(columns=["number", "name", "x", "y", "memory"])
    front = judged[judged["on_front"]].dropna(subset=[x, y])
    quality = front[y] if METRICS[y].logarithmic else front[y] / full[y]
    relative = front[["number", "name"]].assign(
        x=front[x] / full[x], y=quality, memory=front["weight_memory_mib"] / full["weight_memory_mib"]
    )
    return staircase(relative, maximise=METRICS[y].maximise).reset_index(drop=True)


def protocol(job: JobRecord) -> dict[str, str]:
    """Return the settings and the environment that a job's figures depend on, as text."""
    spec, described = job.spec, job.description
    biases = ", corrected biases" if spec.calibration.bias_correction else ""
    settings = {
        "Task": spec.task.name,
        "Task parameters": ", ".join(f"{name}={value}" for name, value in spec.task.parameters.items()) or ABSENT,
        "Batch sizes": ", ".join(map(str, spec.measurement.batch_sizes)),
        "Repeats": str(spec.measurement.repeats),
        "Final repeats": str(spec.measurement.final_repeats),
        "Warm-up": f"{spec.measurement.warmup_s:g} s",
        "Calibration": f"{spec.calibration.observer}, {spec.calibration.percentile:g} %{biases}",
    }
    if described is not None:
        environment = described.environment
        settings |= {
            "Model": described.fingerprint[:12],
            "Hardware": environment.hardware,
            "Backend": ", ".join(described.backends),
            "Threads": str(environment.threads),
            **{f"Version of {name}": version for name, version in environment.versions.items()},
        }
    return {name: one_line(value) for name, value in settings.items()}


def differences(protocols: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Return one row per setting in which jobs differ, one column per job.

    Args:
        protocols: job -> its ``protocol``.
    """
    names = list(dict.fromkeys(name for settings in protocols.values() for name in settings))
    rows = [
        {"setting": name, **{job: settings.get(name, ABSENT) for job, settings in protocols.items()}} for name in names
    ]
    differing = [row for row in rows if len({value for key, value in row.items() if key != "setting"}) > 1]
    return pd.DataFrame(differing, columns=["setting", *protocols])


def warning(settings: Sequence[str]) -> str:
    """Return a sentence on what the differences mean for the comparison."""
    listed = ", ".join(name[0].lower() + name[1:] for name in settings)
    return (
        f"These jobs were measured differently: {listed}. Each front is relative to its own full precision, but a "
        "ratio on one hardware, batch size or model says nothing about another."
    )
