"""Pages with a title and nothing else, to measure what Streamlit itself takes."""

import streamlit as st


def page(name: str) -> st.Page:
    return st.Page(lambda: st.title(name.capitalize()), title=name, url_path=name)


st.navigation([page("submit"), page("empty")], position="top").run()
