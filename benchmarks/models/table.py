"""What the records of a job tell: when it had which result, where its time went, and what its maps gain."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from autotune.jobs.front import without_superseded
from autotune.jobs.records import EventRecord, JobRecord, TrialKind, TrialRecord
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import METRICS, ratio_of
from search_spaces.choice import FULL_PRECISION


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished job, and the process that ran it."""

    #: When the process started and ended, in UTC.
    started_at: datetime
    ended_at: datetime
    job: JobRecord
    trials: Sequence[TrialRecord]
    events: Sequence[EventRecord]
    #: Seconds that probing took; None if nothing was probed.
    probed_s: float | None

    @property
    def ratio(self) -> str:
        """Name of the latency ratio that belongs to the job's first objective."""
        return ratio_name(self.job.spec)

    def seconds_at(self, moment: datetime) -> float:
        """Return the seconds from the start of the process to a moment."""
        return (moment - self.started_at).total_seconds()

    def first(self, wanted: Callable[[TrialRecord], bool]) -> float | None:
        """Return after how many seconds the first of the wanted trials was recorded; None if there is none."""
        return min((self.seconds_at(trial.finished_at) for trial in self.trials if wanted(trial)), default=None)

    def is_faster(self, trial: TrialRecord) -> bool:
        """Return whether a trial keeps all limits and is faster than full precision beyond its uncertainty."""
        figure = trial.figures.get(self.ratio)
        return trial.feasible and figure is not None and (figure.value if figure.high is None else figure.high) < 1.0

    def fastest_uniform(self) -> TrialRecord | None:
        """Return the fastest uniform map that keeps all limits, full precision excluded; None if none does."""
        full = self.trials[0].key
        uniform = {trial.key for trial in self.trials if trial.kind is TrialKind.BASELINE and trial.key != full}
        return fastest([trial for trial in self.trials if trial.key in uniform], self.job.spec)

    def gain(self, trial: TrialRecord | None) -> str:
        """Return how many times as fast as full precision a map is, with its name; ``none`` without a map."""
        if trial is None:
            return "none"
        return f"{1.0 / trial.figures[self.ratio].value:.2f}x ({trial.label or f'trial {trial.number}'})"

    def stages(self) -> dict[str, float]:
        """Return stage -> seconds; together they last from the start of the process to its end."""
        assert self.job.description is not None
        calibration = self.job.description.calibration
        calibrated_s = sum(
            seconds or 0.0
            for seconds in (calibration.seconds, calibration.smoothing_seconds, calibration.moments_seconds)
        )
        started = next(event.at for event in self.events if event.kind == "started")
        first, final = self.trials[0], [trial for trial in self.trials if trial.kind is TrialKind.FINAL]
        searched = max(trial.finished_at for trial in self.trials if trial.kind is not TrialKind.FINAL)
        last = max(trial.finished_at for trial in self.trials)
        probed_s = self.probed_s or 0.0
        probed_first = any(event.kind == "probed" and event.at < first.finished_at for event in self.events)
        ready_s = (first.finished_at - started).total_seconds() - first.seconds
        return {
            "imports": self.seconds_at(started),
            "loading and checks": ready_s - calibrated_s - (probed_s if probed_first else 0.0),
            "calibration": calibrated_s,
            "probing": probed_s,
            "full precision": first.seconds,
            "trials": (searched - first.finished_at).total_seconds() - (0.0 if probed_first else probed_s),
            f"final ({len(final)})": (last - searched).total_seconds(),
            "end": (self.ended_at - last).total_seconds(),
        }


def ratio_name(spec: JobSpec) -> str:
    """Return the name of the latency ratio that belongs to a job's first objective."""
    return ratio_of(METRICS[spec.objectives[0]].workload).name


def fastest(trials: Sequence[TrialRecord], spec: JobSpec) -> TrialRecord | None:
    """Return the fastest of a job's maps that keep all its limits, in its first objective; None if none does."""
    ratio = ratio_name(spec)
    feasible = [trial for trial in without_superseded(trials) if trial.feasible and ratio in trial.figures]
    return min(feasible, key=lambda trial: trial.figures[ratio].value, default=None)


def naive_mix(layers: Iterable[str], spared: Collection[str], choice: str) -> dict[str, str]:
    """Return layer -> choice: full precision for the layers that are spared, and one choice for the others."""
    return {layer: FULL_PRECISION.name if layer in spared else choice for layer in layers}


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
