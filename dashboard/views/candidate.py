"""Page: the quantization map of one candidate, layer by layer."""

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit import Page

from autotune.errors import ConflictError
from autotune.jobs.records import JobRecord, TrialRecord, TrialState
from autotune.jobs.remarks import recovered_text
from autotune.maps.map_file import MappedRecovery, dump, map_document
from autotune.metrics.catalog import METRICS, percentiles_of
from dashboard import queries
from dashboard.charts.aligned import aligned_figure
from dashboard.charts.latency import hidden_samples, latency_figure
from dashboard.charts.layout import CONFIG
from dashboard.charts.strip import blocks, strip_figure
from dashboard.formatting import (
    ABSENT,
    cause_text,
    change_text,
    figure_text,
    in_markdown,
    interval_text,
    moment,
    one_line,
)
from dashboard.tables.cards import cards
from dashboard.tables.layers import layer_frame
from dashboard.tables.map_summary import map_summary
from dashboard.tables.trials import Limit, full_precision, misses_text
from dashboard.widgets.page_parts import NO_HISTOGRAMS, choose, linked_job, show_cards
from workers.measurement import LatencySamples, Workload
from workers.setup import ModelDescription, Probes
from workers.timing.estimates import Figure

#: Metrics below the cards, in reading order, by their short names.
_OTHERS = {
    "latency_p50_ms": "latency p50",
    "latency_p95_ms": "latency p95",
    "prefill_latency_p50_ms": "first token p50",
    "decode_latency_p50_ms": "per token p50",
    "request_latency_p50_ms": "request p50",
    "queued_latency_p95_ms": "under load p95",
    "shifted_accuracy": "shifted accuracy",
    "held_out_accuracy": "held-out accuracy",
    "peak_memory_mib": "peak memory",
}
#: Columns of the table of layers; empty ones are left out.
_COLUMNS = (
    "layer",
    "kind",
    "shape",
    "choice",
    "kernel",
    "bytes",
    "flops_share",
    "latency_ms",
    "divergence",
    "range",
    "clipped",
    "clipped_shifted",
    "refused",
)
#: Columns that are shown in percent.
_SHARES = ("flops_share", "clipped", "clipped_shifted")
#: Option for all layers.
_EVERYTHING = "all"


def show(front: Page, diff: Page) -> None:
    """Show the page; it links to ``front``, and to ``diff`` to compare the map with another."""
    st.title("Map")
    job = linked_job()
    if job is None:
        return
    progress = queries.progress(job)
    if not progress.trials:
        st.info("This job has no candidates yet." if job.state.is_live else "This job ended without any candidates.")
        return
    trial = _choose_trial(progress)
    if trial is None:
        return
    with st.container(horizontal=True, gap="medium"):
        st.page_link(front, label="← Back to the front", query_params={"job": job.id})
        st.page_link(diff, label="Compare with another map", query_params={"job": job.id, "second": str(trial.number)})
    _facts(job, trial, trial.number in progress.members)
    _figures(trial, full_precision(progress.trials), job.spec.objectives)
    _layers(job, trial, queries.probes(job, trial.backend))
    _latency(job, trial)
    _download(job, trial)


def _choose_trial(progress: queries.Progress) -> TrialRecord | None:
    trials = {str(trial.number): trial for trial in progress.trials}
    default = str(max(progress.members, default=progress.trials[-1].number))
    chosen = choose("Candidate", list(trials), parameter="trial", kind="trial", default=default, names=progress.names)
    return None if chosen is None else trials[chosen]


def _facts(job: JobRecord, trial: TrialRecord, on_front: bool) -> None:
    facts = ["on the front" if on_front else "not on the front"] if trial.feasible else []
    facts += [f"trial {trial.number}", f"measured {moment(trial.finished_at, st.context.timezone)}"]
    hardware = trial.environment.get("hardware")
    facts += [f"runs on {trial.ran_on}"] if trial.ran_on else []
    facts += [str(hardware)] if hardware else []
    st.caption(" · ".join(in_markdown(fact) for fact in facts))
    recovered = recovered_text(trial)
    if recovered:
        st.caption(in_markdown(recovered, longest=400))
    misses = misses_text(trial, job.spec.constraints.constraints())
    if misses:
        st.warning(in_markdown(f"This map breaks limits: {misses}.", longest=400))
    if trial.state is TrialState.FAILED:
        st.error("This candidate could not be measured: " + (cause_text(trial.failure) if trial.failure else "unknown"))
    if trial.state is TrialState.REJECTED:
        st.info("This candidate was ruled out before it was measured in full.")
    if trial.message:
        st.text(trial.message)


