"""Precision of calibrated numbers in map files."""

#: Significant digits; more would only enlarge the file.
_DIGITS = 4


def shortened(number: float) -> float:
    """Return ``number`` rounded as in map files, so that a layer is the same before saving and after loading."""
    return float(f"{number:.{_DIGITS}g}")
