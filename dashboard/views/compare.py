"""Page: the fronts of several jobs in one chart."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
import streamlit as st

from autotune.jobs.records import JobRecord
from autotune.metrics.catalog import METRICS
from dashboard import queries
from dashboard.charts.compare import MOST_JOBS, compare_figure
from dashboard.charts.layout import ZOOM_CONFIG
from dashboard.formatting import in_markdown
from dashboard.tables.job_comparison import differences, protocol, relative_front, warning
from dashboard.tables.trials import judged
from dashboard.widgets.page_parts import (
    JOB_WIDTH,
    LATENCIES,
    QUALITIES,
    choose_axes,
    choose_many,
    how_to_begin,
    job_names,
    measured,
    same_map_elsewhere,
)

#: Newest jobs offered; a link can select others.
_OFFERED = 30


def show() -> None:
    """Show the page."""
    st.title("Compare")
    everything = queries.jobs()
    if not everything:
        st.info("There are no jobs yet.")
        how_to_begin()
        return
    jobs = [job for job in everything if job.description is not None]
    names, default = job_names(jobs), [job.id for job in jobs[:2]]
    requested = st.query_params.get_all("jobs")
    offered = [job.id for index, job in enumerate(jobs) if index < _OFFERED or job.id in requested]
    chosen = choose_many("Jobs", offered, parameter="jobs", default=default, names=names, most=MOST_JOBS)
    compared = [job for job in jobs if job.id in chosen]
    if len(compared) < 2:
        st.info("Choose at least two jobs to compare.")
        return
    _protocols(compared, names)
    _fronts(compared, names)


def _protocols(jobs: Sequence[JobRecord], names: dict[str, str]) -> None:
    differing = differences({names[job.id]: protocol(job) for job in jobs})
    if differing.empty:
        st.success("All of these jobs were measured in the same way.")
        return
    st.warning(in_markdown(warning(differing["setting"].tolist()), longest=600))
    with st.expander(f"Settings that differ: {len(differing)}"):
        st.dataframe(
            differing,
            hide_index=True,
            alt="One row per setting in which the jobs differ, one column per job",
            column_config={"setting": st.column_config.TextColumn("Setting", pinned=True)},
        )


def _fronts(jobs: Sequence[JobRecord], names: dict[str, str]) -> None:
    read = [(job, queries.progress(job)) for job in jobs]
    frames = [progress.frame for _, progress in read]
    x, y = choose_axes(*(measured(metrics, frames) or metrics[:1] for metrics in (LATENCIES, QUALITIES)))
    fronts = {
        names[job.id]: queries.cached(partial(_front, job, progress, x, y), "relative", job.id, progress.version, x, y)
        for job, progress in read
    }
    empty = [name for name, front in fronts.items() if front.empty]
    if len(empty) < len(fronts):
        shown = tuple((job.id, progress.version) for job, progress in read)
        st.plotly_chart(
            queries.cached(lambda: compare_figure(fronts, x=x, y=y, revision=f"{x} {y}"), "compare", shown, x, y),
            key="compare",
            config=ZOOM_CONFIG,
            alt=f"Fronts of {len(fronts)} jobs relative to full precision; the table has the best of each front",
        )
        st.caption(
            "Marker area is weight memory relative to full precision; the limits of each job apply to its front."
        )
    for name in empty:
        st.info(in_markdown(f"{name} has no feasible map with these figures.", longest=200))
    st.dataframe(
        [{"job": name, "maps": len(front), **_reach(front, y)} for name, front in fronts.items()],
        hide_index=True,
        key="reach",
        alt="One row per job: maps drawn, and their lowest latency and memory and best quality",
        column_config={
            "job": st.column_config.TextColumn("Job", pinned=True, width=JOB_WIDTH),
            "maps": "Maps drawn",
            "latency": st.column_config.NumberColumn("Lowest latency", format="%.1f %%"),
            "memory": st.column_config.NumberColumn("Lowest weight memory", format="%.1f %%"),
            "quality": st.column_config.NumberColumn(
                f"Best {METRICS[y].label.lower()}", format="%.1e" if METRICS[y].logarithmic else "%.2f %%"
            ),
        },
    )

    for job, progress in read:
        same_map_elsewhere(progress.trials, job.spec.objectives, names[job.id])


def _front(job: JobRecord, progress: queries.Progress, x: str, y: str) -> pd.DataFrame:
    spec = job.spec
    return relative_front(judged(progress.frame, spec.constraints.constraints(), spec.objectives), x, y)


def _reach(front: pd.DataFrame, y: str) -> dict[str, float | None]:
    if front.empty:
        return {"latency": None, "memory": None, "quality": None}
    best = front["y"].min() if METRICS[y].logarithmic else 100 * front["y"].max()
    return {"latency": 100 * front["x"].min(), "memory": 100 * front["memory"].min(), "quality": best}
