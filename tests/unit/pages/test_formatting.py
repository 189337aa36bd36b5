from datetime import UTC, datetime

import pytest

from autotune.jobs.records import JobState
from autotune.metrics.catalog import METRICS, Constraint
from dashboard import formatting
from workers.timing.estimates import Figure


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("latency_p50_ms", 8.2149, "8.21 ms"),
        ("latency_p50_ms", 27.04, "27.0 ms"),
        ("latency_p50_ms", 1234.5, "1234 ms"),
        ("latency_p50_ms", 0.0412, "0.0412 ms"),
        ("accuracy", 0.72134, "0.7213"),
        ("accuracy_drop", 0.0204, "2.04 %"),
        ("latency_ratio", 0.3699, "2.70x as fast"),
        ("weight_memory_mib", 22.71, "22.7 MiB"),
        ("divergence", 0.0, "0"),
        ("divergence", 3.2e-6, "3.2e-06"),
        ("divergence", float("nan"), "unknown"),
    ],
)
def test_values_have_the_digits_that_mean_something(metric: str, value: float, shown: str) -> None:
    assert formatting.value_text(metric, value) == shown


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_shown(metric: str) -> None:
    assert formatting.figure_text(metric, Figure(value=1.0))[0] == "1"
    assert formatting.figure_text(metric, None) == formatting.ABSENT
    assert METRICS[metric].label in formatting.axis_title(metric)


def test_an_interval_names_both_ends_and_its_unit_once() -> None:
    assert formatting.interval_text("latency_p50_ms", Figure(value=8.2, low=8.1, high=8.35)) == "8.10 to 8.35 ms"
    assert formatting.interval_text("accuracy", Figure(value=0.7)) == ""


def test_a_limit_is_a_phrase() -> None:
    limit = Constraint(metric="latency_p95_ms", limit=12.0, at_most=True)
    assert formatting.constraint_text(limit) == "latency p95 at most 12.0 ms"
    drop = Constraint(metric="accuracy_drop", limit=0.01, at_most=True)
    assert formatting.constraint_text(drop) == "accuracy drop at most 1.00 %"


def test_a_change_has_its_sign() -> None:
    assert formatting.change_text(10.0, 27.0) == "-63.0 %"
    assert formatting.change_text(1.0, 0.0) == formatting.ABSENT


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-3, "0 s"), (59, "59 s"), (125, "2 min"), (3600, "1 h 00 min"), (7500, "2 h 05 min"), (200_000, "2 days")],
)
def test_durations_take_their_largest_unit(seconds: float, shown: str) -> None:
    assert formatting.duration(seconds) == shown


def test_times_carry_their_zone() -> None:
    at = datetime(2026, 1, 5, 23, 30, tzinfo=UTC)
    assert formatting.moment(at, "Europe/Berlin") == "6 Jan 2026, 00:30 CET"
    assert formatting.moment(at, None) == "5 Jan 2026, 23:30 UTC"
    assert formatting.moment(at, "Not/AZone") == "5 Jan 2026, 23:30 UTC"


def test_markdown_is_shown_literally() -> None:
    assert formatting.in_markdown("![x](u) $a$ :red[b] <i>") == r"\!\[x\]\(u\) \$a\$ \:red\[b\] \<i\>"


def test_charts_show_html_literally() -> None:
    assert formatting.in_chart('<a href="x">& b</a>') == '&lt;a href="x"&gt;&amp; b&lt;/a&gt;'


def test_labels_are_one_line_of_bounded_length() -> None:
    assert formatting.one_line("a\n\tb\x00c\u202ed") == "a b c d"
    assert len(formatting.one_line("x" * 500)) == 120


@pytest.mark.parametrize("state", JobState)
def test_a_state_is_a_symbol_and_a_word(state: JobState) -> None:
    symbol, word = formatting.state_text(state).split()
    assert len(symbol) == 1
    assert word == state.value


def test_intervals_of_speedups_ascend() -> None:
    assert formatting.interval_text("latency_ratio", Figure(value=0.5, low=0.4, high=0.8)) == "1.25x to 2.50x as fast"
    assert formatting.interval_text("latency_p50_ms", Figure(value=5.0, low=4.0, high=8.0)) == "4.00 to 8.00 ms"
