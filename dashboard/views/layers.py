"""Page: the layers of a job's model: their sensitivities, choices on the front, and activations."""

from functools import partial

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from autotune.jobs.records import JobRecord
from dashboard import queries
from dashboard.charts.histogram import histogram_figure
from dashboard.charts.layers import choices_figure, roles_figure, sensitivity_figure
from dashboard.charts.layout import CONFIG
from dashboard.formatting import clipped_text, in_markdown, one_line
from dashboard.tables.layers import choice_frame, most_disputed, role_frame, sensitivity_frame, sensitivity_summary
from dashboard.widgets.page_parts import NO_HISTOGRAMS, choose, linked_job
from workers.setup import Calibration, Estimator, ModelDescription, Probes

_METHODS = {
    Estimator.GRADIENT: "a gradient sketch",
    Estimator.LOCAL: "the layers' local errors, scaled to the uniform maps,",
}
#: Most layers drawn by default.
_MOST_DRAWN = 30


def show() -> None:
    """Show the page."""
    st.title("Layers")
    job = linked_job()
    if job is None:
        return
    if job.description is None:
        st.info("The workers have not described this job's model" + (" yet." if job.state.is_live else "."))
        return
    progress, layers = queries.progress(job), len(job.description.layers)
    everything = layers > _MOST_DRAWN and st.toggle(
        f"Draw all {layers} layers, not only {_MOST_DRAWN}", key="all_layers", bind="query-params"
    )
    most = layers if everything else _MOST_DRAWN
    _sensitivity(job, job.description, progress.probes, most)
    _front(job, job.description, progress, most)
    _activations(job, job.description.calibration)


def _sensitivity(job: JobRecord, description: ModelDescription, probes: Probes | None, most: int) -> None:
    st.header("Sensitivity")
    if probes is None:
        st.info("Layer sensitivities are unknown: this job did not probe its layers.")
        return
    frame, figure, drawn, summary = queries.cached(
        partial(_ranked, job.id, description, probes, most), "ranked", job.id, most
    )
    if summary:
        st.markdown(in_markdown(summary, longest=300))
    st.plotly_chart(
        figure,
        key="sensitivity",
        config=CONFIG,
        alt=f"Heat map of the expected divergence of {drawn} layers by choice, most sensitive first; the table has all",
    )
    st.caption(
        f"Estimated by {_METHODS[probes.estimator]} from {probes.samples} samples in {probes.seconds:.1f} s, before "
        "any map was measured. Gaps are choices that a layer cannot take."
    )
    st.dataframe(
        frame[["layer", "role", "choice", "divergence", "saved_ms"]],
        hide_index=True,
        key="sensitivities",
        alt="Expected divergence and time saved per layer and choice, most sensitive layer first",
        column_config={
            "layer": st.column_config.TextColumn("Layer", pinned=True),
            "role": "Type",
            "choice": "Choice",
            "divergence": st.column_config.NumberColumn("Divergence", format="%.1e"),
            "saved_ms": st.column_config.NumberColumn("Saves (ms)", format="%.3f", help="Relative to full precision"),
        },
    )


def _activations(job: JobRecord, calibration: Calibration) -> None:
    """Show the distribution of the inputs of the layer in the URL."""
    st.header("Activations")
    if not calibration.histograms:
        st.info(NO_HISTOGRAMS)
        return
    layers = list(calibration.histograms)
    names = dict(zip(layers, map(one_line, layers), strict=True))
    layer = choose("Layer", layers, parameter="layer", kind="layer", default=layers[0], names=names)
    if layer is None:
        return
    histogram, calibrated = calibration.histograms[layer], calibration.ranges[layer]
    st.plotly_chart(
        queries.cached(partial(histogram_figure, histogram, calibrated, f"{job.id} {layer}"), "inputs", job.id, layer),
        key="inputs",
        config=CONFIG,
        alt=f"Histogram of the inputs of {one_line(layer)}; the text below has the range and the clipped share",
    )
    st.caption(
        f"{sum(histogram.counts):,} values that the layer saw in calibration, {calibration.samples} samples. Static "
        f"quantization covers {calibrated.low:.4g} to {calibrated.high:.4g}{clipped_text(histogram.clipped)}."
    )


def _ranked(
    job_id: str, description: ModelDescription, probes: Probes, most: int
) -> tuple[pd.DataFrame, go.Figure, int, str]:
    """Return all sensitivities, the figure of the ``most`` most sensitive layers, their number, and a summary."""
    frame = sensitivity_frame(description, probes)
    ranked = list(dict.fromkeys(frame["layer"]))[:most]
    figure = sensitivity_figure(frame[frame["layer"].isin(ranked)], job_id)
    return frame, figure, len(ranked), sensitivity_summary(frame)


def _front(job: JobRecord, description: ModelDescription, progress: queries.Progress, most: int) -> None:
    st.header("Choices on the front")
    if not progress.members:
        st.info("No map is on the front" + (" yet." if job.state.is_live else ": none meets every limit."))
        return
    count = "1 map" if len(progress.members) == 1 else f"{len(progress.members)} maps"
    of_front = job.id, progress.version, most
    roles, figures = queries.cached(lambda: _chosen(job.id, description, progress, most), "chosen", *of_front)
    st.caption(
        f"Choices of {count} on the front for each layer"
        + (f", for the {most} layers on which they agree least" if most < len(description.layers) else "")
        + ". Colour is precision; hatched: activations quantized dynamically; dotted: only weights are quantized."
    )
    st.plotly_chart(
        figures[0],
        key="choices",
        config=CONFIG,
        alt=f"How often each layer takes each choice in {count}; the table below has the same shares by type",
    )
    st.header("Static or dynamic, by type of layer")
    st.plotly_chart(
        figures[1],
        key="roles",
        config=CONFIG,
        alt="Shares of static, dynamic, weight-only and floating-point layers by type; the table has the same values",
    )
    _roles(roles)


def _chosen(
    job_id: str, description: ModelDescription, progress: queries.Progress, most: int
) -> tuple[pd.DataFrame, tuple[go.Figure, go.Figure]]:
    """Return the shares per layer type, and the figures of layers and of layer types."""
    choices = choice_frame(description, [t.choices for t in progress.trials if t.number in progress.members])
    roles = role_frame(choices)
    return roles, (choices_figure(most_disputed(choices, most), job_id), roles_figure(roles, job_id))


def _roles(roles: pd.DataFrame) -> None:
    shares = [column for column in roles.columns if column not in ("role", "layers")]
    st.dataframe(
        roles[["role", "layers"]].join(100 * roles[shares]),
        hide_index=True,
        key="role-shares",
        alt="One row per layer type, with the shares drawn above",
        column_config={
            "role": st.column_config.TextColumn("Type", pinned=True),
            "layers": "Layers",
            **{name: st.column_config.NumberColumn(name.capitalize(), format="%.0f %%") for name in shares},
        },
    )