def _figures(trial: TrialRecord, full: TrialRecord | None, objectives: Sequence[str]) -> None:
    """Show the four figures that decide as cards, and the others in a line with intervals and changes."""
    reference = full.figures if full else {}
    show_cards(cards(trial.figures, reference, objectives))
    others = [
        _figure_text(metric, trial.figures[metric], reference.get(metric))
        for metric in _OTHERS
        if metric in trial.figures
    ]
    if others:
        st.caption(
            in_markdown(
                f"Also {'; '.join(others)}. Intervals are of 95 % confidence, changes relative to full precision.",
                longest=800,
            )
        )


def _figure_text(metric: str, figure: Figure, reference: Figure | None) -> str:
    interval = interval_text(metric, figure)
    changed = reference is not None and figure.value != reference.value
    notes = [interval, change_text(figure.value, reference.value) if changed and reference else ""]
    inside = ", ".join(filter(None, notes))
    return f"{_OTHERS[metric]} {figure_text(metric, figure)}" + (f" ({inside})" if inside else "")


def _layers(job: JobRecord, trial: TrialRecord, probes: Probes | None) -> None:
    if job.description is None:
        return
    st.header("Layers")
    # A trial never changes, so its charts can be cached.
    of_trial = job.id, trial.number, probes is not None
    description = job.description.on(trial.backend)
    frame, strip = queries.cached(partial(_strip, job, description, trial, probes), "strip", *of_trial)
    st.markdown(in_markdown(map_summary(description, trial.choices, probes), longest=400))
    st.plotly_chart(
        strip,
        key="strip",
        config=CONFIG,
        alt=f"Choices of {len(frame)} layers in execution order; the table below has the same content",
    )
    st.caption(
        "Each cell is a layer, in execution order. S: activations quantized statically, D: dynamically, "
        "W: only weights are quantized; no letter: floating point."
    )
    _costs(of_trial, frame)
    _table(frame)
    left_out = "; ".join(f"{name} ({why})" for name, why in job.description.skipped.items())
    if left_out:
        st.caption(in_markdown(f"These weights belong to no layer and stay in fp32: {left_out}.", longest=1000))


def _strip(
    job: JobRecord, description: ModelDescription, trial: TrialRecord, probes: Probes | None
) -> tuple[pd.DataFrame, go.Figure]:
    frame = layer_frame(description, trial.choices, probes)
    return frame, strip_figure(frame, f"{job.id} {trial.number}")


def _costs(of_trial: tuple[str, int, bool], frame: pd.DataFrame) -> None:
    """Show the costs of all layers, or of one block."""
    rows = blocks(frame["layer"].tolist())
    starts = list(itertools.accumulate((count for _, count in rows), initial=0))
    names = {_EVERYTHING: f"All {len(frame)} layers"}
    names |= {str(at): f"{at}: {one_line(label)} ({count})" for at, (label, count) in enumerate(rows, start=1)}
    block = choose("Layers shown", list(names), parameter="block", kind="block", default=_EVERYTHING, names=names)
    if block is None:
        return
    shown = frame if block == _EVERYTHING else frame.iloc[starts[int(block) - 1] : starts[int(block)]]
    st.plotly_chart(
        queries.cached(lambda: aligned_figure(shown, f"{of_trial} {block}"), "costs", *of_trial, block),
        key="costs",
        config=CONFIG,
        alt=f"Time, memory, expected divergence and input range of {len(shown)} layers; the table has the same figures",
    )
    if frame["latency_ms"].isna().all():
        st.caption("The time and divergence of each layer are unknown: this job did not probe its layers.")
    if frame["clipped"].isna().all():
        st.caption(f"Clipping is unknown. {NO_HISTOGRAMS}")
    elif not frame["clipped"].any():
        st.caption("The calibrated ranges cover every value seen in calibration, so nothing is clipped.")


