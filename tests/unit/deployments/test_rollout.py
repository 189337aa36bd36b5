"""Rollouts: their steps, their end, and the callers that a canary answers."""

import pytest

from autotune.deployments.evidence import Verdict
from autotune.deployments.rollout import Rollout, Stage, answers, step
from autotune.errors import JobSpecError


def _stages(state: Rollout, *verdicts: Verdict) -> list[tuple[Stage, int]]:
    found = [(state.stage, state.share)]
    for now, verdict in enumerate(verdicts):
        state = step(state, verdict, float(now))
        found.append((state.stage, state.share))
    return found


def test_a_rollout_ends_whatever_its_shares() -> None:
    assert _stages(Rollout(shares=(10, 30)), *[Verdict.PASS] * 5) == [
        (Stage.CANDIDATE, 0),
        (Stage.SHADOW, 0),
        (Stage.CANARY, 10),
        (Stage.CANARY, 30),
        (Stage.CANARY, 100),
        (Stage.ACTIVE, 100),
    ]


@pytest.mark.parametrize("stage", [Stage.SHADOW, Stage.CANARY])
def test_a_failure_retires(stage: Stage) -> None:
    state = step(Rollout(stage=stage, position=1), Verdict.FAIL, 1.0)
    assert (state.stage, state.share) == (Stage.RETIRED, 0)
    assert step(state, Verdict.PASS, 2.0) == state


def test_a_step_without_a_verdict_fails_when_its_time_is_over() -> None:
    state = Rollout(stage=Stage.CANARY, since_s=100.0, timeout_s=60.0)
    assert step(state, Verdict.INCONCLUSIVE, 159.0) == state
    assert step(state, Verdict.INCONCLUSIVE, 160.0).stage is Stage.RETIRED


@pytest.mark.parametrize("stage", [Stage.CANDIDATE, Stage.SHADOW, Stage.CANARY, Stage.ACTIVE])
def test_a_breach_retires_at_any_stage(stage: Stage) -> None:
    state = step(Rollout(stage=stage), Verdict.PASS, 1.0, breached="the accuracy floor")
    assert (state.stage, state.reason) == (Stage.RETIRED, "it broke the accuracy floor")


def test_an_active_revision_stays() -> None:
    state = Rollout(stage=Stage.ACTIVE)
    assert step(state, Verdict.INCONCLUSIVE, 1e9) == state


@pytest.mark.parametrize("shares", [(0, 50), (50, 20), (20, 20), (50, 120)])
def test_shares_rise_to_100(shares: tuple[int, ...]) -> None:
    with pytest.raises(JobSpecError, match="shares must rise"):
        Rollout(shares=shares)


def test_callers_stay_with_the_canary_as_it_grows() -> None:
    keys = [f"caller{number}" for number in range(2_000)]
    for key in keys:
        sides = [answers(share, key, "revision 7") for share in range(101)]
        assert sides == sorted(sides)
        assert not sides[0]
        assert sides[100]
    assert sum(answers(25, key, "revision 7") for key in keys) == pytest.approx(500, abs=60)
    assert any(answers(25, key, "revision 7") != answers(25, key, "revision 8") for key in keys)
