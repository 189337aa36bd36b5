"""Page: the Pareto front of one job."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit import Page

from autotune.jobs.budget import searched
from autotune.jobs.front import nearest_trial, without_superseded
from autotune.jobs.recommendation import recommend
from autotune.jobs.records import JobRecord, TrialRecord
from autotune.jobs.remarks import remarks
from autotune.metrics.catalog import METRICS, OVERLOADED_MS, Constraint, decisive_ratio
from dashboard import queries
from dashboard.charts.front import front_figure, hypervolume_figure
from dashboard.charts.layout import BOX_CONFIG, CONFIG
from dashboard.charts.zoom import Zoom
from dashboard.formatting import ABSENT, in_markdown
from dashboard.tables.cards import cards
from dashboard.tables.picks import Pick, merged, picks
from dashboard.tables.trials import (
    candidate_name,
    drawn,
    judged,
    left_out,
    limits_on,
    misses_text,
    ranked,
    with_misses,
    with_ties,
)
from dashboard.widgets.limit_sliders import limit_sliders
from dashboard.widgets.page_parts import (
    LATENCIES,
    QUALITIES,
    choose_axes,
    job_facts,
    linked_job,
    live,
    measured,
    same_map_elsewhere,
    show_cards,
)

#: Metric -> heading and number format in the table.
_COLUMNS = {
    "latency_p50_ms": ("p50 (ms)", "%.3f"),
    "latency_p95_ms": ("p95 (ms)", "%.3f"),
    "prefill_latency_p50_ms": ("First token (ms)", "%.3f"),
    "decode_latency_p50_ms": ("Per token (ms)", "%.3f"),
    "request_latency_p50_ms": ("Request (ms)", "%.3f"),
    "queued_latency_p95_ms": ("Under load p95 (ms)", "%.3f"),
    "accuracy": ("Accuracy", "%.4f"),
    "shifted_accuracy": ("Shifted accuracy", "%.4f"),
    "divergence": ("Divergence", "%.2e"),
    "weight_memory_mib": ("Weights (MiB)", "%.1f"),
    "peak_memory_mib": ("Peak (MiB)", "%.1f"),
}
#: Meaning of a tie.
_TIE = "Not measurably faster than a map with better quality on the front: their 95 % confidence intervals overlap"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Drawing:
    """The content of the page at one refresh."""

    points: pd.DataFrame
    #: ``ranked`` points, for the table.
    rows: pd.DataFrame
    picks: tuple[Pick, ...]
    figure: go.Figure
    #: The candidates that are not drawn, each with the reason.
    missing: pd.DataFrame


def show(map_page: Page) -> None:
    """Show the page; choosing a point opens ``map_page``."""
    head = st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center")
    head.title("Front", width="content")
    job = linked_job()
    if job is not None:
        live(lambda current: _front(current, map_page), job, head)


def _front(job: JobRecord, map_page: Page) -> None:
    progress, spec = queries.progress(job), job.spec
    job_facts(job, searched(progress.trials), len(progress.members))
    trials = without_superseded(progress.trials)
    _answer(job, progress, trials, map_page)
    _remarks(job, progress)
    latencies, qualities = (measured(names, [progress.frame]) for names in (LATENCIES, QUALITIES))
    if not latencies:
        st.info("Waiting for the first measurement." if job.state.is_live else "No candidate was measured.")
        _not_drawn(left_out(trials, set(progress.frame["number"])))
        return
    # In this order, a narrow screen has the chart above its controls.
    chart, controls = st.columns([3, 1], gap="medium")
    with controls:
        x, y = choose_axes(latencies, qualities, spec.objectives)
        limits = limit_sliders(spec.constraints.constraints(), progress.frame, (x, y, "weight_memory_mib"))
    zoom = Zoom.parse(st.query_params.get("zoom"), x, y)
    drawing = queries.cached(
        lambda: _drawing(progress, trials, spec.objectives, x, y, limits, zoom),
        "front", job.id, progress.version, x, y, limits, zoom,
    )  # fmt: skip
    with controls:
        _zoom_buttons(drawing.points, zoom, x, y)
    with chart:
        chosen = _chart(job, drawing, x, y)
    _picks(job, drawing.picks, map_page)
    chosen = _opener(drawing.points, _table(job, drawing.rows)) or chosen
    if chosen is not None:
        st.switch_page(map_page, query_params={"job": job.id, "trial": str(chosen)})
    same_map_elsewhere(trials, spec.objectives)
    _not_drawn(drawing.missing)
    _history(job, progress)


def _answer(job: JobRecord, progress: queries.Progress, trials: Sequence[TrialRecord], map_page: Page) -> None:
    """Show the recommended map with its gains, or the nearest one if none meets every limit."""
    if any(trial.feasible for trial in trials):
        found = queries.cached(lambda: recommend(progress.trials, job.spec), "recommendation", job.id, progress.version)
        if found is not None:
            with st.container(border=True, gap="small"):
                with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
                    st.header(in_markdown(f"Recommended: {found.name}"), width="content")
                    link = {"job": job.id, "trial": str(found.trial.number)}
                    st.page_link(map_page, label="Open its map", query_params=link, width="content")
                show_cards(cards(found.trial.figures, found.full.figures, job.spec.objectives), found.comparison)
        return
    closest = nearest_trial(trials)
    if closest is not None:
        misses = misses_text(closest, job.spec.constraints.constraints())
        st.warning(
            "No measured map meets every limit. "
            + in_markdown(f"Nearest is {candidate_name(closest)}: {misses}.", longest=400)
        )


def _remarks(job: JobRecord, progress: queries.Progress) -> None:
    """Show what a reader of the figures should know beside them."""
    found = queries.cached(lambda: remarks(job, progress.trials, limits=False), "remarks", job.id, progress.version)
    if found:
        st.caption(" ".join(in_markdown(remark, longest=800) for remark in found))


def _drawing(
    progress: queries.Progress,
    trials: Sequence[TrialRecord],
    objectives: Sequence[str],
    x: str,
    y: str,
    limits: tuple[Constraint, ...],
    zoom: Zoom | None,
) -> _Drawing:
    frame = judged(progress.frame, limits, objectives)
    points = with_misses(drawn(with_ties(frame, objectives), x, y), limits)
    found = picks(frame, x, y, objectives)
    picked = {pick.number: [same.title.lower() for same in found if same.number == pick.number] for pick in found}
    figure = front_figure(
        points,
        x=x,
        y=y,
        revision=f"{trials[0].job_id} {x} {y}",
        x_limits=limits_on(x, limits),
        y_limits=limits_on(y, limits),
        marked=picked,
        zoom=zoom,
    )
    ratio = points[decisive_ratio(objectives).name]
    rows = ranked(points.assign(speedup=1 / ratio, change=-100 * points["accuracy_drop"]), x, picked)
    missing = left_out(trials, set(points["number"]))
    return _Drawing(points=points, rows=rows, picks=tuple(merged(found)), figure=figure, missing=missing)


def _zoom_buttons(points: pd.DataFrame, zoom: Zoom | None, x: str, y: str) -> None:
    if zoom and st.button("Show all again"):
        _zoom_to(None)
    closer = Zoom.around(points[points["on_front"]], x, y)
    if closer and str(closer) != str(zoom) and st.button("Zoom to the front"):
        _zoom_to(closer)


def _chart(job: JobRecord, drawing: _Drawing, x: str, y: str) -> int | None:
    """Draw the front and return the number of the trial that was clicked."""
    points = drawing.points
    event = st.plotly_chart(
        drawing.figure,
        key=f"front-{job.id}",
        on_select="rerun",
        selection_mode=["points", "box"],
        config=BOX_CONFIG,
        alt=f"{METRICS[x].label} against {METRICS[y].label} of {len(points)} maps; the table below has the same points",
    )
    drawn_box = Zoom.of_boxes(event.selection.box, x, y)
    if drawn_box:
        _zoom_to(drawn_box)
    count = "1 map" if len(points) == 1 else f"{len(points)} maps"
    ties = f" Tie in the table below: {_TIE[0].lower()}{_TIE[1:]}." if points["tie"].any() else ""
    edge = " Full precision does not diverge from itself; it is drawn at the lower edge." if y == "divergence" else ""
    st.caption(
        f"{count} shown. Marker area is weight memory; bars are 95 % confidence intervals; hollow markers break a "
        "limit. Click a point to see its map; to zoom, take the box from the chart's corner and draw one."
        f"{edge}{ties}"
    )
    return next((int(point["customdata"][0]) for point in event.selection.points), None)


def _zoom_to(zoom: Zoom | None) -> None:
    st.query_params["zoom"] = str(zoom or "")
    st.rerun()


def _picks(job: JobRecord, found: Sequence[Pick], map_page: Page) -> None:
    """Show the picked maps within the limits, each with the reason."""
    if not found:
        st.info("No measured map meets these limits; loosen one of them.")
        return
    for column, pick in zip(st.columns(len(found)), found, strict=True):
        with column.container(border=True, height="stretch"):
            st.markdown(f"**{pick.title}: {in_markdown(pick.name)}**")
            st.caption(in_markdown(f"{pick.figures}. {pick.reason}", longest=400))
            st.page_link(map_page, label="Open its map", query_params={"job": job.id, "trial": str(pick.number)})


def _table(job: JobRecord, rows: pd.DataFrame) -> int | None:
    """Show the drawn points as a table, the front first, and return the trial of the selected row."""
    shown = measured(["speedup", "change", *_COLUMNS], [rows])
    gains = [name for name in shown if name not in _COLUMNS]
    figures = rows[["name", *gains, "standing", *shown[len(gains) :], "static", "misses"]]
    # An overload has no number to show; the broken limits mention it.
    figures = figures.assign(**{name: figures[name].where(figures[name] < OVERLOADED_MS) for name in shown})
    event = st.dataframe(
        figures.assign(static=100 * rows["static"]),
        hide_index=True,
        placeholder=ABSENT,
        key=f"points-{job.id}",
        on_select="rerun",
        selection_mode=["single-row", "single-cell"],
        alt="The maps drawn above, one per row, those on the front first",
        column_config={
            "name": st.column_config.TextColumn("Map", pinned=True, width=250 if rows["elsewhere"].any() else 165),
            "standing": st.column_config.TextColumn("Standing", help=f"Tie: {_TIE[0].lower()}{_TIE[1:]}"),
            "speedup": st.column_config.NumberColumn("Speed", format="%.2fx", help="Relative to full precision"),
            "change": st.column_config.NumberColumn(
                "Accuracy change", format="%+.2f %%", help="Relative to full precision"
            ),
            **{m: st.column_config.NumberColumn(head, format=digits) for m, (head, digits) in _COLUMNS.items()},
            "static": st.column_config.NumberColumn(
                "Static",
                format="%.0f %%",
                help="Share of the layers with quantized activations; the others are dynamic",
            ),
            "misses": st.column_config.TextColumn("Breaks"),
        },
    )
    picked = [*event.selection.rows, *(row for row, _ in event.selection.cells)]
    return int(rows["number"].iloc[picked[0]]) if picked else None


def _opener(points: pd.DataFrame, picked: int | None) -> int | None:
    """Return the trial to open: that of the picked row, or the one selected here by keyboard."""
    names = dict(zip(points["number"].tolist(), points["name"], strict=True))
    chosen = st.selectbox(
        "Open a map", list(names), index=None, format_func=lambda number: names[number], placeholder="Choose a map"
    )
    return picked if picked is not None else chosen


def _not_drawn(missing: pd.DataFrame) -> None:
    if missing.empty:
        return
    # Thousands of rows are sent only if the reader opens them.
    details = st.expander(f"Candidates not drawn: {len(missing)}", key="not_drawn", on_change="rerun")
    if details.open:
        with details:
            st.dataframe(
                missing,
                hide_index=True,
                column_config={
                    "number": "Trial",
                    "name": "Map",
                    "why": st.column_config.TextColumn("Why", width="large"),
                },
                alt="Candidates that are not drawn, each with the reason",
            )


def _history(job: JobRecord, progress: queries.Progress) -> None:
    if len(progress.fronts) < 2:
        return
    st.header("Progress of the search")
    st.plotly_chart(
        queries.cached(
            lambda: hypervolume_figure(progress.fronts, len(progress.trials), job.id),
            "hypervolume",
            job.id,
            progress.version,
        ),
        key=f"hypervolume-{job.id}",
        config=CONFIG,
        alt="Hypervolume of the front over the trials measured",
    )
    st.caption(
        "The hypervolume is the part of the objective space that the front dominates; every better map increases it."
    )
