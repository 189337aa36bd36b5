"""Colours that colour-blind readers can distinguish (Okabe and Ito, 2008), on white and on black."""

from search_spaces.choice import Precision

#: Front, reference lines of a candidate.
STRONG = "#2D8FD5"
#: Baselines, the full-precision model.
BASELINE = "#D08700"
#: Dominated points and secondary elements.
FAINT = "#8494A5"
#: Limits and what breaks them.
LIMIT = "#D5502A"
#: Grids and outlines.
QUIET = "rgba(128, 128, 128, 0.25)"
#: Guide lines, and rings around picked points.
GUIDE = "#7F8894"

#: Precision -> colour of a cell, and of the letter on it.
PRECISIONS: dict[Precision, tuple[str, str]] = {
    Precision.FP32: ("#A9B1BA", "#111111"),
    Precision.BF16: ("#56B4E9", "#111111"),
    Precision.FP16: ("#0072B2", "#FFFFFF"),
    Precision.FP8: ("#CC79A7", "#111111"),
    Precision.INT8: ("#E69F00", "#111111"),
    Precision.INT4: ("#009E73", "#111111"),
}

#: Activation mode -> colour.
MODE_COLORS = {
    "static": "#E28900",
    "dynamic": "#1F87D6",
    "weights only": "#009E73",
    "floating point": "#A9B1BA",
}

#: One colour per compared job; each job also has its own dash and symbol.
SERIES = ("#1F87D6", "#E28900", "#009E73", "#CC79A7", "#56B4E9", "#D5502A")
