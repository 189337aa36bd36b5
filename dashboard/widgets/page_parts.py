"""Parts shared by pages: choosers kept in the URL, live regions and empty states."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ParamSpec

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from autotune.jobs.backends import worth_of_backends
from autotune.jobs.budget import left_s
from autotune.jobs.progress import stage_text
from autotune.jobs.records import JobRecord, JobState, TrialRecord
from autotune.jobs.spec import JobSpec
from autotune.jobs.timestamps import now
from autotune.metrics.catalog import METRICS, Kind
from dashboard import queries
from dashboard.formatting import constraint_text, duration, in_markdown, moment, one_line, state_text
from dashboard.tables.cards import Card
from search_spaces.errors import AutotuneError

#: Seconds between refreshes of a job that may still change.
REFRESH_S = 2.0

#: Metrics for the x axis and for the y axis.
LATENCIES = tuple(name for name, metric in METRICS.items() if metric.kind is Kind.LATENCY)
QUALITIES = tuple(
    name
    for name, metric in METRICS.items()
    if metric.kind in (Kind.ACCURACY, Kind.DIVERGENCE) and not metric.reported_only
)

#: Characters on a line of buttons beside a chart, and those that the margins of a button take.
_LINE, _BUTTON = 42, 5
#: Width in pixels of a list of metrics, in which the longest name fits.
_LIST = 280
#: Width in pixels of a card, and of a character of its label or its note beside what surrounds the text.
_CARD, _LABEL, _NOTE = 152, (7, 36), (6, 24)

#: Width of a column of jobs in pixels: on a phone there is room for another column beside it.
JOB_WIDTH = 260

#: Message for jobs of earlier versions.
NO_HISTOGRAMS = "This job was calibrated before histograms were recorded; a new job on the same task records them."

P = ParamSpec("P")


def guarded(page: Callable[P, None]) -> Callable[P, None]:
    """Return ``page``, which then shows database errors as messages; they can occur at any refresh."""

    @functools.wraps(page)
    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            page(*args, **kwargs)
        except AutotuneError as error:
            st.warning("The jobs cannot be read.")
            st.text(str(error))
            st.text(f"Database: {queries.database_text()}")
            how_to_begin()

    return shown


def how_to_begin() -> None:
    """Show the commands that create a job."""
    st.markdown(
        "A job file describes what to tune. These commands write one and run it; this page then shows its progress."
    )
    st.code("autotune init job.yaml\nautotune run job.yaml", language="bash")


def live(body: Callable[[JobRecord], None], job: JobRecord, head: DeltaGenerator) -> None:
    """Show ``body`` of the job, every ``REFRESH_S`` seconds while the job is live; a toggle in ``head`` pauses that."""
    every = None
    if job.state.is_live:
        paused = head.toggle("Pause live updates", key="paused", help="Stops refreshing the page; the job continues.")
        every = None if paused else REFRESH_S

    @guarded
    def refresh() -> None:
        current = queries.job(job.id)
        if every is not None and not current.state.is_live:
            st.rerun()  # rerun the whole page, which ends this timer
        body(current)

    st.fragment(refresh, run_every=every)()


def choose(
    label: str, options: Sequence[str], *, parameter: str, kind: str, default: str, names: Mapping[str, str]
) -> str | None:
    """Return the option that the reader chose; a URL parameter holds it, so that links share the view.

    Args:
        label: label above the box.
        options: the values, as in the URL.
        parameter: name of the URL parameter.
        kind: what an option is, such as ``trial``.
        default: used if the URL lacks the parameter.
        names: option -> name shown.

    Returns:
        None if the URL names none of the options, which is said; the reader can choose one.
    """
    requested = st.query_params.setdefault(parameter, default)
    key = f"choose-{parameter}"
    # The URL decides, because following a link must override an earlier choice.
    known = requested in options
    st.session_state[key] = requested if known else None

    def update_url() -> None:
        st.query_params[parameter] = st.session_state[key]

    st.selectbox(
        label,
        options,
        index=0 if known else None,
        key=key,
        format_func=lambda option: names[option],
        placeholder=f"Choose a {kind}",
        on_change=update_url,
    )
    if not known:
        not_found(kind, requested, "this job")
    return requested if known else None


def choose_many(
    label: str, options: Sequence[str], *, parameter: str, default: Sequence[str], names: Mapping[str, str], most: int
) -> list[str]:
    """Return the first ``most`` options that the reader chose; the URL's ``parameter`` holds them."""
    requested = [value for value in st.query_params.get_all(parameter) if value in options]
    key = f"choose-{parameter}"
    st.session_state[key] = requested or list(default)

    def update_url() -> None:
        st.query_params[parameter] = st.session_state[key]

    chosen = st.pills(
        label,
        options,
        selection_mode="multi",
        key=key,
        format_func=lambda option: in_markdown(names[option], longest=60),
        wrap=True,
        on_change=update_url,
    )
    if len(chosen) > most:
        st.caption(f"The first {most} of {len(chosen)} are shown.")
    return list(chosen)[:most]


def measured(names: Sequence[str], frames: Iterable[pd.DataFrame]) -> list[str]:
    """Return the metrics that at least one trial in the frames has."""
    found = list(frames)
    return [name for name in names if any(frame[name].notna().any() for frame in found)]


def choose_axes(latencies: Sequence[str], qualities: Sequence[str], objectives: Sequence[str] = ()) -> tuple[str, str]:
    """Return the metrics of the x and the y axis, by default objectives of the job; the URL holds both."""
    with st.container(horizontal=True, gap="medium"):
        x = _choose_metric(
            "Latency", latencies, objectives, "latency", "p95: 95 % of the passes are at least this fast."
        )
        y = _choose_metric(
            "Quality",
            qualities,
            objectives,
            "quality",
            "Accuracy is the task's metric; divergence measures how far the outputs are from full precision.",
        )
    return x, y


