"""The contract of ``autotune.search.study.Study``, run over every sampler."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from autotune.jobs.front import violations
from autotune.jobs.records import TrialKind, TrialRecord, TrialState
from autotune.jobs.spec import SamplerName
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import Constraint
from autotune.planner.prior import Prior, expect
from autotune.search import study as study_of_a_job
from autotune.search.study import Proposal, Study
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import map_key
from search_spaces.space import SearchSpace, build_space
from workers.measurement import Environment
from workers.setup import Calibration, ModelDescription
from workers.timing.estimates import Figure

CHOICES = ("fp32", "bf16", "int8_static")
LIMIT = Constraint(metric="latency_p50_ms", limit=7.0, at_most=True)
SPEED = {"fp32": 1.0, "bf16": 0.6, "int8_static": 0.4}
LOSS = {"fp32": 0.0, "bf16": 1e-4, "int8_static": 1e-3}


@pytest.fixture(params=list(SamplerName))
def sampler(request: pytest.FixtureRequest) -> SamplerName:
    assert isinstance(request.param, SamplerName)
    return request.param


def make_space(layers: int) -> SearchSpace:
    found = [
        Layer(
            name=f"l{i}", kind=LayerKind.LINEAR, weight_shape=(8, 8), has_bias=False, weight_bytes=256,
            input_shape=(1, 8), flops=128, calls=1, order=i, group=f"l{i}",
        )
        for i in range(layers)
    ]  # fmt: skip
    return build_space(found, choices=CHOICES, supports=lambda layer, choice: None)


def make_study(space: SearchSpace, sampler: SamplerName, **changes: Any) -> Study:
    settings: dict[str, Any] = {"seed": 1, "trials": 40, "slots": 1, "prior": prior(space)} | changes
    study = Study(space, ("latency_p50_ms", "divergence"), (LIMIT,), sampler, **settings)
    study.add(measured(-1, {layer.name: "fp32" for layer in space.layers}))
    return study


def prior(space: SearchSpace) -> Prior:
    """Expect nothing in particular: no layer was probed."""
    return expect(
        space,
        ModelDescription(
            fingerprint="", layers=space.layers, refusals={}, other_bytes=0,
            layer_bytes={layer.name: dict.fromkeys(CHOICES, 256) for layer in space.layers},
            calibration=Calibration(ranges={}, samples=0, seconds=0.0),
            environment=Environment(hardware="", backend="", threads=1, load=0.0, versions={}),
        ),
        None,
    )  # fmt: skip


def measured(number: int, choices: dict[str, str], sampler_state: dict[str, int] | None = None) -> TrialRecord:
    """Measure a map by an additive model in which the layers differ."""
    cost = sum(SPEED[choice] for choice in choices.values())
    loss = sum((1 + i) * LOSS[choice] for i, choice in enumerate(choices.values()))
    figures = {
        "latency_p50_ms": Figure(value=cost),
        "latency_ratio": Figure(value=cost / len(choices)),
        "divergence": Figure(value=loss),
    }
    return TrialRecord(
        job_id="j", number=number, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices=choices,
        key=map_key(choices), figures=figures, violations=violations(figures, (LIMIT,)),
        sampler_state=sampler_state or {}, finished_at=now(),
    )  # fmt: skip


def search(study: Study, space: SearchSpace, trials: int, first: int = 0, slots: int = 1) -> list[TrialRecord]:
    """Ask and tell as the driver does, with ``slots`` proposals at once."""
    pending: list[Proposal] = []
    records: list[TrialRecord] = []
    while len(records) < trials:
        while len(pending) < slots:
            proposal = study.ask()
            if proposal is None:
                break
            pending.append(proposal)
        if not pending:
            break
        proposal = pending.pop(0)
        choices = proposal.choices
        record = measured(first + len(records), choices, study.sampler_state(proposal))
        study.tell(proposal, record)
        records.append(record)
    return records


def keys(records: Sequence[TrialRecord]) -> set[str]:
    return {record.key for record in records}


def test_no_map_is_proposed_twice(sampler: SamplerName) -> None:
    space = make_space(4)
    trials = 12 if sampler is SamplerName.GP else 40  # a Gaussian process takes seconds for each proposal
    study = make_study(space, sampler, slots=2)
    records = search(study, space, trials=trials, slots=2)
    assert len(keys(records)) == len(records)
    assert len(records) == trials or study.spent


def test_proposals_are_maps_of_the_space(sampler: SamplerName) -> None:
    space = make_space(4)
    for record in search(make_study(space, sampler), space, trials=20):
        assert set(record.choices) == {layer.name for layer in space.layers}
        assert set(record.choices.values()) <= set(CHOICES)


def test_a_small_space_is_measured_whole(sampler: SamplerName) -> None:
    space = make_space(2)
    study = make_study(space, sampler)
    records = search(study, space, trials=100)
    assert len(records) + 1 == space.size == 9  # full precision was measured first
    assert study.ask() is None


def test_baselines_come_as_they_were_given(sampler: SamplerName) -> None:
    space = make_space(4)
    study = make_study(space, sampler)
    for number, choice in enumerate(CHOICES[1:]):
        proposal = study.propose(space.uniform(choice))
        assert proposal is not None
        assert set(proposal.choices.values()) == {choice}
        record = measured(number, proposal.choices, study.sampler_state(proposal))
        study.tell(proposal, record)
        assert study.propose(space.uniform(choice)) is None
    assert not keys(search(study, space, 10)) & {map_key(space.layer_choices(space.uniform(c))) for c in CHOICES}


def test_rejected_and_failed_trials_are_digested(sampler: SamplerName) -> None:
    space = make_space(4)
    study = make_study(space, sampler)
    for number, state in enumerate([TrialState.REJECTED, TrialState.FAILED, TrialState.COMPLETE] * 5):
        proposal = study.ask()
        assert proposal is not None
        record = measured(number, proposal.choices)
        if state is not TrialState.COMPLETE:
            record = replace(record, state=state, figures={}, violations={"latency_p50_ms": 0.5})
        study.tell(proposal, record)
    assert study.ask() is not None


def test_a_resumed_study_goes_on(sampler: SamplerName) -> None:
    space = make_space(4)
    history = search(make_study(space, sampler), space, trials=15)
    resumed = make_study(space, sampler, history=history)
    more = search(resumed, space, trials=15, first=15)
    assert len(keys([*history, *more])) == len(history) + len(more)
    assert len(more) == 15 or resumed.spent


def test_same_seed_same_search(sampler: SamplerName) -> None:
    space = make_space(4)
    one, other = (search(make_study(space, sampler), space, trials=12) for _ in range(2))
    assert [record.key for record in one] == [record.key for record in other]


def test_another_seed_is_another_search(sampler: SamplerName) -> None:
    space = make_space(12)
    trials = 9  # of which the eighth is the first that our own sampler explores with
    one, other = (search(make_study(space, sampler, seed=seed), space, trials=trials) for seed in (1, 2))
    assert [record.key for record in one] != [record.key for record in other]


def test_a_resumed_study_does_not_repeat_the_random_numbers_of_its_start() -> None:
    space = make_space(12)
    history = search(make_study(space, SamplerName.RANDOM), space, trials=6)
    # Its own maps are known to it, but it would find the same neighbours of them.
    resumed = search(make_study(space, SamplerName.RANDOM, history=history), space, trials=6, first=6)
    unaware = search(make_study(space, SamplerName.RANDOM), space, trials=12)[6:]
    assert [record.key for record in resumed] != [record.key for record in unaware]


@pytest.mark.parametrize("known", [0, 1, 5, 26])
def test_the_last_maps_are_found_where_no_neighbour_is_new(monkeypatch: pytest.MonkeyPatch, known: int) -> None:
    monkeypatch.setattr(study_of_a_job, "_NEIGHBOURS", 0)
    space = make_space(3)  # of 27 maps
    every = [dict(zip(("l0", "l1", "l2"), names, strict=True)) for names in itertools.product(CHOICES, repeat=3)]
    history = [measured(number, choices) for number, choices in enumerate(every[:known])]
    study = make_study(space, SamplerName.RANDOM, history=history)
    found = search(study, space, trials=100, first=known)
    assert keys(found) == {map_key(choices) for choices in every[max(1, known) :]}
    assert len(found) == 27 - max(1, known), "full precision is known"


def test_optuna_learns_what_became_of_each_trial() -> None:
    space = make_space(4)
    study = make_study(space, SamplerName.RANDOM)
    states = (TrialState.REJECTED, TrialState.FAILED, TrialState.COMPLETE)
    for number, state in enumerate(states):
        proposal = study.ask()
        assert proposal is not None
        record = measured(number, proposal.choices)
        if state is not TrialState.COMPLETE:
            record = replace(record, state=state, figures={}, violations={})
        study.tell(proposal, record)
    found = [trial.state.name for trial in study._study.trials[1:]]  # after full precision
    assert found == ["PRUNED", "FAIL", "COMPLETE"]


def test_full_precision_outside_the_space_is_digested(sampler: SamplerName) -> None:
    layers = make_space(3).layers
    space = build_space(layers, choices=("bf16", "int8_static"), supports=lambda layer, choice: None)
    study = make_study(space, sampler)
    assert len(search(study, space, trials=50)) == space.size == 8


@pytest.mark.parametrize("name", [SamplerName.NSGA2, SamplerName.NSGA3])
def test_genetic_search_keeps_its_generations_over_a_restart(name: SamplerName) -> None:
    space = make_space(12)
    history = search(make_study(space, name, trials=72), space, trials=60)
    (key,) = {key for record in history for key in record.sampler_state}
    generations = [record.sampler_state[key] for record in history]
    assert max(generations) >= 3
    resumed = make_study(space, name, trials=72, history=history)
    proposal = resumed.ask()
    assert proposal is not None
    assert resumed.sampler_state(proposal)[key] >= max(generations)


def baselines(study: Study, space: SearchSpace) -> list[TrialRecord]:
    """Measure the uniform maps as the driver does."""
    records = []
    for number, choice in enumerate(CHOICES[1:]):
        proposal = study.propose(space.uniform(choice))
        assert proposal is not None
        records.append(measured(number, proposal.choices, study.sampler_state(proposal)))
        study.tell(proposal, records[-1])
    return records


def least_divergence(name: SamplerName, trials: int) -> float:
    """Return the least feasible divergence found in an additive problem, a mean over seeds."""
    space = make_space(12)
    found = []
    for seed in range(3):
        study = make_study(space, name, seed=seed, trials=trials)
        records = [*baselines(study, space), *search(study, space, trials=trials - 2, first=2)]
        feasible = [record for record in records if record.feasible]
        found.append(min((record.figures["divergence"].value for record in feasible), default=math.inf))
    return sum(found) / len(found)


def test_genetic_search_beats_chance() -> None:
    assert least_divergence(SamplerName.NSGA2, 150) < least_divergence(SamplerName.RANDOM, 150)


def test_our_search_finds_the_optimum_in_a_fraction_of_the_maps() -> None:
    # int8 in the first layer, bf16 in all others; nothing tells the sampler so beforehand.
    optimum = LOSS["int8_static"] + LOSS["bf16"] * sum(range(2, 13))
    assert least_divergence(SamplerName.SENSITIVITY, 30) == pytest.approx(optimum, rel=0.05)
    assert least_divergence(SamplerName.NSGA2, 150) > 1.5 * optimum
