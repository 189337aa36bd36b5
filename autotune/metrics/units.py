"""Quantities as people write them in limits and budgets, such as ``1%``, ``20ms``, ``60 MiB`` and ``5 min``."""

import re
from collections.abc import Mapping
from fractions import Fraction

#: Unit of a quantity -> units it may be written in -> how many of the first one each is. Shares have no unit.
UNITS: Mapping[str, Mapping[str, Fraction]] = {
    "ms": {"us": Fraction(1, 1000), "ms": Fraction(1), "s": Fraction(1000)},
    "MiB": {
        "KiB": Fraction(1, 2**10), "MiB": Fraction(1), "GiB": Fraction(2**10),
        "kB": Fraction(10**3, 2**20), "MB": Fraction(10**6, 2**20), "GB": Fraction(10**9, 2**20),
    },
    "s": {"ms": Fraction(1, 1000), "s": Fraction(1), "min": Fraction(60), "h": Fraction(3600)},
    "": {"%": Fraction(1, 100)},
}  # fmt: skip
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def pattern(unit: str) -> str:
    """Return the regular expression of a quantity in ``unit`` as text."""
    return rf"^\s*({_NUMBER})\s*({'|'.join(UNITS[unit])})?\s*$"


def quantity(value: object, unit: str) -> object:
    """Return text as a number in ``unit``, by its own unit if it names one; anything but text stays as it is.

    Raises:
        ValueError: if the text is no number, or has another unit.
    """
    if not isinstance(value, str):
        return value
    found = re.match(pattern(unit), value)
    if found is None:
        number, units = f"a number of {unit}" if unit else "a number", ", ".join(UNITS[unit])
        raise ValueError(f"must be {number}, alone or with a unit ({units}), but got {value[:80]!r}")
    scale = UNITS[unit].get(found[2], Fraction(1))
    return float(found[1]) * scale.numerator / scale.denominator
