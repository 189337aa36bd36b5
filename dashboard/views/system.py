"""Page: the queue, recent errors and events, and versions."""

import platform
from collections.abc import Sequence
from importlib import metadata

import streamlit as st

from autotune.jobs.records import EventRecord, JobRecord, JobState
from autotune.jobs.timestamps import now
from dashboard import queries
from dashboard.formatting import in_markdown, moment, one_line
from dashboard.tables.jobs import events_frame, queue_frame
from dashboard.widgets.page_parts import JOB_WIDTH, REFRESH_S, guarded

_PACKAGES = ("quant-autotune", "streamlit", "plotly", "sqlalchemy")
#: Most jobs whose events are read, and most events shown.
_RECENT_JOBS, _MOST_EVENTS = 20, 100


def show() -> None:
    """Show the page."""
    st.title("System")
    st.fragment(guarded(_refresh), run_every=REFRESH_S)()


def _refresh() -> None:
    jobs = queries.jobs()
    _queue(queries.waiting())
    _errors(jobs)
    _events(jobs)
    _versions()


def _queue(jobs: Sequence[JobRecord]) -> None:
    st.header("Queue")
    frame = queue_frame(jobs, now())
    if frame.empty:
        st.info("No jobs are queued or running.")
        return
    st.dataframe(
        frame,
        hide_index=True,
        key="queue",
        alt="Queued and running jobs, in the order in which controllers start them",
        column_config={
            "job": st.column_config.TextColumn("Job", pinned=True, width=JOB_WIDTH),
            "state": "State",
            "priority": "Priority",
            "owner": "Owner",
            "served": st.column_config.TextColumn("Runs in", help="A controller, or the process of autotune run"),
            "workers": st.column_config.TextColumn("Workers", help="Most workers, as set in the job file"),
            "driver": st.column_config.TextColumn("Driver", help="Host and process that hold the job"),
            "lease": st.column_config.TextColumn("Lease", help="A driver that does not renew its lease is replaced"),
            "crashes": st.column_config.NumberColumn(
                "Crashes", help="Consecutive drivers that died without recording a trial"
            ),
        },
    )


def _errors(jobs: Sequence[JobRecord]) -> None:
    st.header("Recent errors")
    failed = [job for job in jobs if job.state is JobState.FAILED and job.error]
    if not failed:
        st.info("No job has failed.")
        return
    for job in failed[:5]:
        at = moment(job.updated_at, st.context.timezone)
        with st.expander(in_markdown(f"{job.name} ({job.id}), {at}", longest=160)):
            st.text(job.error)
    if len(failed) > 5:
        st.caption(f"{len(failed) - 5} older ones are on the Jobs page.")


def _events(jobs: Sequence[JobRecord]) -> None:
    st.header("Recent events")
    recent = sorted(jobs, key=lambda job: job.updated_at, reverse=True)[:_RECENT_JOBS]
    found: list[tuple[JobRecord, EventRecord]] = [(job, event) for job in recent for event in queries.events(job)]
    found.sort(key=lambda pair: pair[1].at, reverse=True)
    if not found:
        st.info("There are no events yet.")
        return
    st.dataframe(
        events_frame(found[:_MOST_EVENTS], st.context.timezone),
        hide_index=True,
        key="events",
        alt="The newest events of the most recently changed jobs, newest first",
        column_config={
            "at": "When",
            "job": st.column_config.TextColumn("Job", width=JOB_WIDTH),
            "kind": "Kind",
            "message": st.column_config.TextColumn("What", width="large"),
        },
    )


def _versions() -> None:
    st.header("Versions")
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}
    st.text(" · ".join(f"{name} {version}" for name, version in versions.items()))
    st.text(f"Database: {one_line(queries.database_text(), 300)}")