def _choose_metric(label: str, metrics: Sequence[str], objectives: Sequence[str], key: str, meaning: str) -> str:
    """Return the metric that the reader chose: with buttons, or from a list if their names need more than a line."""
    first = next((metric for metric in objectives if metric in metrics), metrics[0])
    names = {metric: METRICS[metric].label.removesuffix(" from full precision") for metric in metrics}
    short = {metric: name.removeprefix("Latency ") for metric, name in names.items()}
    if sum(map(len, short.values())) + _BUTTON * len(metrics) > _LINE:
        at = metrics.index(first)
        listed = st.selectbox(
            label, metrics, at, names.__getitem__, key=key, help=meaning, width=_LIST, bind="query-params"
        )
        return listed or first
    chosen = st.segmented_control(
        label,
        metrics,
        default=first,
        required=True,
        format_func=short.__getitem__,
        key=key,
        bind="query-params",
        help=meaning,
    )
    return chosen or first


def job_names(jobs: Sequence[JobRecord]) -> dict[str, str]:
    """Return job id -> name with id, because names need not be unique."""
    return {job.id: f"{one_line(job.name)} ({job.id})" for job in jobs}


def linked_job() -> JobRecord | None:
    """Return the job in the URL or the newest one; say that it was not found, or how to begin, and return None.

    Raises:
        StoreError: if the database cannot be opened or read.
    """
    jobs = queries.jobs()
    if not jobs:
        st.info("There are no jobs yet.")
        how_to_begin()
        return None
    requested = st.query_params.get("job", jobs[0].id)
    found = next((job for job in jobs if job.id == requested), None)
    if found is None:
        not_found("job", requested, "this database")
    return found


def not_found(kind: str, name: str, place: str) -> None:
    """Say that what a link names does not exist, and what to do."""
    st.error(f"Not found: {place} has no {kind} {in_markdown(name)}. Choose another {kind} above.")


def same_map_elsewhere(trials: Sequence[TrialRecord], objectives: Sequence[str], name: str = "") -> None:
    """Show what the backend alone is worth, for maps that were measured on several; ``name`` is that of the job."""
    worth = worth_of_backends(trials, objectives)
    if worth:
        of_job = f" ({name})" if name else ""
        st.caption(in_markdown(f"The same map on several backends{of_job}: {'; '.join(worth)}.", longest=800))


def show_cards(shown: Sequence[Card], remark: str = "") -> None:
    """Show the most important figures of a map side by side, and a remark where there is room for it."""
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        for card in shown:
            st.metric(
                card.label,
                card.value,
                card.note or None,
                delta_color="off",
                delta_arrow="off",
                help=card.help,
                width=_width(card),
            )
        if remark:
            st.markdown(in_markdown(remark, longest=400), width=380)


def _width(card: Card) -> int:
    """Return the width of a card in pixels that cuts off neither its label nor its note."""
    texts = ((card.label, _LABEL), (card.note, _NOTE))
    return max(_CARD, *(per_character * len(text) + rest for text, (per_character, rest) in texts))


def job_facts(job: JobRecord, trials: int, front_size: int) -> None:
    """Show the progress of a live job, and the state, the limits and the problems of any job in a few lines."""
    spec = job.spec
    count = f"{trials} of {spec.search.trials} trials"
    if job.state.is_live:
        st.progress(min(1.0, trials / spec.search.trials), in_markdown(" · ".join(_steps(job, spec, trials, count))))
    facts = [state_text(job.state), *([] if job.state.is_live else [count]), f"{front_size} on the front"]
    limits = "; ".join(constraint_text(limit) for limit in spec.constraints.constraints())
    facts += [f"limits: {limits}" if limits else "no limits"]
    if job.description is not None:
        facts.append(f"{job.description.environment.hardware}, {job.description.environment.threads} threads")
    facts += [f"task {job.task}", f"submitted {moment(job.created_at, st.context.timezone)}"]
    st.caption(" · ".join(in_markdown(fact, longest=400) for fact in facts))
    _trouble(job, spec.workers.trial_timeout_s)


def _steps(job: JobRecord, spec: JobSpec, trials: int, count: str) -> list[str]:
    """Return what a live job does, its trials and the time left; a stage has its own time, and may count the trials."""
    stage, left = job.stage, left_s(job, spec, trials)
    steps = [stage_text(stage)] if stage else []
    if stage is None or stage.total != spec.search.trials:
        steps.append(count)
    if left is not None and (stage is None or stage.remaining_s is None):
        steps.append(f"about {duration(left)} left")
    return steps


def _trouble(job: JobRecord, patience_s: float) -> None:
    """Show what went wrong, if anything, and the command that continues the job."""
    silent_s = (now() - job.updated_at).total_seconds()
    if job.state is JobState.FAILED:
        st.error("This job stopped with an error.")
        if job.error:
            st.text(job.error)
    elif job.state is JobState.PAUSED:
        st.warning("This job was paused before its budget was used.")
    elif job.state is JobState.CANCELLED:
        st.warning("This job was cancelled before its budget was used; its results are kept.")
    elif job.state is JobState.RUNNING and silent_s > patience_s:
        st.warning(f"No news for {duration(silent_s)}: the process that ran this job may have died.")
    else:
        return
    st.markdown("This command continues the job; finished trials are kept.")
    st.code(f"autotune resume {one_line(job.id)}", language="bash")
