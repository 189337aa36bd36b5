"""Actions on jobs, by the functions of the command line. Each action opens the database for itself."""

from collections.abc import Callable

import streamlit as st

from autotune.jobs.records import JobRecord
from autotune.store.base import JobStore
from autotune.store.open import default_url, open_store
from dashboard.formatting import in_markdown, one_line
from search_spaces.errors import AutotuneError

#: Key of the session state for the outcome of the last action.
_OUTCOME = "outcome"


def act(action: Callable[[JobStore], JobRecord], done: str) -> JobRecord | None:
    """Perform an action on a job, and keep the outcome for ``show_outcome``.

    Args:
        action: changes the store and returns the changed job.
        done: message on success, such as ``Paused``.

    Returns:
        The job; None if the action failed.
    """
    try:
        store = open_store(default_url())
        try:
            job = action(store)
        finally:
            store.close()
    except AutotuneError as error:
        st.session_state[_OUTCOME] = ("error", str(error))
        return None
    order = f"; the driver will apply this shortly, until then it is {job.state}" if job.order else ""
    st.session_state[_OUTCOME] = ("success", f"{done}: {one_line(job.name)} ({job.id}){order}.")
    return job


def show_outcome() -> None:
    """Show the outcome of the last action once."""
    outcome = st.session_state.pop(_OUTCOME, None)
    if outcome is None:
        return
    kind, text = outcome
    if kind == "success":
        st.success(in_markdown(text, longest=400))
    else:
        st.error("The action failed.")
        st.text(text)