def _table(frame: pd.DataFrame) -> None:
    st.dataframe(
        frame.assign(**{name: 100 * frame[name] for name in _SHARES})[
            [name for name in _COLUMNS if frame[name].notna().any()]
        ],
        hide_index=True,
        placeholder=ABSENT,
        key="layers-table",
        alt="The layers in execution order, one per row",
        column_config={
            "layer": st.column_config.TextColumn("Layer", pinned=True),
            "kind": "Kind",
            "shape": "Weight shape",
            "choice": st.column_config.TextColumn("Choice", width=140),
            "kernel": st.column_config.TextColumn(
                "Kernel", help="The fastest kernel on this processor for the shapes of the layer"
            ),
            "bytes": "Size",
            "flops_share": st.column_config.NumberColumn("Share of FLOPs", format="%.2f %%"),
            "latency_ms": st.column_config.NumberColumn("Time (ms)", format="%.3f", help="As probed, inside the layer"),
            "divergence": st.column_config.NumberColumn(
                "Divergence", format="%.1e", help="As probed, if only this layer took its choice"
            ),
            "range": st.column_config.TextColumn("Input range", help="Calibrated; static quantization uses it"),
            "clipped": st.column_config.NumberColumn(
                "Clipped", format="%.2g %%", help="Share of the inputs seen in calibration that are outside the range"
            ),
            "clipped_shifted": st.column_config.NumberColumn(
                "Clipped, shifted",
                format="%.2g %%",
                help="Share of the inputs on shifted data that are outside the range",
            ),
            "refused": st.column_config.TextColumn(
                "Cannot take", help="Choices that this layer cannot take, with the reasons"
            ),
        },
    )


def _latency(job: JobRecord, trial: TrialRecord) -> None:
    """Show the raw latencies of the map and of the interleaved full-precision model."""
    runs = queries.latency(job, trial.number)
    if not runs:
        return
    st.header("Latency")
    sizes = {_timed_text(run): run for run in runs}
    size = next(iter(sizes))
    if len(sizes) > 1:
        size = st.segmented_control("Batch size", list(sizes), default=size, required=True, key="batch") or size
    run = sizes[size]
    metrics = percentiles_of(run.workload)
    median = metrics[50].name
    # The figures above and the limits are for the first batch size, and drift-corrected.
    first = run.batch_size == runs[0].batch_size and median in trial.figures
    drift = trial.figures[median].value / float(np.median(run.candidate_ms)) if first else 1.0
    limits = [
        Limit(value=limit.limit, at_most=True, label=f"limit of p{METRICS[limit.metric].percent}")
        for limit in job.spec.constraints.constraints()
        if first and METRICS[limit.metric] in metrics.values()
    ]
    of_run = job.id, trial.number, size
    st.plotly_chart(
        queries.cached(lambda: latency_figure(run, str(of_run), drift=drift, limits=limits), "latency", *of_run),
        key="latencies",
        config=CONFIG,
        alt=f"Histogram of {run.candidate_ms.size} passes of this map and {run.reference_ms.size} of full precision",
    )
    hidden = hidden_samples(run)
    corrected = (
        f" Times are multiplied by {drift:.3f} to correct for the machine's speed at that moment." if first else ""
    )
    st.caption(
        f"{run.candidate_ms.size} passes of this map interleaved with {run.reference_ms.size} of full precision, batch "
        f"size {size}.{corrected}" + (f" Slower passes not shown: {hidden}." if hidden else "")
    )


def _timed_text(run: LatencySamples) -> str:
    return str(run.batch_size) if run.workload is Workload.FORWARD else f"{run.batch_size}, {run.workload}"


def _download(job: JobRecord, trial: TrialRecord) -> None:
    st.header("Export")
    try:
        text = dump(map_document(job, trial))
    except ConflictError:
        st.caption("Only a measured map can be exported.")
        return
    st.download_button(
        "Download the map (JSON)",
        text,
        file_name=f"map-{job.id}-{trial.number}.json",
        mime="application/json",
        on_click="ignore",
    )
    recovery = MappedRecovery.of(trial)
    if recovery is not None:
        st.download_button(
            "Download its learned weights, to be kept beside the map",
            partial(queries.artifact, recovery.sidecar.sha256),
            file_name=recovery.sidecar.file,
            mime="application/octet-stream",
            on_click="ignore",
        )
    st.markdown("From the command line:")
    st.code(f"autotune export {job.id} --pick {trial.number} -o map.json", language="bash")
    st.markdown("Apply it in Python to the full-precision model of the task:")
    st.code(
        f'import autotune\n\nmodel = autotune.load_map("map-{job.id}-{trial.number}.json").apply(model)',
        language="python",
    )
