"""What every store checks of artifacts: their size, and that their bytes are those of their hash."""

from autotune.errors import NotFoundError, StoreError, TooLargeError
from autotune.jobs.records import Artifact, TrialRecord, TrialResult
from autotune.store.base import ReadStore
from workers.recovered import digest

#: Most bytes of one artifact: PostgreSQL sends each byte as two digits, in messages of less than 1 GiB.
MOST_BYTES = 256 << 20


def check(result: TrialResult) -> None:
    """Check the artifacts of a trial before they are recorded.

    Raises:
        TooLargeError: if one has too many bytes.
        StoreError: if the hash of one is not that of its bytes, or learned weights of the trial are not among them.
    """
    needed = result.trial.recovery.sha256 if result.trial.recovery else ""
    if needed and needed not in {artifact.sha256 for artifact in result.artifacts}:
        raise StoreError(
            f"a recovered map is recorded with its learned weights, but those of trial {result.trial.number}, "
            f"{needed}, are not among its artifacts; add them"
        )
    for artifact in result.artifacts:
        _check_size(artifact)
        actual = digest(artifact.data)
        if actual != artifact.sha256:
            raise StoreError(
                f"an artifact is recorded under the sha256 of its bytes, but the {artifact.kind} {artifact.sha256} "
                f"have the sha256 {actual}; send them again"
            )


def unchanged(sha256: str, data: bytes) -> bytes:
    """Return the bytes of an artifact that was read.

    Raises:
        StoreError: if they are not those that were recorded.
    """
    actual = digest(data)
    if actual != sha256:
        raise StoreError(
            f"the artifact {sha256} was changed after it was recorded: its bytes have the sha256 {actual}; restore the "
            "database from a backup, or recover the map again"
        )
    return data


def learned_weights(store: ReadStore, trial: TrialRecord) -> bytes:
    """Return the learned weights of a recovered map, for the file beside it; empty for other maps.

    Raises:
        NotFoundError, StoreError: see ``ReadStore.artifact``.
    """
    return store.artifact(trial.recovery.sha256) if trial.recovery else b""


def missing(sha256: str) -> NotFoundError:
    """Return the error about an artifact that is not recorded."""
    return NotFoundError(f"no artifact {sha256!r} in this database; a recovered map names the hash of its own")


def _check_size(artifact: Artifact) -> None:
    size = len(artifact.data)
    if size > MOST_BYTES:
        raise TooLargeError(
            f"an artifact may have at most {MOST_BYTES} bytes, but the {artifact.kind} {artifact.sha256} have {size}; "
            "recover fewer layers"
        )
