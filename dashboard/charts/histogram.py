"""The distribution of one layer's inputs in calibration, with the range that static quantization covers."""

import math

import plotly.graph_objects as go

from dashboard.charts.layout import Drawing, finish
from dashboard.charts.palette import FAINT, LIMIT, QUIET, STRONG
from search_spaces.quantization_map import ActivationRange
from workers.setup import ActivationHistogram

#: Share of the axis above the bars, to make room for the names of the bounds.
_ROOM_FOR_WORDS = 0.2


def histogram_figure(histogram: ActivationHistogram, calibrated: ActivationRange, revision: str) -> go.Figure:
    """Return the histogram on a logarithmic axis of shares; bins outside the range are fainter.

    Args:
        histogram: a histogram of at least one value.
        calibrated: the calibrated range, drawn as two lines.
        revision: see ``layout.finish``.
    """
    width = (histogram.high - histogram.low) / len(histogram.counts)
    middles = [histogram.low + (at + 0.5) * width for at in range(len(histogram.counts))]
    total = sum(histogram.counts)
    bars = go.Bar(
        x=middles,
        # An empty bin has no logarithm.
        y=[count / total if count else None for count in histogram.counts],
        width=width,
        marker={"color": [STRONG if calibrated.low <= middle <= calibrated.high else FAINT for middle in middles]},
        customdata=[[middle - width / 2, middle + width / 2] for middle in middles],
        hovertemplate="%{customdata[0]:.4g} to %{customdata[1]:.4g}: %{y:.2%}<extra></extra>",
    )
    figure = Drawing(bars)
    for bound, word, side in ((calibrated.low, "lower", "top right"), (calibrated.high, "upper", "top left")):
        figure.add_vline(
            x=bound,
            line={"color": LIMIT, "width": 1.5, "dash": "dash"},
            annotation={"text": f"{word} end {bound:.4g}", "font": {"size": 12}},
            annotation_position=side,
        )
    figure.update_xaxes(title="Input of the layer", gridcolor=QUIET, zeroline=False)
    least, most = (math.log10(limit(count for count in histogram.counts if count) / total) for limit in (min, max))
    figure.update_yaxes(
        title="Share of the values",
        type="log",
        range=(least - 0.5, most + _ROOM_FOR_WORDS * (most - least + 1)),
        gridcolor=QUIET,
        dtick=1,
        exponentformat="power",
        zeroline=False,
    )
    return finish(figure, height=300, revision=revision, legend=False).update_layout(bargap=0, margin_t=24)
