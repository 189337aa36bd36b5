"""Pages with only a title, to measure the time of Streamlit itself."""

import streamlit as st


def page(name: str) -> st.Page:
    return st.Page(lambda: st.title(name.capitalize()), title=name, url_path=name)


st.navigation([page("submit"), page("empty")], position="top").run()
