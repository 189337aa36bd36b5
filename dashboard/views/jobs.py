"""Page: all jobs with their progress."""

import streamlit as st
from streamlit import Page

from autotune.store.clock import now
from autotune.store.records import JobRecord
from dashboard import reading
from dashboard.frames import JobSummary, jobs_frame
from dashboard.parts import REFRESH_S, guarded, how_to_begin, job_names

#: Older jobs are read only when asked for.
_NEWEST = 50


def show(front: Page) -> None:
    """Show the page; ``front`` is where a chosen job leads."""
    st.title("Jobs")
    jobs = reading.jobs()
    if not jobs:
        st.info("There are no jobs yet.")
        how_to_begin()
        return
    everything = len(jobs) > _NEWEST and st.toggle(f"Show all {len(jobs)} jobs, not only the newest {_NEWEST}")
    alive = any(job.state.is_live for job in jobs)

    @guarded
    def look() -> None:
        current = reading.jobs()
        if alive and not any(job.state.is_live for job in current):
            st.rerun()
        _table(current if everything else current[:_NEWEST], front)

    st.fragment(look, run_every=REFRESH_S if alive else None)()
    _opener(jobs, front)


def _table(jobs: list[JobRecord], front: Page) -> None:
    summaries = []
    for job in jobs:
        progress = reading.progress(job)
        summaries.append(JobSummary(job=job, trials=progress.trials, front_size=len(progress.members)))
    frame = jobs_frame(summaries, now())
    event = st.dataframe(
        frame,
        hide_index=True,
        key="jobs-table",
        on_select="rerun",
        selection_mode=["single-row", "single-cell"],
        alt="One row a job: name, state, progress, time left, best feasible map, front size, task, age, hardware",
        column_config={
            "name": st.column_config.TextColumn("Job", pinned=True),
            "state": st.column_config.TextColumn("State"),
            "progress": st.column_config.ProgressColumn(
                "Progress", format="percent", width="small", min_value=0, max_value=1
            ),
            "trials": st.column_config.TextColumn("Trials"),
            "left": st.column_config.TextColumn("Time left"),
            "best": st.column_config.TextColumn(
                "Best feasible so far", help="In the job's first objective, among maps that meet every limit"
            ),
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


def _opener(jobs: list[JobRecord], front: Page) -> None:
    """Offer the way to a job that needs no mouse."""
    names = job_names(jobs)
    chosen = st.selectbox(
        "Open a job", list(names), index=None, format_func=names.__getitem__, placeholder="Choose a job"
    )
    if chosen:
        st.switch_page(front, query_params={"job": chosen})
