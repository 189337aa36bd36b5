"""Maps between two uniform ones, measured before a sampler has learned anything."""

from dataclasses import replace

from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.timestamps import now
from autotune.search.initial_design import mixtures
from search_spaces.layer import Layer, LayerKind
from search_spaces.space import LayerRule, build_space
from workers.timing.estimates import Figure

OBJECTIVES = ("latency_p50_ms", "divergence")
SPACE = build_space(
    [
        Layer(
            name=f"l{i}", kind=LayerKind.LINEAR, weight_shape=(8, 8), has_bias=False, weight_bytes=256,
            input_shape=(1, 8), flops=128, calls=1, order=i, group=f"l{i}",
        )
        for i in range(30)
    ],
    choices=("fp32", "bf16", "int8_static", "int8_dynamic"),
    supports=lambda layer, choice: None,
)  # fmt: skip


def baseline(number: int, choice: str, latency: float, divergence: float) -> TrialRecord:
    choices = SPACE.layer_choices(SPACE.uniform(choice))
    figures = {"latency_p50_ms": Figure(value=latency), "divergence": Figure(value=divergence)}
    return TrialRecord(
        job_id="j", number=number, kind=TrialKind.BASELINE, label=choice, state=TrialState.COMPLETE,
        choices=choices, key=choice, figures=figures, finished_at=now(),
    )  # fmt: skip


TRIALS = [
    baseline(0, "fp32", 4.0, 1e-9),
    baseline(1, "bf16", 2.0, 1e-4),
    baseline(2, "int8_static", 1.0, 1e-2),
    baseline(3, "int8_dynamic", 3.0, 1e-2),  # dominated by bf16
]


def test_mixtures_are_of_two_maps_on_the_front() -> None:
    found = list(mixtures(SPACE, TRIALS, OBJECTIVES, seed=0))
    assert len(found) == 9  # three pairs, three shares
    assert all(len(set(assignment.values())) == 2 for assignment in found)
    assert {choice for assignment in found for choice in assignment.values()} == {"fp32", "bf16", "int8_static"}


def test_shares_differ() -> None:
    counts = [list(a.values()).count("fp32") for a in mixtures(SPACE, TRIALS, OBJECTIVES, seed=1)]
    assert max(counts) > 18
    assert any(0 < count < 12 for count in counts)


def test_same_seed_same_mixtures() -> None:
    one, again, other = (list(mixtures(SPACE, TRIALS, OBJECTIVES, seed=seed)) for seed in (3, 3, 4))
    assert one == again != other


def test_one_map_on_the_front_has_nothing_to_mix_with() -> None:
    assert list(mixtures(SPACE, [baseline(0, "fp32", 1.0, 1e-9)], OBJECTIVES, seed=0)) == []


def test_what_the_space_does_not_hold_is_not_mixed() -> None:
    pinned = build_space(
        SPACE.layers,
        choices=("fp32", "bf16"),
        supports=lambda layer, choice: None,
        rules=[LayerRule(pattern="l0", pin="bf16")],
    )
    # The uniform fp32 map has l0 in fp32, though it is pinned.
    assert list(mixtures(pinned, TRIALS[:2], OBJECTIVES, seed=0)) == []


def test_only_baselines_are_mixed() -> None:
    searched = [replace(trial, kind=TrialKind.SEARCH) if trial.number == 2 else trial for trial in TRIALS]
    found = list(mixtures(SPACE, searched, OBJECTIVES, seed=0))
    # Without static int8, dynamic int8 is still behind bf16.
    assert {choice for assignment in found for choice in assignment.values()} == {"fp32", "bf16"}
    assert len(found) == 3


def test_more_groups_take_the_choice_of_the_first_map_at_first() -> None:
    counts = [list(a.values()).count("fp32") for a in mixtures(SPACE, TRIALS[:2], OBJECTIVES, seed=0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 15 > counts[-1]
