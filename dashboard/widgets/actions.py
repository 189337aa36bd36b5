"""What readers do to jobs, by the functions of the command line. The database is opened for each deed alone."""

from collections.abc import Callable

import streamlit as st

from autotune.jobs.records import JobRecord
from autotune.store.base import JobStore
from autotune.store.open import default_url, open_store
from dashboard.formatting import in_markdown, one_line
from search_spaces.errors import AutotuneError

#: Where the outcome waits for the page to tell it.
_OUTCOME = "outcome"


def act(deed: Callable[[JobStore], JobRecord], told: str) -> JobRecord | None:
    """Do something to a job, and keep what came of it for ``tell_outcome``.

    Args:
        deed: changes the store and returns the job as it is then.
        told: what happened, such as ``Paused``.

    Returns:
        The job; None if it could not be done.
    """
    try:
        store = open_store(default_url())
        try:
            job = deed(store)
        finally:
            store.close()
    except AutotuneError as error:
        st.session_state[_OUTCOME] = ("error", str(error))
        return None
    order = f", which its driver will see to; until then it is {job.state}" if job.order else ""
    st.session_state[_OUTCOME] = ("success", f"{told}: {one_line(job.name)} ({job.id}){order}.")
    return job


def tell_outcome() -> None:
    """Show what came of the last deed, once."""
    outcome = st.session_state.pop(_OUTCOME, None)
    if outcome is None:
        return
    kind, text = outcome
    if kind == "success":
        st.success(in_markdown(text, longest=400))
    else:
        st.error("That could not be done.")
        st.text(text)
