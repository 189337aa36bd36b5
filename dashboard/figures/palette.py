"""Colours that colour-blind readers can tell apart (Okabe and Ito, 2008) and that hold on white and on black."""

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

#: Colour of a precision, and of the letter on it.
PRECISIONS: dict[Precision, tuple[str, str]] = {
    Precision.FP32: ("#A9B1BA", "#111111"),
    Precision.BF16: ("#56B4E9", "#111111"),
    Precision.FP16: ("#0072B2", "#FFFFFF"),
    Precision.FP8: ("#CC79A7", "#111111"),
    Precision.INT8: ("#E69F00", "#111111"),
    Precision.INT4: ("#009E73", "#111111"),
}
