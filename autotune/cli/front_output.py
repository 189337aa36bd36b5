"""Prints a job's front, and its state after a change."""

from collections.abc import Sequence

from rich.text import Text

from autotune.cli.output import front_table, job_json, legend, out, print_json, say, trial_json
from autotune.jobs.budget import searched
from autotune.jobs.front import ties, without_superseded
from autotune.jobs.recommendation import recommendation, recommended
from autotune.jobs.records import JobRecord, Tally, TrialKind, TrialRecord
from autotune.jobs.remarks import remarks
from autotune.store.base import ReadStore


def front_members(store: ReadStore, job: JobRecord) -> tuple[int, ...]:
    """Return the numbers of the trials on a job's front."""
    fronts = store.fronts(job.id)
    return fronts[-1].members if fronts else ()


def print_state(job: JobRecord, as_json: bool, tally: Tally | None = None) -> None:
    """Print the state of a job after a change."""
    say(f"Job {job.id} ({job.name}) is {f'to be {job.order.state}' if job.order else job.state}.")
    if as_json:
        print_json({"job": job_json(job, tally.searched if tally else 0, tally.front if tally else ())})


def print_front(store: ReadStore, job: JobRecord, as_json: bool) -> None:
    """Print the front and the baselines of a job."""
    trials = store.trials(job.id)
    members = front_members(store, job)
    on_front = [trial for trial in trials if trial.number in members]
    baselines, tied = _baselines(trials), ties(on_front, job.spec.objectives)
    if as_json:
        best = recommended(trials, job.spec) if trials else None
        print_json(
            {
                "job": job_json(job, searched(trials), members),
                "recommended": best.number if best else None,
                "remarks": remarks(job, trials),
                "front": [trial_json(trial, on_front=True) | {"tie": trial.number in tied} for trial in on_front],
                "baselines": [trial_json(trial, on_front=trial.number in members) for trial in baselines],
            }
        )
        return
    objectives = job.spec.objectives
    on_front.sort(key=lambda trial: trial.figures[objectives[0]].value)
    sentence = recommendation(trials, job.spec) if trials else None
    if sentence is not None:
        out.print(Text(sentence, style="bold"))
    print_remarks(job, trials)
    out.print(front_table(f"Pareto front of {job.name} ({', '.join(objectives)})", on_front, objectives, tied))
    out.print(front_table("Baselines", baselines, objectives))
    known = legend(job.spec.search.choices)
    out.print(Text(f"{known}.", style="dim"))
    out.print(Text(_headings_explained([*on_front, *baselines]), style="dim"))
    if any(trial.kind is TrialKind.FINAL for trial in on_front):
        passes = job.spec.measurement.final_repeats
        out.print(Text(f"* re-measured after the search with {passes} passes", style="dim"))
    ratios = [trial.figures.get("latency_ratio") for trial in (*on_front, *baselines)]
    if any(ratio is not None and ratio.is_uncertain for ratio in ratios):
        out.print(Text("~ uncertain by more than a quarter: measure longer, or on a quieter machine", style="dim"))
    if tied:
        out.print(Text("= not measurably faster than a map with better quality on the front", style="dim"))


def _headings_explained(trials: Sequence[TrialRecord]) -> str:
    """Return what the columns mean whose headings do not say it."""
    measured = {name for trial in trials for name in trial.figures}
    explained = {
        "divergence": "diverg.: how far outputs are from full precision's",
        "shifted_accuracy": "shifted: accuracy on drifted data",
    }
    return "; ".join(
        ["speedup: over full precision, whose passes alternate with the map's"]
        + [text for name, text in explained.items() if name in measured]
    )


def print_remarks(job: JobRecord, trials: Sequence[TrialRecord]) -> None:
    """Print what a reader of the job's figures should know, one paragraph each."""
    for remark in remarks(job, trials):
        out.print(Text(remark, style="yellow"))


def _baselines(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return full precision and the uniform maps, with final measurements where there are any."""
    counting = {trial.key: trial for trial in without_superseded(trials)}
    return [counting[trial.key] for trial in trials if trial.kind is TrialKind.BASELINE]
