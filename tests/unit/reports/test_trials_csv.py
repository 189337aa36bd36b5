"""Trials as CSV are what the records say, and nothing that a spreadsheet would run."""

import csv
from dataclasses import replace
from pathlib import Path

from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.reports.trials_csv import write
from workers.timing.estimates import Figure

FIRST = TrialRecord(
    job_id="abc", number=0, kind=TrialKind.BASELINE, label="fp32", state=TrialState.COMPLETE,
    choices={"first": "fp32", "second": "fp32"}, key="0", finished_at=now(),
    figures={"latency_p50_ms": Figure(value=2.0, low=1.9, high=2.1), "divergence": Figure(value=0.0)},
    violations={"accuracy_drop": -1.0},
)  # fmt: skip
SLOWER = replace(
    FIRST, number=1, key="1", label=None, choices={"first": "fp32", "second": "int8_static"},
    figures={"latency_p50_ms": Figure(value=3.0, low=2.9, high=3.1), "divergence": Figure(value=0.1)},
)  # fmt: skip
LOST = replace(
    FIRST, number=2, key="2", state=TrialState.FAILED, figures={}, violations={}, message='=HYPERLINK("evil")',
    label="+1",
)  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_trial_is_a_row_and_the_front_a_table_of_its_own(tmp_path: Path) -> None:
    front, trials = (rows(path) for path in write([FIRST, SLOWER, LOST], (0,), tmp_path))
    assert [row["number"] for row in trials] == ["0", "1", "2"]
    assert [row["number"] for row in front] == ["0"]
    assert trials[1]["latency_p50_ms"] == "3.0"
    assert (trials[1]["latency_p50_ms_low"], trials[1]["latency_p50_ms_high"]) == ("2.9", "3.1")
    assert trials[1]["layer:second"] == "int8_static"
    assert trials[0]["violation:accuracy_drop"] == "-1.0"
    assert trials[2]["divergence"] == ""
    assert "divergence_low" not in trials[0], "no trial sampled it"


def test_recovered_maps_name_their_parents(tmp_path: Path) -> None:
    recovered = replace(SLOWER, number=3, kind=TrialKind.RECOVERED, parent=1)
    _, path = write([FIRST, SLOWER, recovered], (), tmp_path)
    assert [(row["kind"], row["parent"]) for row in rows(path)] == [
        ("baseline", ""), ("baseline", ""), ("recovered", "1"),
    ]  # fmt: skip
    _, path = write([FIRST, SLOWER], (), tmp_path)
    assert "parent" not in rows(path)[0]


def test_text_never_becomes_a_formula(tmp_path: Path) -> None:
    _, path = write([FIRST, LOST], (0,), tmp_path)
    assert rows(path)[1]["message"] == '\'=HYPERLINK("evil")'
    assert rows(path)[1]["label"] == "'+1"


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    texts = [[path.read_bytes() for path in write([FIRST, SLOWER], (0, 1), tmp_path / name)] for name in ("a", "b")]
    assert texts[0] == texts[1]


def test_job_without_trials_gives_empty_tables(tmp_path: Path) -> None:
    assert [rows(path) for path in write([], (), tmp_path)] == [[], []]
