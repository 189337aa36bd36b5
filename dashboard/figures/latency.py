"""Latency of one candidate beside the interleaved full-precision model, as a histogram."""

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.layout import finish
from dashboard.figures.palette import BASELINE, QUIET, STRONG
from workers.measurement import LatencySamples, Samples

_BINS = 60
#: The slowest few samples would squeeze all others into a few bins.
_SHOWN_PERCENT = 99.5


def latency_figure(latency: LatencySamples, revision: str) -> go.Figure:
    """Return both histograms over the same bins, as shares of the samples of each."""
    edges = _edges(latency)
    figure = go.Figure()
    for name, samples, color in (
        ("Full precision", latency.reference_ms, BASELINE),
        ("This map", latency.candidate_ms, STRONG),
    ):
        if samples.size:
            figure.add_trace(_outline(name, samples, edges, color))
    if latency.candidate_ms.size:
        for percent, side in ((50, "top left"), (95, "top right")):
            figure.add_vline(
                x=float(np.percentile(latency.candidate_ms, percent)),
                line={"color": STRONG, "width": 1, "dash": "dot"},
                annotation={"text": f"p{percent}", "font": {"color": STRONG, "size": 12}},
                annotation_position=side,
            )
    figure.update_xaxes(title="Latency of one pass (ms)", gridcolor=QUIET, zeroline=False)
    figure.update_yaxes(title="Share of passes", gridcolor=QUIET, zeroline=False, tickformat=".0%", rangemode="tozero")
    return finish(figure, height=300, revision=revision)


def hidden_samples(latency: LatencySamples) -> int:
    """Return how many passes are slower than the histogram shows."""
    last = _edges(latency)[-1]
    return int((latency.candidate_ms > last).sum() + (latency.reference_ms > last).sum())


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
