"""Page: the differences between two maps of one job, and the layers that explain them."""

from collections.abc import Sequence
from functools import partial

import pandas as pd
import streamlit as st
from streamlit import Page

from autotune.errors import NoFeasibleMapError
from autotune.jobs.front import pick
from autotune.jobs.records import JobRecord, TrialRecord
from dashboard import queries
from dashboard.charts.gap import gap_figure
from dashboard.charts.layout import CONFIG
from dashboard.formatting import in_markdown, points_text, value_text
from dashboard.tables.layers import Gap, accuracy_drops, diff_frame, divergence_gap, latency_gap
from dashboard.tables.trials import metrics_frame
from dashboard.widgets.page_parts import choose, linked_job
from workers.setup import Probes

Pair = tuple[TrialRecord, TrialRecord]


def show(map_page: Page) -> None:
    """Show the page; it links to ``map_page`` for each map."""
    st.title("Diff")
    job = linked_job()
    if job is None:
        return
    progress = queries.progress(job)
    if len(progress.trials) < 2 or job.description is None:
        st.info("This job does not have two candidates to compare" + (" yet." if job.state.is_live else "."))
        return
    pair = _choose_pair(job, progress)
    if pair is None:
        return
    with st.container(horizontal=True, gap="medium"):
        for word, trial in zip(("first", "second"), pair, strict=True):
            st.page_link(
                map_page, label=f"Open the {word} map", query_params={"job": job.id, "trial": str(trial.number)}
            )
    description, numbers = job.description.on(pair[0].backend), (pair[0].number, pair[1].number)
    alike = pair[0].backend == pair[1].backend
    probes = queries.probes(job, pair[0].backend) if alike else None
    diff = queries.cached(
        lambda: diff_frame(description, pair[0].choices, pair[1].choices, probes),
        "diff", job.id, *numbers, probes is not None,
    )  # fmt: skip
    _metrics(pair)
    if not alike:
        st.info(
            f"The first map runs on {pair[0].ran_on}, the second on {pair[1].ran_on}. Layers with the same choice have "
            "other kernels there, so the table below explains no gap; its bytes are those of the first backend."
        )
    _layers(diff, len(job.description.layers))
    if len(diff) and alike:
        _explained(progress, probes, diff, pair)


def _choose_pair(job: JobRecord, progress: queries.Progress) -> Pair | None:
    """Return the maps in the URL; the defaults are the first trial, full precision, and the knee of the front."""
    trials = {str(trial.number): trial for trial in progress.trials}
    best = queries.cached(lambda: _best(progress, job.spec.objectives), "knee", job.id, progress.version)
    defaults = {"first": str(progress.trials[0].number), "second": str(best)}
    chosen = []
    for column, (parameter, default) in zip(st.columns(2), defaults.items(), strict=True):
        with column:
            label = f"{parameter.capitalize()} map"
            number = choose(
                label, list(trials), parameter=parameter, kind="trial", default=default, names=progress.names
            )
        chosen += [] if number is None else [trials[number]]
    return (chosen[0], chosen[1]) if len(chosen) == 2 else None


def _best(progress: queries.Progress, objectives: Sequence[str]) -> int:
    try:
        return pick(progress.trials, "knee", objectives).number
    except NoFeasibleMapError:
        return progress.trials[-1].number


def _metrics(pair: Pair) -> None:
    frame = metrics_frame(*pair)
    if frame.empty:
        st.info("The figures cannot be compared: at least one of the two maps was not measured.")
        return
    st.header("Figures")
    st.dataframe(
        frame,
        hide_index=True,
        key="figures",
        alt="Figures of both maps with 95 % intervals, and the change from the first to the second",
        column_config={
            "metric": st.column_config.TextColumn("Figure", pinned=True),
            "first": "First map",
            "second": "Second map",
            "change": "Change",
            "certain": st.column_config.TextColumn("Significant", help="Whether the 95 % intervals do not overlap"),
        },
    )


