"""Converts jobs to data frames: one row per job or event. Pure functions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from autotune.jobs.budget import left_s
from autotune.jobs.progress import stage_text
from autotune.jobs.recommendation import recommended
from autotune.jobs.records import EventRecord, JobRecord, JobState, TrialRecord
from autotune.metrics.catalog import decisive_ratio
from dashboard.formatting import (
    ABSENT,
    drop_text,
    duration,
    figure_text,
    moment,
    one_line,
    speedup_text,
    state_text,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A job with the facts about its trials that the list of jobs shows."""

    job: JobRecord
    #: Trials of the search itself.
    searched: int
    #: The trials on the current front.
    front: Sequence[TrialRecord]


def selected(jobs: Sequence[JobRecord], *, states: Collection[str], task: str | None, text: str) -> list[JobRecord]:
    """Return the jobs in ``states``, of ``task``, whose name or id contains ``text``; empty filters match all."""
    wanted = text.strip().casefold()
    return [
        job
        for job in jobs
        if (not states or job.state.value in states)
        and (task is None or job.task == task)
        and wanted in f"{job.name} {job.id}".casefold()
    ]


def jobs_frame(summaries: Sequence[JobSummary], now: datetime) -> pd.DataFrame:
    """Return one row per job, for the list of jobs."""
    return pd.DataFrame([_job_row(summary, now) for summary in summaries])


def queue_frame(jobs: Sequence[JobRecord], at: datetime) -> pd.DataFrame:
    """Return one row per running and queued job: running ones first, then in the order in which they start."""
    live = [job for job in jobs if job.state.is_live]
    live.sort(key=lambda job: (job.state is JobState.QUEUED, -job.priority, job.created_at))
    return pd.DataFrame([_queue_row(job, at) for job in live])


def events_frame(events: Sequence[tuple[JobRecord, EventRecord]], zone: str | None) -> pd.DataFrame:
    """Return one row per event, in the given order."""
    return pd.DataFrame(
        [
            {
                "at": moment(event.at, zone),
                "job": f"{one_line(job.name)} ({job.id})",
                "kind": one_line(event.kind),
                "message": one_line(event.message, 400),
            }
            for job, event in events
        ]
    )


def _job_row(summary: JobSummary, now: datetime) -> dict[str, object]:
    job, spec, done = summary.job, summary.job.spec, summary.searched
    left = left_s(job, spec, done)
    return {
        "name": one_line(job.name),
        "state": state_text(job.state) + (f", to be {job.order.state}" if job.order else ""),
        **_gains(summary),
        "progress": round(min(1.0, done / spec.search.trials), 2),
        "trials": f"{done} of {spec.search.trials}",
        "left": duration(left) if left is not None else ABSENT,
        "stage": one_line(stage_text(job.stage)) if job.stage else ABSENT,
        "front": len(summary.front),
        "task": one_line(job.task),
        "age": duration((now - job.created_at).total_seconds()),
        "hardware": one_line(job.description.environment.hardware) if job.description else ABSENT,
        "id": job.id,
    }


def _gains(summary: JobSummary) -> dict[str, str]:
    """Return what the recommended map on the front gains over full precision, as text."""
    spec = summary.job.spec
    best = recommended(summary.front, spec)
    if best is None:
        return {"speed": "none feasible" if summary.searched else ABSENT, "accuracy": ABSENT, "memory": ABSENT}
    ratio, drop = (best.figures.get(name) for name in (decisive_ratio(spec.objectives).name, "accuracy_drop"))
    return {
        "speed": speedup_text(ratio.value) if ratio else ABSENT,
        "accuracy": drop_text(drop.value) if drop else ABSENT,
        "memory": figure_text("weight_memory_mib", best.figures.get("weight_memory_mib")),
    }


def _queue_row(job: JobRecord, at: datetime) -> dict[str, object]:
    workers, lease = job.spec.workers, ABSENT
    if job.leased_until is not None:
        left_s = (job.leased_until - at).total_seconds()
        lease = f"{duration(left_s)} left" if left_s > 0 else f"expired {duration(-left_s)} ago"
    return {
        "job": f"{one_line(job.name)} ({job.id})",
        "state": state_text(job.state) + (f", to be {job.order.state}" if job.order else ""),
        "priority": job.priority,
        "owner": one_line(job.owner),
        "served": "a controller" if job.served else "its own process",
        "workers": f"{workers.count} x {'shared CPUs' if workers.cpus is None else f'{workers.cpus:g} CPUs'}",
        "driver": ":".join(one_line(job.driver).split(":")[:2]) if job.driver else ABSENT,
        "lease": lease,
        "crashes": job.crashes,
    }
