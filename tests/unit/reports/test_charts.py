"""Axes of the report's charts."""

import pytest

from autotune.reports.charts import _Axis


@pytest.mark.parametrize("values", [[0.04, 9.0], [0.0, 0.3], [-0.2, 5.0]])
def test_an_axis_that_begins_just_below_zero_has_a_plain_zero(values: list[float]) -> None:
    labels = [label for _, label in _Axis.over(values, 0.0, 100.0).ticks()]
    assert "0" in labels
    assert "-0" not in labels
