"""Promotion and rollback: at most one active revision, each change under the epoch that the caller saw."""

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.deployments.lifecycle import promoted, rolled_back
from autotune.deployments.records import Deployment, Revision
from autotune.deployments.rollout import Stage
from autotune.errors import ConflictError, NotFoundError

AT = datetime(2026, 1, 2, tzinfo=UTC)


def deployment(*stages: Stage) -> Deployment:
    revisions = [
        Revision(number=number, job_id="a1", trial=number, stage=stage, created_at=AT)
        for number, stage in enumerate(stages, start=1)
    ]
    return Deployment(name="web", epoch=1, revisions=tuple(revisions))


def stages_of(changed: Deployment) -> list[str]:
    return [revision.stage.value for revision in changed.revisions]


THREE = deployment(Stage.CANDIDATE, Stage.CANARY, Stage.RETIRED)


def test_a_promotion_retires_the_active_revision_and_a_rollback_brings_it_back() -> None:
    first = promoted(THREE, 1, epoch=1)
    assert (stages_of(first), first.last_good, first.epoch) == (["active", "canary", "retired"], None, 2)
    second = promoted(first, 2, epoch=2)
    assert (stages_of(second), second.last_good, second.epoch) == (["retired", "active", "retired"], 1, 3)
    back = rolled_back(second, epoch=3)
    assert (stages_of(back), back.last_good, back.epoch) == (["active", "retired", "retired"], None, 4)


@given(st.lists(st.integers(0, 3), max_size=12))
def test_after_the_first_promotion_exactly_one_revision_is_active(numbers: list[int]) -> None:
    """Promote each number in turn; 0 stands for a rollback."""
    current = promoted(THREE, 1, epoch=1)
    for number in numbers:
        before = current
        with suppress(ConflictError):
            epoch = current.epoch
            current = promoted(current, number, epoch=epoch) if number else rolled_back(current, epoch=epoch)
            assert current.epoch == before.epoch + 1
            assert current.active != before.active
        assert stages_of(current).count("active") == 1


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_change_that_was_made_for_another_epoch_is_refused(epoch: int) -> None:
    current = promoted(THREE, 1, epoch=1)
    with pytest.raises(ConflictError, match=f"at epoch 2, but the change was for epoch {epoch}"):
        promoted(current, 2, epoch=epoch)
    with pytest.raises(ConflictError, match="read it again"):
        rolled_back(current, epoch=epoch)


def test_what_cannot_become_active_is_refused() -> None:
    current = promoted(THREE, 1, epoch=1)
    with pytest.raises(ConflictError, match="revision 1 of deployment 'web' is active; promote another one"):
        promoted(current, 1, epoch=2)
    with pytest.raises(NotFoundError, match="no revision 4; it has: 1, 2, 3"):
        promoted(current, 4, epoch=2)


def test_a_second_rollback_is_refused() -> None:
    back = rolled_back(promoted(promoted(THREE, 1, epoch=1), 2, epoch=2), epoch=3)
    with pytest.raises(ConflictError, match="no last good revision; promote one by its number"):
        rolled_back(back, epoch=4)
