"""Page: the layers of a job's model: how sensitive they are, and what the front makes of them."""

import pandas as pd
import streamlit as st

from autotune.store.records import JobRecord
from dashboard import reading
from dashboard.figures.layers import choices_figure, roles_figure, sensitivity_figure
from dashboard.figures.layout import CONFIG
from dashboard.layer_frames import choice_frame, most_disputed, role_frame, sensitivity_frame
from dashboard.parts import choose_job
from workers.setup import Estimator, ModelDescription, Probes

_METHODS = {
    Estimator.GRADIENT: "a gradient sketch",
    Estimator.LOCAL: "the layers' local errors, scaled to the uniform maps,",
}
#: Layers drawn until more are asked for.
_MOST_DRAWN = 30


def show() -> None:
    """Show the page."""
    st.title("Layers")
    job = choose_job()
    if job is None:
        return
    if job.description is None:
        st.info("The workers have not described this job's model" + (" yet." if job.state.is_live else "."))
        return
    progress, layers = reading.progress(job), len(job.description.layers)
    everything = layers > _MOST_DRAWN and st.toggle(
        f"Draw all {layers} layers, not only {_MOST_DRAWN}", key="all_layers", bind="query-params"
    )
    most = layers if everything else _MOST_DRAWN
    _sensitivity(job, job.description, progress.probes, most)
    _front(job, job.description, progress, most)


def _sensitivity(job: JobRecord, description: ModelDescription, probes: Probes | None, most: int) -> None:
    st.header("Sensitivity")
    if probes is None:
        st.info("This job's layers were not probed, so how sensitive each is, is not known.")
        return
    frame = sensitivity_frame(description, probes)
    ranked = list(dict.fromkeys(frame["layer"]))
    st.plotly_chart(
        sensitivity_figure(frame[frame["layer"].isin(ranked[:most])], job.id),
        key="sensitivity",
        config=CONFIG,
        alt=f"Expected divergence of {len(ranked[:most])} layers by choice, most sensitive first; the table has all",
    )
    st.caption(
        f"Estimated by {_METHODS[probes.estimator]} from {probes.samples} samples in {probes.seconds:.1f} s, before "
        "any map was measured. Colour is precision; circles quantize activations statically, diamonds dynamically, "
        "squares weights only. A choice without a loss has no point."
    )
    st.dataframe(
        frame[["layer", "role", "choice", "divergence", "saved_ms"]],
        hide_index=True,
        key="sensitivities",
        alt="Every layer and choice with its expected divergence and the time it saves, most sensitive layer first",
        column_config={
            "layer": st.column_config.TextColumn("Layer", pinned=True),
            "role": "Type",
            "choice": "Choice",
            "divergence": st.column_config.NumberColumn("Divergence", format="%.1e"),
            "saved_ms": st.column_config.NumberColumn("Saves (ms)", format="%.3f", help="Against full precision"),
        },
    )


def _front(job: JobRecord, description: ModelDescription, progress: reading.Progress, most: int) -> None:
    st.header("Choices on the front")
    maps = [trial.choices for trial in progress.trials if trial.number in progress.members]
    if not maps:
        st.info("No map is on the front" + (" yet." if job.state.is_live else ": none meets every limit."))
        return
    count = "1 map" if len(maps) == 1 else f"{len(maps)} maps"
    choices = choice_frame(description, maps)
    st.caption(
        f"What {count} on the front choose for each layer"
        + (f", for the {most} on which they agree least" if most < len(description.layers) else "")
        + ". Colour is precision; hatched: activations quantized dynamically; dotted: only weights are quantized."
    )
    st.plotly_chart(
        choices_figure(most_disputed(choices, most), job.id),
        key="choices",
        config=CONFIG,
        alt=f"How often each layer takes each choice in {count}; the table below has the same shares by type",
    )
    st.header("Static or dynamic, by type of layer")
    roles = role_frame(choices)
    st.plotly_chart(
        roles_figure(roles, job.id),
        key="roles",
        config=CONFIG,
        alt="Shares of static, dynamic, weight-only and floating-point layers by type; the table has the same",
    )
    _roles(roles)


def _roles(roles: pd.DataFrame) -> None:
    shares = [column for column in roles.columns if column not in ("role", "layers")]
    st.dataframe(
        roles[["role", "layers"]].join(100 * roles[shares]),
        hide_index=True,
        key="role-shares",
        alt="One row a type of layer with the shares drawn above",
        column_config={
            "role": st.column_config.TextColumn("Type", pinned=True),
            "layers": "Layers",
            **{name: st.column_config.NumberColumn(name.capitalize(), format="%.0f %%") for name in shares},
        },
    )