def _layers(diff: pd.DataFrame, layers: int) -> None:
    st.header("Layers that differ")
    if diff.empty:
        st.info("Both maps make the same choices.")
        return
    st.caption(f"{len(diff)} of {layers} layers differ; the others are not shown. Changes are from first to second.")
    known = [column for column in ("latency_ms", "divergence") if diff[column].notna().any()]
    st.dataframe(
        diff[["layer", "kind", "first", "second", *known, "bytes"]]
        .assign(kib=diff["bytes"] / 1024)
        .drop(columns="bytes"),
        hide_index=True,
        key="diff",
        alt="The layers that differ, one per row in execution order, with both choices and the expected change",
        column_config={
            "layer": st.column_config.TextColumn("Layer", pinned=True),
            "kind": "Kind",
            "first": "First map",
            "second": "Second map",
            "latency_ms": st.column_config.NumberColumn("Time (ms)", format="%+.3f", help="As probed"),
            "divergence": st.column_config.NumberColumn("Divergence", format="%+.1e", help="As probed"),
            "kib": st.column_config.NumberColumn("Weights (KiB)", format="%+.1f"),
        },
    )


def _explained(progress: queries.Progress, probes: Probes | None, diff: pd.DataFrame, pair: Pair) -> None:
    """Show the layers that explain the gaps between the maps, expected and measured."""
    if probes is None:
        st.caption("The contribution of each layer is unknown: this job did not probe its layers.")
        return
    st.header("What explains the gap")
    revision = f"{pair[0].job_id} {pair[0].number} {pair[1].number}"
    latency, divergence = latency_gap(diff, probes, pair), divergence_gap(diff, pair)
    parts = (
        ("latency_ms", latency, "Latency (ms)", "latency_p50_ms"),
        ("divergence", divergence, "Divergence", "divergence"),
    )
    for container, (column, gap, title, metric) in zip(st.columns(2), parts, strict=True):
        figure = queries.cached(
            partial(gap_figure, diff, column, gap, title=title, revision=revision), column, revision
        )
        with container:
            st.markdown(in_markdown(_sentence(title, gap, metric), longest=300))
            st.plotly_chart(
                figure,
                key=f"gap-{column}",
                config=CONFIG,
                alt=f"{title}: the change by each layer; the table above has the same figures",
            )
    _accuracy(progress, probes, pair)


def _sentence(title: str, gap: Gap, metric: str) -> str:
    expected = f"the layers explain {_signed(metric, gap.predicted)}"
    if gap.measured is None:
        return f"{title}: {expected}; the gap was not measured."
    if gap.is_noise:
        return f"{title}: {_signed(metric, gap.measured)} as measured, within measurement noise; {expected}."
    if abs(gap.rest) < 0.01 * abs(gap.measured):
        remark = "which is all of it"
    elif gap.rest_is_noise:
        remark = "and the rest is within measurement noise"
    else:
        remark = f"and {_signed(metric, gap.rest)} is not explained"
    return f"{title}: {_signed(metric, gap.measured)} as measured; {expected}, {remark}."


def _accuracy(progress: queries.Progress, probes: Probes, pair: Pair) -> None:
    drops = queries.cached(
        lambda: accuracy_drops(progress.trials, (pair[0].choices, pair[1].choices), probes),
        "drops", pair[0].job_id, pair[0].number, pair[1].number, progress.version,
    )  # fmt: skip
    figures = [trial.figures.get("accuracy_drop") for trial in pair]
    if drops is None or figures[0] is None or figures[1] is None:
        return
    expected, measured = drops[0] - drops[1], figures[0].value - figures[1].value
    st.caption(
        f"Relative to full precision, accuracy changes by {points_text(measured)} as measured. A curve fitted to this "
        f"job's measured maps predicts {points_text(expected)} from the divergence."
    )


def _signed(metric: str, value: float) -> str:
    return ("+" if value >= 0 else "-") + value_text(metric, abs(value))
