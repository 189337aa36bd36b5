"""Page: all jobs with their progress, and actions on them."""

from collections.abc import Callable
from functools import partial

import streamlit as st
from streamlit import Page

from autotune.client import actions as service
from autotune.jobs.records import JobRecord, JobState
from autotune.jobs.timestamps import now
from autotune.store.base import JobStore
from dashboard import queries
from dashboard.formatting import in_markdown, one_line, state_text
from dashboard.tables.jobs import jobs_frame, selected
from dashboard.widgets.actions import act, show_outcome
from dashboard.widgets.page_parts import REFRESH_S, guarded, how_to_begin, job_names

#: Number of newest jobs shown; older ones are read only on request.
_NEWEST = 50
_ANY_TASK = "any task"
#: Which map the gains in the table are those of.
_RECOMMENDED = "of the recommended map among those on the front"
#: States in which a job can be paused, and cancelled.
_PAUSABLE = (JobState.QUEUED, JobState.RUNNING)
_CANCELLABLE = (*_PAUSABLE, JobState.PAUSED, JobState.FAILED)


def show(front: Page) -> None:
    """Show the page; choosing a job opens ``front``."""
    st.title("Jobs")
    show_outcome()
    jobs = queries.jobs()
    if not jobs:
        st.info("There are no jobs yet.")
        how_to_begin()
        return
    states, task, text = _filters(jobs)
    everything = len(jobs) > _NEWEST and st.toggle(f"Show all {len(jobs)} jobs, not only the newest {_NEWEST}")
    alive = any(job.state.is_live for job in jobs)

    @guarded
    def refresh() -> None:
        current = queries.jobs()
        if alive and not any(job.state.is_live for job in current):
            st.rerun()
        shown = selected(current, states=states, task=task, text=text)
        _table(shown if everything else shown[:_NEWEST], front)

    st.fragment(refresh, run_every=REFRESH_S if alive else None)()
    _actions(selected(jobs, states=states, task=task, text=text), front)


def _filters(jobs: list[JobRecord]) -> tuple[list[str], str | None, str]:
    """Return the filters on state, task and text; the URL holds them."""
    tasks = [_ANY_TASK, *sorted({job.task for job in jobs})]
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        text = st.text_input("Search", key="search", bind="query-params", placeholder="Name or id", width=200)
        with st.popover("Filter"):
            states = st.pills(
                "State",
                [state.value for state in JobState],
                selection_mode="multi",
                wrap=True,
                key="state",
                bind="query-params",
            )
            task = st.selectbox("Task", tasks, key="task", bind="query-params", width=200)
        chosen = [*states, *([] if task == _ANY_TASK else [one_line(task)])]
        if chosen:
            st.caption(in_markdown(f"Only {', '.join(chosen)}"))
    return list(states), None if task == _ANY_TASK else task, text or ""


def _table(jobs: list[JobRecord], front: Page) -> None:
    if not jobs:
        st.info("No jobs match these filters.")
        return
    frame = jobs_frame([queries.summary(job) for job in jobs], now())
    event = st.dataframe(
        # Its name is what a reader looks for in a row.
        frame.style.map(lambda _: "font-weight: 600", subset=["name"]),
        hide_index=True,
        key="jobs-table",
        on_select="rerun",
        selection_mode=["single-row", "single-cell"],
        alt="One row per job: name, state, gains of its recommended map, progress, time left, stage, front, task, age",
        column_config={
            "name": st.column_config.TextColumn("Job", width=200),
            "state": st.column_config.TextColumn("State"),
            "speed": st.column_config.TextColumn("Speed", help=f"Relative to full precision; {_RECOMMENDED}"),
            "accuracy": st.column_config.TextColumn(
                "Accuracy change", help=f"Relative to full precision; {_RECOMMENDED}"
            ),
            "memory": st.column_config.TextColumn("Weights", help=f"Memory; {_RECOMMENDED}"),
            "progress": st.column_config.ProgressColumn(
                "Progress", format="percent", width="small", min_value=0, max_value=1
            ),
            "trials": st.column_config.TextColumn("Trials"),
            "left": st.column_config.TextColumn("Time left"),
            "stage": st.column_config.TextColumn("Stage", help="What its driver is doing"),
            "front": st.column_config.NumberColumn("On front", help="Maps that no other map beats in every objective"),
            "task": st.column_config.TextColumn("Task"),
            "age": st.column_config.TextColumn("Age"),
            "hardware": st.column_config.TextColumn("Hardware"),
            "id": st.column_config.TextColumn("Id"),
        },
    )
    st.caption("Click a row to see the job's front.")
    picked = [*event.selection.rows, *(row for row, _ in event.selection.cells)]
    if picked:
        st.switch_page(front, query_params={"job": frame["id"].iloc[picked[0]]})


def _actions(jobs: list[JobRecord], front: Page) -> None:
    """Offer a link to a job's front and actions on the job; usable by keyboard."""
    by_id = {job.id: job for job in jobs}
    names = job_names(jobs)
    chosen = st.selectbox(
        "Open or change a job", list(names), index=None, format_func=names.__getitem__, placeholder="Choose a job"
    )
    if not chosen:
        return
    job = by_id[chosen]
    st.caption(in_markdown(f"{names[chosen]} is {state_text(job.state)}."))
    with st.container(horizontal=True, gap="small"):
        st.page_link(front, label="Open its front", query_params={"job": job.id})
        _button("Pause", job.state in _PAUSABLE, partial(service.pause, job_id=job.id), "Paused")
        _button("Resume", job.state not in _PAUSABLE, partial(service.resume, job_id=job.id), "Queued to continue")
        _button("Clone", True, lambda store: service.clone(store, job), "Cloned")
        with st.popover("Cancel", disabled=job.state not in _CANCELLABLE):
            st.markdown("Its results are kept. The job can be resumed later.")
            _button("Cancel the job", True, partial(service.cancel, job_id=job.id), "Cancelled")
        with st.popover("Change the budget"):
            _budget(job)


def _button(label: str, enabled: bool, action: Callable[[JobStore], JobRecord], done: str) -> None:
    def press() -> None:  # runs before the page is drawn again, so the click counts even if the job has changed
        act(action, done)

    st.button(label, disabled=not enabled, on_click=press)


def _budget(job: JobRecord) -> None:
    search = job.spec.search
    with st.form(f"budget-{job.id}", border=False):
        trials = st.number_input("Trials", min_value=1, value=search.trials, step=10)
        limit_s = st.number_input(
            "Time limit (s)", min_value=1.0, value=search.time_limit_s, placeholder="no limit", step=60.0
        )
        priority = st.number_input(
            "Priority", value=job.priority, step=1, help="Jobs of higher priority are started first."
        )
        if st.form_submit_button("Change"):
            act(
                lambda store: service.change_plan(
                    store, job.id, priority=priority, trials=trials, time_limit_s=limit_s
                ),
                "Changed",
            )
            st.rerun()
