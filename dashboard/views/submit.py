"""Page: submit a job with a form or a job file."""

import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

import pandas as pd
import streamlit as st
from streamlit import Page
from streamlit.delta_generator import DeltaGenerator

from autotune.client import actions as service
from autotune.jobs.records import JobRecord
from autotune.jobs.spec import SUGGESTED_OBJECTIVES, JobSpec, SamplerName
from autotune.metrics.catalog import METRICS, Kind
from dashboard import job_form, queries
from dashboard.formatting import in_markdown
from dashboard.job_form import LIMITED, OBJECTIVES, SPECIAL, JobForm, as_text, document, read_job
from dashboard.widgets.actions import act, show_outcome
from search_spaces.choice import CHOICES
from search_spaces.errors import AutotuneError
from workers.tasks import task_names

T = TypeVar("T")

_FORM, _FILE = "with a form", "with a job file"
#: Key of the session state for the submission key, which makes a second click submit nothing.
_KEY = "submission"
_DEFAULTS = JobSpec.parse({"name": "default", "task": {"name": "default"}})
#: Limits that most jobs have; the others are in a fold.
_USUAL_LIMITS = ("accuracy_drop", "weight_memory_mib", "latency_p50_ms", "latency_p95_ms")
#: Step of the buttons of a limit field.
_STEPS = {name: 0.005 for name in LIMITED if METRICS[name].is_quality}


def show(jobs_page: Page) -> None:
    """Show the page; it links to ``jobs_page``, where the submitted job appears."""
    st.title("Submit")
    show_outcome()
    how = st.segmented_control("Submit a job", [_FORM, _FILE], default=_FORM, required=True, key="how")
    if how == _FORM:
        _form(jobs_page)
    else:
        _file(jobs_page)


def _file(jobs_page: Page) -> None:
    uploaded = st.file_uploader("Job file", type=["yaml", "yml", "json"], max_upload_size=1)
    if uploaded is None:
        st.caption("The command autotune init writes a job file to start from.")
        return
    spec = _checked(lambda: read_job(uploaded.getvalue()))
    if spec is not None:
        st.code(as_text(spec.dump()), language=None)
        priority = _priority()
        _submit(spec, priority, jobs_page)


def _form(jobs_page: Page) -> None:
    form, file = st.columns([3, 2], gap="large")
    with form:
        filled, priority = _fields()
        data = _checked(lambda: document(filled))
        spec = None if data is None else _checked(lambda: JobSpec.parse(data, source="this form"))
        _submit(spec, priority, jobs_page)
    if data is not None:
        with file:
            st.header("Job file")
            text = as_text(data)
            st.code(text, language=None)
            st.download_button("Download the job file", text, file_name="job.yaml", on_click="ignore")


def _checked(make: Callable[[], T]) -> T | None:
    """Return what ``make`` makes; show its error and return None if it fails."""
    try:
        return make()
    except AutotuneError as error:
        st.error("This job cannot be submitted.")
        st.text(str(error))
        return None


def _fields() -> tuple[JobForm, int]:
    """Show the fields, those that few jobs need in folds, and return their values with the priority."""
    name = st.text_input("Name", value="my-first-job", max_chars=100)
    jobs = _known_jobs()
    tasks = sorted({*task_names(), *(job.task for job in jobs)})
    task = st.selectbox(
        "Task",
        tasks,
        index=tasks.index(jobs[0].task) if jobs else 0,
        accept_new_options=True,
        help="A task registered with the controllers; autotune tasks lists them.",
    )
    frame = _measured(jobs, task)
    st.header("Limits")
    if frame is None:
        st.caption("No job of this task has been measured yet, so there are no baselines to compare with.")
    limits = _limits(_USUAL_LIMITS, frame)
    st.header("Budget")
    trials, time_limit_s = _budget()
    with st.expander("Objectives, other limits and metrics"):
        parameters = st.text_input("Task parameters", placeholder="key: value", help="YAML; autotune tasks lists them.")
        special = _special(task, frame)
        objectives = st.pills(
            "Objectives, two or three",
            job_form.offered(OBJECTIVES, special),
            default=SUGGESTED_OBJECTIVES,
            selection_mode="multi",
            format_func=lambda metric: METRICS[metric].title,
            wrap=True,
            key="objectives",
        )
        others = [name for name in job_form.offered(LIMITED, special) if name not in _USUAL_LIMITS]
        limits |= _limits(others, frame)
        rate = None
        if "queued" in special:
            rate = st.number_input("Requests per second", min_value=0.0, value=1.0, help="Mean arrival rate.")
    with st.expander("Search and measurement"):
        choices, layers, sampler = _search()
        repeats, batch_sizes = _measurement()
        priority = _priority()
    form = JobForm(
        name=name,
        task=task or "",
        parameters=parameters,
        objectives=objectives,
        limits=limits,
        choices=choices,
        layers=layers,
        sampler=sampler,
        trials=trials,
        time_limit_s=time_limit_s,
        repeats=repeats,
        batch_sizes=batch_sizes,
        requests_per_second=rate,
    )
    return form, priority


