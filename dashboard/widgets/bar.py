"""The bar above every page: the product, links to the pages, and the job that they are about."""

from collections.abc import Sequence

import streamlit as st
from streamlit import Page

from autotune.jobs.records import JobRecord
from dashboard import queries
from dashboard.formatting import one_line
from dashboard.widgets.page_parts import job_names
from search_spaces.errors import AutotuneError

PRODUCT = "autotune"
#: Key of the box, and of a choice that should open the front.
_BOX, _CHOSEN = "choose-job", "job-chosen"


def bar(pages: Sequence[Page], current: Page, of_job: Sequence[Page]) -> None:
    """Show the bar and set the title of the browser's tab.

    The URL holds the job: links keep it, and without one it becomes the newest job.

    Args:
        pages: every page, in reading order.
        current: the page below the bar.
        of_job: the pages about one job. The first opens if the reader chooses a job on another page.
    """
    jobs = _jobs()
    if jobs and "job" not in st.query_params:
        st.query_params["job"] = jobs[0].id
    requested = st.query_params.get("job")
    if st.session_state.pop(_CHOSEN, False) and current not in of_job:
        st.switch_page(of_job[0], query_params={"job": str(requested)})
    names = job_names(jobs)
    link = {"job": requested} if requested in names else {}
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="bar"):
        st.markdown(f"**{PRODUCT}**", width="content")
        with st.container(horizontal=True, gap=None, key="pages", width="stretch"):
            for page in pages:
                st.page_link(page, query_params=link, width="content")
        if jobs:
            _choose(names, requested)
    about = next((one_line(job.name, 60) for job in jobs if job.id == requested and current in of_job), None)
    st.set_page_config(page_title=f"{current.title}: {about} | {PRODUCT}" if about else f"{current.title} | {PRODUCT}")


def _jobs() -> Sequence[JobRecord]:
    """Return the recorded jobs; none if they cannot be read, which the page says."""
    try:
        return queries.jobs()
    except AutotuneError:
        return ()


def _choose(names: dict[str, str], requested: str | None) -> None:
    # The URL decides, because following a link must override an earlier choice.
    known = requested in names
    st.session_state[_BOX] = requested if known else None

    def update_url() -> None:
        # Other parameters are about the trials of the job before.
        st.query_params.from_dict({"job": st.session_state[_BOX]})
        st.session_state[_CHOSEN] = True

    st.selectbox(
        "Job",
        list(names),
        index=0 if known else None,
        key=_BOX,
        format_func=names.__getitem__,
        placeholder="Choose a job",
        label_visibility="collapsed",
        on_change=update_url,
        width=320,
    )
