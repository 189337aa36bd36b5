"""The changes of a deployment: pure functions that keep at most one revision active."""

import dataclasses

from autotune.deployments.records import Deployment, Revision
from autotune.deployments.rollout import Stage
from autotune.errors import ConflictError, NotFoundError


def promoted(deployment: Deployment, number: int, *, epoch: int) -> Deployment:
    """Return the deployment with another active revision; the one before it becomes the last good one.

    Args:
        deployment: the deployment as recorded.
        number: the revision to promote.
        epoch: the epoch that the caller saw.

    Raises:
        ConflictError: if the deployment has changed since, or the revision is active.
        NotFoundError: if there is no such revision.
    """
    _check_epoch(deployment, epoch)
    if _revision(deployment, number).stage is Stage.ACTIVE:
        raise ConflictError(f"revision {number} of deployment {deployment.name!r} is active; promote another one")
    before = deployment.active
    return _activated(deployment, number, last_good=before.number if before else None)


def rolled_back(deployment: Deployment, *, epoch: int) -> Deployment:
    """Return the deployment with its last good revision active again.

    A second rollback would lead back to the revision that this one leaves, so it is refused.

    Args:
        deployment: the deployment as recorded.
        epoch: the epoch that the caller saw.

    Raises:
        ConflictError: if the deployment has changed since, or there is no last good revision.
    """
    _check_epoch(deployment, epoch)
    if deployment.last_good is None:
        raise ConflictError(f"deployment {deployment.name!r} has no last good revision; promote one by its number")
    return _activated(deployment, deployment.last_good, last_good=None)


def _activated(deployment: Deployment, number: int, *, last_good: int | None) -> Deployment:
    def changed(revision: Revision) -> Revision:
        if revision.number == number:
            return dataclasses.replace(revision, stage=Stage.ACTIVE)
        if revision.stage is Stage.ACTIVE:
            return dataclasses.replace(revision, stage=Stage.RETIRED)
        return revision

    return dataclasses.replace(
        deployment,
        epoch=deployment.epoch + 1,
        revisions=tuple(map(changed, deployment.revisions)),
        last_good=last_good,
    )


def _check_epoch(deployment: Deployment, epoch: int) -> None:
    if deployment.epoch != epoch:
        raise ConflictError(
            f"deployment {deployment.name!r} is at epoch {deployment.epoch}, but the change was for epoch {epoch}; "
            "read it again before you change it"
        )


def _revision(deployment: Deployment, number: int) -> Revision:
    for revision in deployment.revisions:
        if revision.number == number:
            return revision
    known = ", ".join(str(revision.number) for revision in deployment.revisions) or "none"
    raise NotFoundError(f"deployment {deployment.name!r} has no revision {number}; it has: {known}")
