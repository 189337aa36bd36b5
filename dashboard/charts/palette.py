"""Colours that colour-blind readers can tell apart (Okabe and Ito, 2008) and that hold on white and on black."""

import math

from search_spaces.choice import Precision

#: Front, reference lines of a candidate.
STRONG = "#2D8FD5"
#: Baselines, the full-precision model.
BASELINE = "#D08700"
#: What lies behind the front.
FAINT = "#8494A5"
#: Limits and what breaks them.
LIMIT = "#D5502A"
#: Grid and outlines that are no data.
QUIET = "rgba(128, 128, 128, 0.25)"
#: Lines that lead the eye and rings around what is picked.
GUIDE = "#7F8894"

#: From every activation quantized dynamically to every one statically: blue over grey to orange, which no
#: common colour blindness confuses.
STATIC_SCALE = ((0.0, (31, 135, 214)), (0.5, (150, 140, 158)), (1.0, (226, 137, 0)))
#: No activation is quantized.
NO_ACTIVATIONS = "#7C8A83"

#: Colour of a precision, and of the letter on it.
PRECISIONS: dict[Precision, tuple[str, str]] = {
    Precision.FP32: ("#A9B1BA", "#111111"),
    Precision.BF16: ("#56B4E9", "#111111"),
    Precision.FP16: ("#0072B2", "#FFFFFF"),
    Precision.FP8: ("#CC79A7", "#111111"),
    Precision.INT8: ("#E69F00", "#111111"),
    Precision.INT4: ("#009E73", "#111111"),
}

#: How a layer treats its input -> colour, and symbol where colour stands for precision.
MODE_COLORS = {
    "static": "#E28900",
    "dynamic": "#1F87D6",
    "weights only": "#009E73",
    "floating point": "#A9B1BA",
}
CHOICE_SYMBOLS = {"static": "circle", "dynamic": "diamond", "weights only": "square", "floating point": "x"}

#: One a job, where jobs are compared; each also has a dash and a symbol of its own.
SERIES = ("#1F87D6", "#E28900", "#009E73", "#CC79A7", "#56B4E9", "#D5502A")


def static_color(share: float) -> str:
    """Return the colour of a map with that share of statically quantized activations; NaN is a map with none."""
    if math.isnan(share):
        return NO_ACTIVATIONS
    (start, below), (end, above) = STATIC_SCALE[:2] if share <= STATIC_SCALE[1][0] else STATIC_SCALE[1:]
    part = (share - start) / (end - start)
    mixed = (round(low + part * (high - low)) for low, high in zip(below, above, strict=True))
    return "rgb({}, {}, {})".format(*mixed)
