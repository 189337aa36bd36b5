"""The table of a front fits a terminal, whatever was measured."""

import io
from collections.abc import Mapping, Sequence

import pytest
from rich.console import Console

from autotune.console.output import front_table, trial_name
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import METRICS
from workers.timing.estimates import Figure


def shown(
    *beginnings: str,
    low: float | None = None,
    high: float | None = None,
    violations: Mapping[str, float] | None = None,
    objectives: Sequence[str] = (),
) -> str:
    trial = TrialRecord(
        job_id="j", number=1, kind=TrialKind.SEARCH, label="uniform int8_dynamic", state=TrialState.COMPLETE,
        choices={"a": "int8_dynamic"}, key="k", finished_at=now(), violations=violations or {},
        figures={name: Figure(value=12.345, low=low, high=high) for name in METRICS if name.startswith(beginnings)},
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table("A front", [trial], objectives))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_names_of_maps_keep_room_beside_all_metrics_of_a_language_model() -> None:
    text = shown("latency", "prefill", "decode", "request", "queued", "accuracy", "shifted", "divergence", "weight")
    assert "uniform" in text
    assert [heading for heading in ("token ms", "load p95", "accuracy", "diverg.", "MiB") if heading not in text] == []
    assert "first ms" not in text


def test_nothing_is_left_out_where_there_is_room() -> None:
    text = shown("latency", "accuracy", "divergence", "weight")
    assert all(heading in text for heading in ("p50 ms", "p95 ms", "speedup", "accuracy", "diverg.", "MiB"))


@pytest.mark.parametrize(
    ("low", "high", "marked"), [(None, None, False), (10.0, 15.0, False), (9.8, 13.0, True), (12.0, 15.5, True)]
)
def test_a_speedup_that_may_be_another_says_so(low: float | None, high: float | None, marked: bool) -> None:
    assert ("~0.08x" in shown("latency", low=low, high=high)) is marked


def test_a_missed_limit_is_wrapped_between_words() -> None:
    text = shown("latency", "prefill", "decode", violations={"prefill_latency_p95_ms": 0.5})
    assert {"prefill", "latency"} <= set(text.split())


def test_objectives_are_left_out_last() -> None:
    many = ("latency", "accuracy", "shifted", "divergence", "weight")
    assert "p95 ms" not in shown(*many)
    text = shown(*many, objectives=("latency_p95_ms", "divergence"))
    assert "p95 ms" in text
    assert "p50 ms" not in text


def test_a_recovered_map_is_named_after_its_parent() -> None:
    names = [
        trial_name(
            TrialRecord(
                job_id="j", number=1, kind=TrialKind.RECOVERED, label=label, state=TrialState.COMPLETE, parent=0,
                choices={"a": "int8_static", "b": "fp32"}, backend="openvino", key="k", finished_at=now(),
            )
        )
        for label in ("uniform int8_static", None)
    ]  # fmt: skip
    assert names == ["uniform s8 on openvino, recovered", "1 s8 + 1 fp32 on openvino, recovered"]


@pytest.mark.parametrize(("tied", "kind", "number"), [((), TrialKind.SEARCH, "1"), ((1,), TrialKind.FINAL, "1*=")])
def test_ties_are_marked_at_the_number(tied: tuple[int, ...], kind: TrialKind, number: str) -> None:
    trial = TrialRecord(
        job_id="j", number=1, kind=kind, label=None, state=TrialState.COMPLETE, choices={"a": "fp32"}, key="k",
        finished_at=now(),
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table("A front", [trial], tied=tied))
    assert isinstance(console.file, io.StringIO)
    assert number in console.file.getvalue().split()
