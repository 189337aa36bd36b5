"""Recovers maps of a job and records them, each as a trial of its own beside its parent."""

import dataclasses
import math
import time
from collections.abc import Sequence

from autotune.jobs import lifecycle
from autotune.jobs.records import Artifact, ArtifactKind, JobRecord, TrialRecord, TrialResult, TrialState
from autotune.jobs.recovery import to_recover
from autotune.jobs.timestamps import event
from autotune.metrics.catalog import METRICS, Kind
from autotune.metrics.from_measurement import MIB, Reference
from autotune.search.lease import Lease
from autotune.search.ledger import Ledger
from autotune.search.stages import Stages
from autotune.search.trials import recovered_trial
from autotune.store.artifacts import MOST_BYTES
from autotune.store.base import DriverStore
from workers.errors import PoolError
from workers.pools.base import Pool
from workers.recovered import Recovered, RecoverySettings


class Recovery:
    """Recovers maps of one job."""

    def __init__(
        self, store: DriverStore, job: JobRecord, pool: Pool, stages: Stages, lease: Lease, ledger: Ledger
    ) -> None:
        """Recover maps of ``job``, which this driver holds."""
        self._store, self._job, self._pool = store, job, pool
        self._stages, self._lease, self._ledger = stages, lease, ledger

    def run(self, picks: Sequence[str], settings: RecoverySettings, *, lenient: bool = False) -> None:
        """Recover the maps that ``picks`` name.

        Args:
            picks: see ``to_recover``.
            settings: how; the time limit is that of all maps together.
            lenient: only tell which picks cannot be recovered, because the job is a success without them.

        Raises:
            AutotuneError: see ``to_recover``.
        """
        skip = self._skip if lenient else None
        parents = to_recover(self._ledger.front.trials, self._job.spec, picks, skip)
        ends_at = None if settings.time_limit_s is None else time.monotonic() + settings.time_limit_s
        for done, parent in enumerate(parents):
            self._lease.check()
            self._stages.stage(f"Recovering trial {parent.number}, {done + 1} of {len(parents)}")
            left_s = None if ends_at is None else max(0.0, ends_at - time.monotonic()) / (len(parents) - done)
            try:
                found = self._pool.recover(
                    parent.choices, parent.backend, dataclasses.replace(settings, time_limit_s=left_s)
                )
            except PoolError as error:
                self._tell("recovery_failed", f"Trial {parent.number} could not be recovered: {error}")
            else:
                self._record(parent, found)

    def _skip(self, reason: str) -> None:
        self._tell("recovery_failed", f"Not recovered: {reason}")

    def _record(self, parent: TrialRecord, found: Recovered) -> None:
        """Record what came of the recovery of one map."""
        trials, limits = self._ledger.front.trials, self._job.spec.constraints.constraints()
        reference = Reference.of_figures(trials[0].figures)
        trial = recovered_trial(parent, found, reference, limits, self._ledger.next_number())
        if trial is None:
            kept = found.report.kept
            reasons = [kept[""]] if "" in kept else dict.fromkeys(kept.values())
            why = "; ".join(reasons) or "no linear or convolutional layer has integer weights"
            self._tell("recovery_kept", f"Trial {parent.number} keeps the model's own weights: {why}")
            return
        if len(found.learned) > MOST_BYTES:
            self._tell(
                "recovery_failed",
                f"What trial {parent.number} learned takes {len(found.learned) / MIB:.0f} MiB, but a store takes at "
                f"most {MOST_BYTES / MIB:.0f}; pick a map with fewer integer layers",
            )
            return
        worse = _worse(parent, trial)
        if worse is not None and trial.state is TrialState.COMPLETE:
            trial = dataclasses.replace(trial, state=TrialState.REJECTED, message=worse)
        learned = Artifact(sha256=found.report.sha256, kind=ArtifactKind.LEARNED_WEIGHTS, data=found.learned)
        message = f"Trial {trial.number} is trial {parent.number} with learned weights"
        told = event("recovered", f"{message}; {trial.message}" if trial.message else message)
        # Recovery has time of its own, beside the search's.
        self._ledger.commit([TrialResult(trial=trial, artifacts=(learned,), events=(told,))], waited_s=math.inf)

    def _tell(self, kind: str, message: str) -> None:
        self._store.change_job(self._job.id, lifecycle.with_fields(self._job.epoch, event(kind, message)))


def _worse(parent: TrialRecord, trial: TrialRecord) -> str | None:
    """Return on which data the recovered map is farther from full precision than its parent, or None."""
    for name in sorted(trial.figures.keys() & parent.figures.keys()):
        metric, before, after = METRICS[name], parent.figures[name].value, trial.figures[name].value
        if metric.kind is Kind.DIVERGENCE and after > before:
            label = metric.label.lower()
            return f"refused: {label} {after:.3g}, {before:.3g} without learned weights"
    return None
