"""Axes of the report's charts."""

import pytest

from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.reports.charts import _Axis, front_chart
from workers.timing.estimates import Figure


@pytest.mark.parametrize("values", [[0.04, 9.0], [0.0, 0.3], [-0.2, 5.0]])
def test_an_axis_that_begins_just_below_zero_has_a_plain_zero(values: list[float]) -> None:
    labels = [label for _, label in _Axis.over(values, 0.0, 100.0).ticks()]
    assert "0" in labels
    assert "-0" not in labels


def test_a_baseline_that_was_measured_again_is_still_marked_as_one() -> None:
    def trial(number: int, kind: TrialKind, label: str | None) -> TrialRecord:
        figures = {"latency_p50_ms": Figure(value=1.0 + number), "accuracy": Figure(value=0.5)}
        return TrialRecord(
            job_id="j", number=number, kind=kind, label=label, state=TrialState.COMPLETE, choices={}, key=str(number),
            figures=figures, finished_at=now(),
        )  # fmt: skip

    trials = [
        trial(0, TrialKind.FINAL, "uniform bf16"),
        trial(1, TrialKind.FINAL, None),
        trial(2, TrialKind.SEARCH, None),
    ]
    drawn = front_chart(trials, [], None, ["latency_p50_ms", "accuracy"])
    assert drawn.count('class="base"') == 1
    assert drawn.count('class="candidate"') == 2
