"""How precisely a map's file says what calibration found."""

#: Significant digits: more would only lengthen the file.
_DIGITS = 4


def shortened(number: float) -> float:
    """Return ``number`` as the file has it, so that a layer is the same before and after."""
    return float(f"{number:.{_DIGITS}g}")