def _special(task: str | None, frame: pd.DataFrame | None) -> list[str]:
    """Show a choice of the metrics that the task has in addition to the common ones."""
    return st.pills(
        "The task also measures",
        list(SPECIAL),
        default=job_form.special_in(frame),
        selection_mode="multi",
        format_func=SPECIAL.__getitem__,
        wrap=True,
        help="Metrics of shifted data and language models; a job is rejected if its task lacks a metric that it uses.",
        key=f"special-{task}",
    )


def _limits(metrics: Sequence[str], frame: pd.DataFrame | None) -> dict[str, float | None]:
    """Show a field per limit, with the values of the baselines of the same task."""
    limits: dict[str, float | None] = {}
    for start in range(0, len(metrics), 2):
        for column, metric in zip(st.columns(2), metrics[start : start + 2], strict=False):
            limits[metric] = _limit(column, metric, frame)
    return limits


def _limit(column: DeltaGenerator, metric: str, frame: pd.DataFrame | None) -> float | None:
    bound = "at least" if METRICS[metric].maximise else "at most"
    limit = column.number_input(
        f"{METRICS[metric].title} {bound}",
        value=None,
        placeholder="no limit",
        step=_STEPS.get(metric, 1.0),
        format="%.4g",
        key=f"limit-{metric}",
        help="0.01 is one percent of full precision's." if METRICS[metric].kind is Kind.ACCURACY_DROP else None,
    )
    known = job_form.baselines_text(frame, metric)
    if known:
        column.caption(in_markdown(f"Measured: {known}"))
    return limit


def _budget() -> tuple[int, float | None]:
    left, right = st.columns(2)
    trials = left.number_input("Trials", min_value=1, value=_DEFAULTS.search.trials, step=10)
    limit_s = right.number_input("Time limit (s)", min_value=1.0, value=None, placeholder="no limit", step=60.0)
    return trials, limit_s


def _search() -> tuple[list[str], str, str]:
    choices = st.pills("Choices", list(CHOICES), default=_DEFAULTS.search.choices, selection_mode="multi", wrap=True)
    layers = st.text_area(
        "Rules for layers", placeholder='- {pattern: "*.embeddings.*", pin: fp32}', help="A YAML list; see the manual."
    )
    return list(choices), layers, st.selectbox("Sampler", [name.value for name in SamplerName])


def _priority() -> int:
    return st.number_input("Priority", value=0, step=1, help="Jobs of higher priority are started first.")


def _measurement() -> tuple[int, str]:
    left, right = st.columns(2)
    repeats = left.number_input("Timed passes per map", min_value=1, value=_DEFAULTS.measurement.repeats, step=50)
    return repeats, right.text_input("Batch sizes", value="1", help="Comma-separated; limits apply to the first one.")


def _submit(spec: JobSpec | None, priority: int, jobs_page: Page) -> None:
    key = st.session_state.setdefault(_KEY, secrets.token_hex(8))

    def press() -> None:
        if spec and act(lambda store: service.submit(store, spec, key=key, priority=priority), "Submitted"):
            del st.session_state[_KEY]

    st.button("Submit the job", type="primary", disabled=spec is None, on_click=press)
    st.caption("The job waits until a controller runs it; autotune serve starts one.")
    st.page_link(jobs_page, label="See all jobs")


def _known_jobs() -> Sequence[JobRecord]:
    """Return the recorded jobs; none if there is no database yet, which submitting creates."""
    try:
        return queries.jobs()
    except AutotuneError:
        return ()


def _measured(jobs: Sequence[JobRecord], task: str | None) -> pd.DataFrame | None:
    """Return the frame of the newest job of a task that has measured trials; None without one."""
    for job in jobs:
        if job.task == task and job.description is not None:
            frame = queries.progress(job).frame
            if frame["latency_p50_ms"].notna().any():
                return frame
    return None
