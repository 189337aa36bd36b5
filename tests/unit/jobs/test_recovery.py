"""Which maps are recovered."""

from typing import Any

import pytest

from autotune.errors import ConflictError, NotFoundError
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.recovery import check_recoverable, promising, to_recover
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from search_spaces.errors import AutotuneError
from search_spaces.quantization_map import map_key
from workers.timing.estimates import Figure

SPEC = JobSpec.parse(
    {
        "name": "x",
        "task": {"name": "digits-cnn"},
        "objectives": ["latency_p50_ms", "divergence"],
        "constraints": {"divergence": {"max": 0.01}},
    }
)


def trial(number: int, ratio: float, divergence: float, choice: str = "int8_static", **changes: Any) -> TrialRecord:
    choices = {"a": choice, "b": f"fp{[32, 16][number % 2]}", "c": "fp32" if number < 2 else "bf16"}
    figures = {"latency_ratio": ratio, "latency_p50_ms": 10.0 * ratio, "divergence": divergence, "accuracy": 0.9}
    violations = {"divergence": (divergence - 0.01) / 0.01}
    known: dict[str, Any] = {
        "job_id": "j", "number": number, "kind": TrialKind.SEARCH, "label": None, "state": TrialState.COMPLETE,
        "choices": choices, "key": map_key({**choices, "n": str(number)}), "finished_at": now(),
        "figures": {name: Figure(value=value) for name, value in figures.items()}, "violations": violations,
    }  # fmt: skip
    return TrialRecord(**(known | changes))


FULL = trial(0, 1.0, 0.0, "fp32")


def test_promising_are_the_recommended_map_and_faster_ones_within_reach() -> None:
    trials = [
        FULL,
        trial(1, 0.8, 0.005),  # recommended
        trial(2, 0.6, 0.02),  # faster, but loses twice the limit
        trial(3, 0.5, 0.2),  # faster, but loses twenty times the limit
        trial(4, 0.9, 0.001),  # slower
        trial(5, 0.7, 0.02, "fp16"),  # has no integers to learn
        trial(6, 0.55, 0.02, violations={"divergence": 1.0, "weight_memory_mib": 0.1}),  # too large, whatever it learns
        trial(7, 0.4, 0.02, state=TrialState.REJECTED),
    ]
    assert [found.number for found in promising(trials, SPEC)] == [2, 1]


def test_promising_are_four_at_most_the_recommended_map_and_those_that_miss_least() -> None:
    trials = [FULL, trial(1, 0.95, 0.01), *(trial(n, 1.0 - n / 20, 0.02 + n / 1000) for n in range(2, 9))]
    assert [found.number for found in promising(trials, SPEC)] == [4, 3, 2, 1]


def test_promising_leaves_out_what_is_recovered_also_if_it_was_measured_again_since() -> None:
    first, better = trial(2, 0.6, 0.02), trial(3, 0.6, 0.001, kind=TrialKind.RECOVERED, parent=2)
    again = trial(5, 0.6, 0.02, kind=TrialKind.FINAL, choices=first.choices, key=first.key)
    trials = [FULL, trial(1, 0.8, 0.005), first, better, again]
    assert [found.number for found in to_recover(trials, SPEC, ["promising"])] == [1]
    with pytest.raises(ConflictError, match="the map of trial 5 is recovered already, as trial 3"):
        to_recover(trials, SPEC, ["2"])


def test_picks_that_cannot_be_recovered_may_be_skipped() -> None:
    told: list[str] = []
    trials = [
        FULL,
        trial(
            1,
            0.8,
            0.005,
            figures={
                n: Figure(value=v)
                for n, v in {"latency_ratio": 0.8, "latency_p50_ms": 8.0, "divergence": 0.005, "accuracy": 0.5}.items()
            },
        ),
    ]
    found = to_recover(trials, SPEC, ["most-accurate", "promising"], told.append)
    assert [trial.number for trial in found] == [1]
    assert told == ["recovery learns integer weights, but the map of trial 0 has none; take another trial"]


def test_picks_name_each_map_once_and_never_a_recovered_one() -> None:
    better = trial(3, 0.4, 0.001, kind=TrialKind.RECOVERED, parent=4)
    trials = [FULL, trial(1, 0.8, 0.005), trial(2, 0.6, 0.02), better, trial(4, 0.4, 0.2)]
    assert [found.number for found in to_recover(trials, SPEC, ["promising", "fastest", "2"])] == [2, 1]


@pytest.mark.parametrize(
    ("picks", "error", "words"),
    [
        (["0"], ConflictError, "recovery learns integer weights, but the map of trial 0 has none"),
        (["3"], ConflictError, "that of trial 3 is recovered already; take its parent, trial 1"),
        (["4"], ConflictError, r"trial 4 was not measured in full \(rejected\)"),
        (["9"], NotFoundError, "no trial 9"),
        (["best"], AutotuneError, "unknown pick 'best'.*promising"),
    ],
)
def test_wrong_picks_are_errors(picks: list[str], error: type[Exception], words: str) -> None:
    trials = [
        FULL,
        trial(1, 0.8, 0.005),
        trial(3, 0.8, 0.001, kind=TrialKind.RECOVERED, parent=1),
        trial(4, 0.8, 0.02, state=TrialState.REJECTED),
    ]
    with pytest.raises(error, match=words):
        to_recover(trials, SPEC, picks)


def test_a_map_with_integers_that_was_measured_can_be_recovered() -> None:
    check_recoverable(trial(1, 0.8, 0.005))
