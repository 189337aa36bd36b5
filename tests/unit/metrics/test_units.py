"""Quantities with units."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.metrics.units import UNITS, pattern, quantity


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("1%", "", 0.01),
        ("0.5 %", "", 0.005),
        ("70%", "", 0.7),
        (".02", "", 0.02),
        ("20ms", "ms", 20.0),
        (" 0.5 s ", "ms", 500.0),
        ("250us", "ms", 0.25),
        ("7", "ms", 7.0),
        ("60MiB", "MiB", 60.0),
        ("1.5 GiB", "MiB", 1536.0),
        ("512KiB", "MiB", 0.5),
        ("1048576 kB", "MiB", 1000.0),
        ("5 min", "s", 300.0),
        ("90s", "s", 90.0),
        ("1.5h", "s", 5400.0),
        ("1e2 s", "s", 100.0),
        ("1e999999999", "s", float("inf")),
    ],
)
def test_text_is_read_in_its_own_unit(text: str, unit: str, expected: float) -> None:
    assert quantity(text, unit) == expected
    assert re.search(pattern(unit), text)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(sorted(UNITS)))
def test_a_number_without_a_unit_is_itself(number: float, unit: str) -> None:
    assert quantity(number, unit) == number
    assert quantity(repr(number), unit) == number


@pytest.mark.parametrize(
    ("text", "unit"),
    [("20 MiB", "ms"), ("1 %", "s"), ("5 minutes", "s"), ("", "s"), ("ms", "ms"), ("1 2", ""), ("nan", "s")],
)
def test_other_text_is_refused(text: str, unit: str) -> None:
    with pytest.raises(ValueError, match=r"alone or with a unit \(") as caught:
        quantity(text, unit)
    assert repr(text) in str(caught.value)
