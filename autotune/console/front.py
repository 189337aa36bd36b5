"""A job's front as tables and sentences, and its state after a change."""

from collections.abc import Collection, Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from autotune.console.output import front_table, job_json, legend, out, print_json, say, trial_json
from autotune.jobs.backends import worth_of_backends
from autotune.jobs.budget import searched
from autotune.jobs.front import ties, without_superseded
from autotune.jobs.recommendation import recommendation, recommended
from autotune.jobs.records import JobRecord, Tally, TrialKind, TrialRecord
from autotune.jobs.remarks import remarks
from autotune.metrics.catalog import METRICS, decisive_ratio
from autotune.metrics.objectives import minimised
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
    if as_json:
        on_front = [trial for trial in trials if trial.number in members]
        tied = ties(on_front, job.spec.objectives)
        best = recommended(trials, job.spec) if trials else None
        print_json(
            {
                "job": job_json(job, searched(trials), members),
                "recommended": best.number if best else None,
                "remarks": remarks(job, trials),
                "front": [trial_json(trial, on_front=True) | {"tie": trial.number in tied} for trial in on_front],
                "baselines": [trial_json(trial, on_front=trial.number in members) for trial in baselines(trials)],
            }
        )
        return
    for part in front_parts(job, trials, members):
        out.print(part)


def front_parts(job: JobRecord, trials: Sequence[TrialRecord], members: Sequence[int]) -> Iterator[RenderableType]:
    """Yield a job's front for people: the recommendation, remarks, the front, the baselines and notes."""
    objectives = job.spec.objectives
    on_front = sorted_front(trials, members, objectives)
    rivals, tied = baselines(trials), ties(on_front, objectives)
    sentence = recommendation(trials, job.spec) if trials else None
    if sentence is not None:
        yield Text(sentence, style="bold")
    yield from _remarks(job, trials)
    yield front_table(f"Pareto front of {job.name} ({', '.join(objectives)})", on_front, objectives, tied)
    yield front_table("Baselines", rivals, objectives)
    worth = worth_of_backends(trials, objectives)
    if worth:
        yield Text(f"The same map on several backends: {'; '.join(worth)}.\n")
    yield from (Text(note, style="dim") for note in notes(job, (*on_front, *rivals), tied))


def notes(job: JobRecord, shown: Sequence[TrialRecord], tied: Collection[int]) -> Iterator[str]:
    """Yield what the abbreviations and marks in the tables of the trials ``shown`` mean."""
    yield f"{legend(job.spec.search.choices)}."
    yield _headings_explained(shown)
    if any(trial.kind is TrialKind.FINAL for trial in shown):
        yield f"* re-measured after the search with {job.spec.measurement.final_repeats} passes"
    if any(trial.kind is TrialKind.RECOVERED for trial in shown):
        yield "recovered: with learned weights, and the speed and memory that were measured without them"
    ratios = [trial.figures.get(decisive_ratio(job.spec.objectives).name) for trial in shown]
    if any(ratio is not None and ratio.is_uncertain for ratio in ratios):
        yield "~ uncertain by more than a quarter: measure longer, or on a quieter machine"
    if tied:
        yield "= not measurably faster than a map with better quality on the front"


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


def sorted_front(trials: Sequence[TrialRecord], members: Sequence[int], objectives: Sequence[str]) -> list[TrialRecord]:
    """Return the trials on the front, the best in the first objective first."""
    on_front = [trial for trial in trials if trial.number in members]
    metric = METRICS[objectives[0]]
    return sorted(on_front, key=lambda trial: minimised(metric, trial.figures[metric.name].value))


def print_remarks(job: JobRecord, trials: Sequence[TrialRecord]) -> None:
    """Print what a reader of the job's figures should know, one paragraph each."""
    for remark in _remarks(job, trials):
        out.print(remark)


def _remarks(job: JobRecord, trials: Sequence[TrialRecord]) -> Iterator[Text]:
    return (Text(remark, style="yellow") for remark in remarks(job, trials))


def baselines(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return full precision, the uniform maps and recipes, with final measurements where there are any."""
    counting = {trial.key: trial for trial in without_superseded(trials)}
    return [counting[trial.key] for trial in trials if trial.kind is TrialKind.BASELINE]
