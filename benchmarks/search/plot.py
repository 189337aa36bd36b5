"""Draw the results of ``compare.py`` into ``docs/images/search.svg``: hypervolume over units, one panel per model.

Needs Chromium, like the dashboard's browser tests.
"""

import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import plotly.graph_objects as go
from compare import MARKS, RESULTS
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "search.svg"
WIDTH, HEIGHT = 1000, 420
#: Drawn in this order; the colours are Okabe and Ito's, which colour-blind people can distinguish.
LINES = {
    "sensitivity": "#0072B2",
    "nsga2, from the probes' front": "#56B4E9",
    "tpe, uniform maps first": "#009E73",
    "nsga2, uniform maps first": "#E69F00",
    "gp, uniform maps first": "#CC79A7",
    "greedy fallback": "#D55E00",
    "nsga2, cold": "#999999",
}


def figure(results: dict[str, dict[str, dict[str, dict[str, list[float]]]]]) -> go.Figure:
    drawn = make_subplots(cols=len(results), shared_yaxes=True, subplot_titles=list(results))
    for column, of_task in enumerate(results.values(), start=1):
        for name, colour in LINES.items():
            marks = dict(sorted(of_task["marks"].get(name, {}).items(), key=lambda item: int(item[0])))
            mean, low, high = zip(*marks.values(), strict=True) if marks else ((), (), ())
            errors = {
                "array": [100 * (h - m) for m, h in zip(mean, high, strict=True)],
                "arrayminus": [100 * (m - least) for m, least in zip(mean, low, strict=True)],
            }
            drawn.add_scatter(
                x=[int(mark) for mark in marks], y=[100 * m for m in mean], name=name, error_y=errors,
                line={"color": colour}, showlegend=column == 1, col=column, row=1,
            )  # fmt: skip
    drawn.update_xaxes(type="log", tickvals=MARKS, title="units (full evaluations)")
    drawn.update_yaxes(range=[40, 101], title="hypervolume, % of the best known", col=1)
    drawn.update_layout(template="plotly_white", legend={"orientation": "h", "y": -0.25}, margin={"t": 40, "r": 20})
    return drawn


def svg(drawn: go.Figure) -> str:
    """Return the figure as plotly's own browser code draws it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(drawn.to_html(include_plotlyjs=True))
        options = {"format": "svg", "width": WIDTH, "height": HEIGHT}
        url = page.evaluate("o => Plotly.toImage(document.querySelector('.plotly-graph-div'), o)", options)
        browser.close()
    return unquote(str(url).partition(",")[2])


if __name__ == "__main__":
    IMAGE.write_text(svg(figure(json.loads(RESULTS.read_text()))))
