"""Entry point of the dashboard: ``autotune dashboard`` runs ``python -m streamlit run dashboard/app.py``."""

from pathlib import Path

import streamlit as st

from dashboard.views import candidate, compare, diff, front, jobs, layers, submit, system
from dashboard.widgets.bar import bar
from dashboard.widgets.page_parts import guarded

st.set_page_config(layout="wide")
st.html(Path(__file__).with_name("style.css"))

jobs_page: st.Page = st.Page(lambda: jobs.show(front_page), title="Jobs", url_path="jobs", default=True)
submit_page: st.Page = st.Page(lambda: submit.show(jobs_page), title="Submit", url_path="submit")
front_page: st.Page = st.Page(lambda: front.show(map_page), title="Front", url_path="front")
map_page: st.Page = st.Page(lambda: candidate.show(front_page, diff_page), title="Map", url_path="map")
diff_page: st.Page = st.Page(lambda: diff.show(map_page), title="Diff", url_path="diff")
layers_page: st.Page = st.Page(layers.show, title="Layers", url_path="layers")
compare_page: st.Page = st.Page(compare.show, title="Compare", url_path="compare")
system_page: st.Page = st.Page(system.show, title="System", url_path="system")

pages = [jobs_page, submit_page, front_page, map_page, diff_page, layers_page, compare_page, system_page]
current = st.navigation(pages, position="hidden")
bar(pages, current, of_job=[front_page, map_page, diff_page, layers_page])
guarded(current.run)()
