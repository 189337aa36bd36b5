"""Histograms of the latency of one candidate and of the interleaved full-precision model."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from autotune.metrics.catalog import METRICS
from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import BASELINE, LIMIT, QUIET, STRONG
from dashboard.formatting import in_chart
from dashboard.tables.trials import Limit
from workers.measurement import LatencySamples, Samples

_BINS = 60
#: Percentile at which the axis ends; the slowest samples would squeeze all others into a few bins.
_SHOWN_PERCENT = 99.5
#: Percentile -> position of its name; drawn only if there are enough samples.
_PERCENTILES = {50: "top left", 95: "top right", 99: "top right"}


def latency_figure(
    latency: LatencySamples, revision: str, *, drift: float = 1.0, limits: Sequence[Limit] = ()
) -> go.Figure:
    """Return both histograms over the same bins, each as shares of its samples.

    Args:
        latency: raw samples.
        revision: see ``layout.finish``.
        drift: factor that corrects for the machine's speed, so that times are comparable with figures and limits.
        limits: limits on percentiles, each drawn as a line with its label.
    """
    edges = _edges(latency) * drift
    figure = Drawing()
    for name, samples, color in (
        ("Full precision", latency.reference_ms * drift, BASELINE),
        ("This map", latency.candidate_ms * drift, STRONG),
    ):
        if samples.size:
            figure.add_trace(_outline(name, samples, edges, color))
    for percent, side in _PERCENTILES.items():
        if latency.candidate_ms.size > METRICS[f"latency_p{percent}_ms"].min_repeats:
            value = float(np.percentile(latency.candidate_ms, percent)) * drift
            _line(figure, value, f"p{percent}", side, {"color": STRONG, "width": 1, "dash": "dot"})
    for limit in limits:
        _line(figure, limit.value, limit.label, "bottom left", {"color": LIMIT, "width": 1.5, "dash": "dash"})
    figure.update_xaxes(title="Latency of one pass (ms)", gridcolor=QUIET, zeroline=False)
    figure.update_yaxes(title="Share of passes", gridcolor=QUIET, zeroline=False, tickformat=".0%", rangemode="tozero")
    return finish(figure, height=320, revision=revision)


def hidden_samples(latency: LatencySamples) -> int:
    """Return the number of passes that are slower than the end of the axis."""
    last = _edges(latency)[-1]
    return int((latency.candidate_ms > last).sum() + (latency.reference_ms > last).sum())


def _line(figure: go.Figure, value: float, label: str, side: str, line: dict[str, object]) -> None:
    note = {"text": in_chart(label), "font": {"size": 12}}
    figure.add_vline(x=value, line=line, annotation=note, annotation_position=side)


def _edges(latency: LatencySamples) -> Samples:
    both = np.concatenate([latency.candidate_ms, latency.reference_ms])
    low, high = float(both.min()), float(np.percentile(both, _SHOWN_PERCENT))
    return np.linspace(low, high if high > low else low + 1e-3, _BINS + 1)


def _outline(name: str, samples: Samples, edges: Samples, color: str) -> go.Scatter:
    shares = np.histogram(samples, edges)[0] / samples.size
    return go.Scatter(
        x=edges.tolist(),
        y=[*shares.tolist(), 0.0],
        mode="lines",
        name=name,
        line={"color": color, "width": 1.5, "shape": "hv"},
        fill="tozeroy",
        hovertemplate="%{x:.3g} ms: %{y:.1%}<extra></extra>",
    )
