"""HTML of a result for notebooks, which show what ``_repr_html_`` returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path

from autotune.console.front import baselines, notes, sorted_front
from autotune.console.output import front_rows
from autotune.jobs.front import ties, without_superseded
from autotune.jobs.recommendation import recommendation
from autotune.jobs.records import JobRecord, TrialRecord
from autotune.jobs.remarks import remarks
from autotune.markup import Html, join, table, tag
from autotune.reports.charts import front_chart
from autotune.text_files import write_text


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Chart:
    """A chart of a job's front; a notebook shows it."""

    name: str
    content: Html

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the chart as an HTML file, and return its path.

        Raises:
            MapError: if the file cannot be written.
        """
        head = tag("head", Html('<meta charset="utf-8">'), tag("title", self.name))
        write_text(Path(path), f"<!DOCTYPE html>\n{tag('html', head, tag('body', self.content), lang='en')}\n")
        return Path(path)

    def _repr_html_(self) -> str:
        return self.content

    def __repr__(self) -> str:
        return f"Chart of {self.name}: a notebook shows it, and save(path) writes it as HTML"


def chart(job: JobRecord, trials: Sequence[TrialRecord], members: Sequence[int], chosen: int | None) -> Chart:
    """Return a chart of the front; ``chosen`` is the number of the trial to ring."""
    drawn = front_chart(without_superseded(trials), members, chosen, job.spec.objectives)
    return Chart(name=f"the front of {job.name}", content=_styled(drawn))


def front_page(job: JobRecord, trials: Sequence[TrialRecord], members: Sequence[int], told: Sequence[str]) -> Html:
    """Return the recommendation, remarks, the front, the baselines and notes."""
    objectives = job.spec.objectives
    on_front = sorted_front(trials, members, objectives)
    rivals, tied = baselines(trials), ties(on_front, objectives)
    sentence = recommendation(trials, job.spec) if trials else None
    parts = [tag("p", tag("strong", sentence))] if sentence else []
    parts += [tag("p", remark) for remark in remarks(job, trials)]
    for title, shown, equal in (("Pareto front", on_front, tied), ("Baselines", rivals, frozenset[int]())):
        headings, rows = front_rows(shown, objectives, equal)
        parts.append(join([tag("p", tag("strong", title)), table(headings, rows, numbers=True)]))
    parts += [tag("p", note, class_="soft") for note in (*notes(job, (*on_front, *rivals), tied), *told)]
    return _styled(*parts)


def _styled(*parts: Html) -> Html:
    style = resources.files("autotune.tuning").joinpath("notebook.css").read_text(encoding="utf-8")
    return tag("div", tag("style", Html(style)), *parts, class_="quant-autotune")
