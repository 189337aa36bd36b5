"""Charts of the report as inline SVG, small enough that their text stays readable on a phone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.jobs.records import TrialKind, TrialRecord
from autotune.markup import Html, join, tag
from autotune.metrics.catalog import METRICS, OVERLOADED_MS, Metric
from workers.measurement import LatencySamples
from workers.timing.estimates import percentile

#: Size of a chart in SVG units, and the margins around its plot area.
_WIDTH, _HEIGHT = 380, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 38
_BINS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """One axis: maps values to positions."""

    low: float
    high: float
    #: Positions of the two ends.
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> "_Axis":
        """Return an axis that leaves some room around ``values``."""
        shown = [float(np.log10(value)) for value in values if value > 0.0] if logarithmic else list(values)
        low, high = min(shown, default=0.0), max(shown, default=1.0)
        room = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
        return cls(low=low - room, high=high + room, start=start, end=end, logarithmic=logarithmic)

    def place(self, value: float) -> float:
        """Return the position of ``value``; on a logarithmic axis zeros are at the low end."""
        position = self.low if self.logarithmic and value <= 0.0 else np.log10(value) if self.logarithmic else value
        return round(self.start + (float(position) - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Return positions and labels of about four round values."""
        span = self.high - self.low
        step = min((m * 10.0 ** np.floor(np.log10(span / 4)) for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - 4))
        step = max(1.0, float(round(step))) if self.logarithmic and span > 1.0 else float(step)
        found = np.arange(np.ceil(self.low / step), np.floor(self.high / step) + 1) * step + 0.0  # which makes -0.0 0.0
        values = [10.0**tick if self.logarithmic else tick for tick in found]
        return [(self.place(float(value)), f"{value:.3g}") for value in values]


def front_chart(
    trials: Sequence[TrialRecord], front: Sequence[int], chosen: int | None, objectives: Sequence[str]
) -> Html:
    """Return a chart of the trials by the first two objectives, with the front and the picked trial.

    Args:
        trials: trials that are not superseded; those without both figures are omitted.
        front: numbers of the trials on the front.
        chosen: number of the picked trial; None if there is none.
        objectives: names of the job's objectives; a third one is not drawn.
    """
    across, up = (METRICS[name] for name in objectives[:2])
    names = (across.name, up.name)
    points = [t for t in trials if all(name in t.figures and t.figures[name].value < OVERLOADED_MS for name in names)]
    x = _axis(points, across, _LEFT, _WIDTH - _RIGHT)
    y = _axis(points, up, _HEIGHT - _BOTTOM, _TOP)
    place = {t.number: (x.place(t.figures[across.name].value), y.place(t.figures[up.name].value)) for t in points}
    on_front = sorted(place[number] for number in front if number in place)
    marks = [_mark(trial, place[trial.number], trial.number in front) for trial in points]
    if len(objectives) == 2:
        marks.append(tag("polyline", points=" ".join(f"{a},{b}" for a, b in on_front), class_="line"))
    if chosen in place:
        marks.append(tag("circle", cx=place[chosen][0], cy=place[chosen][1], r=8, class_="pick"))
    return _chart("The front", x, y, (_title(across), _title(up)), marks)


def latency_chart(samples: LatencySamples, percents: Sequence[float]) -> Html:
    """Return a histogram of the picked map's latencies and percentiles, with that of full precision as an outline."""
    values, reference = samples.candidate_ms, samples.reference_ms
    # The slowest passes are caused by other processes; the last bar includes them.
    top = max(float(np.quantile(values, 0.99)), float(np.quantile(reference, 0.99)))
    edges = np.linspace(min(float(values.min()), float(reference.min())), top, _BINS + 1)
    shares = [np.histogram(np.minimum(side, top), edges)[0] / len(side) for side in (values, reference)]
    x = _Axis.over([float(edges[0]), top], _LEFT, _WIDTH - _RIGHT)
    y = _Axis(low=0.0, high=100.0 * 1.1 * max(float(s.max()) for s in shares), start=_HEIGHT - _BOTTOM, end=_TOP)
    places = [x.place(float(edge)) for edge in edges]
    bars = [_bar(places, index, y.place(100.0 * share), y.start) for index, share in enumerate(shares[0])]
    outline = " ".join(
        f"{places[index]},{y.place(100.0 * share)} {places[index + 1]},{y.place(100.0 * share)}"
        for index, share in enumerate(shares[1])
    )
    marks = [*bars, tag("polyline", points=outline, class_="reference")]
    for index, percent in enumerate(percents):
        at = x.place(min(percentile(values, percent).value, top))
        marks.append(tag("line", x1=at, x2=at, y1=_TOP, y2=y.start, class_="mark"))
        marks.append(tag("text", f"p{percent:g}", x=at + 3, y=_TOP + 8 + 11 * index, class_="name"))
    return _chart("Latency", x, y, ("Latency of a pass (ms)", "Passes (%)"), marks)


def _axis(trials: Sequence[TrialRecord], metric: Metric, start: float, end: float) -> _Axis:
    values = [trial.figures[metric.name].value for trial in trials]
    return _Axis.over(values, start, end, logarithmic=metric.logarithmic)


def _title(metric: Metric) -> str:
    return f"{metric.label} ({metric.unit})" if metric.unit else metric.label


def _mark(trial: TrialRecord, place: tuple[float, float], on_front: bool) -> Html:
    across, up = place
    hover = tag("title", f"Trial {trial.number}" + (f": {trial.label}" if trial.label else "") + trial.addition)
    # A final measurement keeps the label of a baseline; a recovered map is none.
    if trial.label is not None and trial.kind is not TrialKind.RECOVERED and not on_front:
        return tag("rect", hover, x=across - 3, y=up - 3, width=6, height=6, class_="base")
    return tag("circle", hover, cx=across, cy=up, r=4 if on_front else 3, class_="front" if on_front else "candidate")


def _bar(places: Sequence[float], index: int, top: float, floor: float) -> Html:
    width = round(places[index + 1] - places[index], 2)
    return tag("rect", x=places[index], y=top, width=width, height=round(floor - top, 2), class_="bar")


def _chart(name: str, x: _Axis, y: _Axis, titles: tuple[str, str], marks: Sequence[Html]) -> Html:
    grid = [_tick(text, x1=at, x2=at, y1=_TOP, y2=y.start) for at, text in x.ticks()]
    grid += [_tick(text, x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at) for at, text in y.ticks()]
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    named = [
        tag("text", titles[0], x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, text_anchor="middle"),
        tag("text", titles[1], x=10, y=middle, text_anchor="middle", transform=f"rotate(-90 10 {middle})"),
    ]
    return tag("svg", *grid, *named, *marks, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=name)


def _tick(text: str, **ends: float) -> Html:
    vertical = ends["x1"] == ends["x2"]
    at: dict[str, object] = (
        {"x": ends["x1"], "y": _HEIGHT - _BOTTOM + 13, "text_anchor": "middle"}
        if vertical
        else {"x": _LEFT - 5, "y": ends["y1"] + 3, "text_anchor": "end"}
    )
    return join([tag("line", **ends, class_="grid"), tag("text", text, **at)])
