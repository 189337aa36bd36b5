"""What a reader of a job's front should know beside it, in sentences: failures, limits, hardware, noise and doubts."""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from autotune.jobs.backends import left_out
from autotune.jobs.front import nearest, without_superseded
from autotune.jobs.hardware_limits import limits_of_job, why_nothing_is_faster
from autotune.jobs.records import JobRecord, TrialKind, TrialRecord, TrialState
from autotune.jobs.space import kept_in_full_precision

#: Most reasons in one sentence, most names for a reason, and most characters of a message.
_MOST_REASONS, _MOST_NAMES, _LONGEST = 3, 3, 200
#: A trained language model has a lower perplexity on natural text, and a vocabulary with more tokens.
_UNTRAINED_PERPLEXITY, _SMALL_VOCABULARY = 200.0, 1000
_CORES = re.compile(r", (\d+) cores$")


def remarks(job: JobRecord, trials: Sequence[TrialRecord], *, limits: bool = True) -> list[str]:
    """Return sentences about a job and its trials, the most urgent first; empty if there is nothing to say.

    Args:
        job: the job.
        trials: all its trials.
        limits: whether to say that no map satisfies the constraints.
    """
    broken = _limits(job, trials) if limits else ()
    return [
        *_failures(job, trials),
        *broken,
        *(why_nothing_is_faster(job, trials) if trials else ()),
        *_left_out(job),
        *limits_of_job(job),
        *_busy(job, trials),
        *_perplexity(job, trials),
        *_kept(job),
    ]


def recovered_text(trial: TrialRecord) -> str | None:
    """Return where the figures of a recovered map come from, and what recovery gained; None for other maps."""
    report = trial.recovery
    if report is None:
        return None
    layers = "1 layer has" if len(report.layers) == 1 else f"{len(report.layers)} layers have"
    return (
        f"Recovered from trial {trial.parent}: {layers} learned weights. On "
        f"{report.validation_samples} calibration samples that they were not learned from, the divergence went from "
        f"{report.before:.1e} to {report.after:.1e}, in {report.seconds:.0f} s. Speed and memory are those of trial "
        f"{trial.parent}."
    )


def _failures(job: JobRecord, trials: Sequence[TrialRecord]) -> Iterator[str]:
    """Yield the maps that failed, the final measurements that failed, and those without held-out accuracy."""
    maps = [trial for trial in trials if trial.kind is not TrialKind.FINAL]
    finals = [trial for trial in trials if trial.kind is TrialKind.FINAL]
    for what, measured, then in (
        ("maps", maps, ""),
        ("final measurements", finals, " The figures of these maps are those of the search."),
    ):
        failed = [trial for trial in measured if trial.state is TrialState.FAILED]
        if failed:
            counts = _counted(trial.message or "no message" for trial in failed)
            yield (
                f"{len(failed)} of {len(measured)} {what} failed: {counts}; "
                f"autotune show {job.id} {failed[0].number}.{then}"
            )
    lacking = [trial.message for trial in finals if trial.state is TrialState.COMPLETE and trial.message]
    if lacking:
        yield f"{len(lacking)} of {len(finals)} final measurements are incomplete: {_counted(lacking)}."


def _limits(job: JobRecord, trials: Sequence[TrialRecord]) -> Iterator[str]:
    """Yield which limits the maps break, if every map breaks one."""
    counting = without_superseded(trials)
    if not trials or any(trial.feasible for trial in counting):
        return
    maps = [trial for trial in trials if trial.kind is not TrialKind.FINAL and trial.violations]
    broken = Counter(name for trial in maps for name, by in trial.violations.items() if by > 0)
    counts = ", ".join(f"{count} of {len(maps)} miss {name}" for name, count in broken.most_common())
    closest = nearest(counting, job.spec.constraints.constraints())
    yield f"No map satisfies the constraints. {closest}" + (f". Of all maps, {counts}." if counts else ".")


def _left_out(job: JobRecord) -> Iterator[str]:
    """Yield which backends of the job measure no maps, and why."""
    if job.description is not None:
        for name, why in left_out(job.spec, job.description).items():
            yield f"No map was measured on {name}: {_short(why)}."


def _busy(job: JobRecord, trials: Sequence[TrialRecord]) -> Iterator[str]:
    """Yield that other processes kept the processors busy, if the load is clearly above what the job itself causes."""
    environments = [trial.environment for trial in trials if trial.environment.get("load") is not None]
    cores = _CORES.search(str(environments[-1].get("hardware", ""))) if environments else None
    if cores is None:
        return  # never measured, or on a GPU
    load = statistics.median(float(environment["load"]) for environment in environments)
    workers = job.spec.workers.count if job.spec.workers.pool == "ray" else 1
    own = workers * int(environments[-1].get("threads", 1))
    if load > own + max(1.0, int(cores[1]) / 4):
        yield (
            f"The machine was busy: its load was {load:.1f} in the median trial, but this job causes {own} at most. "
            "Its figures may be off; run it again when the machine is quiet."
        )


def _perplexity(job: JobRecord, trials: Sequence[TrialRecord]) -> Iterator[str]:
    """Yield that full precision predicts text like no trained language model, if it does."""
    accuracy = trials[0].figures.get("accuracy") if trials else None
    if job.task != "causal-lm" or job.spec.task.parameters.get("questions") or not job.description or accuracy is None:
        return
    vocabulary = max((layer.outputs for layer in job.description.layers if layer.kind.looks_up), default=0)
    perplexity = 1.0 / max(accuracy.value, 1e-12)
    if vocabulary > _SMALL_VOCABULARY and perplexity > _UNTRAINED_PERPLEXITY:
        yield (
            f"Full precision has a perplexity of {perplexity:.3g}; no trained model has that on natural text. Check "
            "tokenizer, windows and weights."
        )


def _kept(job: JobRecord) -> Iterator[str]:
    """Yield which weights stay in full precision whatever the search does, and why."""
    kept = kept_in_full_precision(job)
    if kept:
        yield f"Stays in fp32: {_by_reason(kept)}; autotune show {job.id} 0 lists every layer."


def _by_reason(kept: Mapping[str, str]) -> str:
    """Return names with their common reason, the reason with the most names first."""
    names: dict[str, list[str]] = {}
    for name, reason in kept.items():
        names.setdefault(_short(reason), []).append(name)
    ranked = sorted(names.items(), key=lambda item: -len(item[1]))
    parts = [f"{_listed(of_reason)} ({reason})" for reason, of_reason in ranked[:_MOST_REASONS]]
    others = sum(len(of_reason) for _, of_reason in ranked[_MOST_REASONS:])
    return "; ".join(parts) + (f"; {others} more" if others else "")


def _listed(names: Sequence[str]) -> str:
    others = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {others} more" if others > 0 else "")


def _counted(messages: Iterable[str]) -> str:
    """Return each message with how often it occurs, the most frequent first."""
    ranked = Counter(_short(message) for message in messages).most_common()
    parts = [f"{count} x {message}" for message, count in ranked[:_MOST_REASONS]]
    others = sum(count for _, count in ranked[_MOST_REASONS:])
    return ", ".join(parts) + (f", {others} x others" if others else "")


def _short(message: str) -> str:
    line = " ".join(message.split()).rstrip(".")
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
