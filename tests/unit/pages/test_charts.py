import math
import runpy
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from autotune.jobs.records import FrontRecord, TrialRecord
from autotune.jobs.spec import JobSpec
from dashboard.charts.aligned import aligned_figure
from dashboard.charts.front import front_figure, hypervolume_figure
from dashboard.charts.gap import gap_figure
from dashboard.charts.histogram import histogram_figure
from dashboard.charts.labels import note_box, short_names, sides
from dashboard.charts.latency import hidden_samples, latency_figure
from dashboard.charts.layers import choices_figure, roles_figure, sensitivity_figure
from dashboard.charts.layout import Drawing
from dashboard.charts.palette import PRECISIONS
from dashboard.charts.strip import blocks, strip_figure
from dashboard.charts.zoom import Zoom
from dashboard.tables import trials as trial_tables
from dashboard.tables.layers import (
    choice_frame,
    diff_frame,
    latency_gap,
    layer_frame,
    role_frame,
    sensitivity_frame,
)
from dashboard.tables.trials import Limit
from search_spaces.choice import Precision
from search_spaces.quantization_map import ActivationRange
from workers.measurement import LatencySamples
from workers.setup import ActivationHistogram

seed = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "browser" / "seed.py")))

SPEC = JobSpec.parse(
    {"name": "a job", "task": {"name": "minilm-lee"}, "constraints": {"latency_p95_ms": {"max": 22.0}}}
)
LIMITS = SPEC.constraints.constraints()
BASELINES = ["fp32", "bf16", "int8_static", "int8_dynamic", "int8_weight_only", "int4_weight_only"]


@pytest.fixture(scope="module")
def results() -> list[SimpleNamespace]:
    return list(islice(seed.results(SPEC, "0001"), 30))


def _points(trials: Sequence[TrialRecord], members: Sequence[int], x: str = "latency_p50_ms", y: str = "accuracy"):  # type: ignore[no-untyped-def]
    frame = trial_tables.judged(trial_tables.trial_frame(trials), LIMITS, SPEC.objectives)
    frame["on_front"] = frame["number"].isin(members)
    return trial_tables.with_misses(trial_tables.drawn(frame, x, y), LIMITS)


def _front(results: Sequence[SimpleNamespace], x: str = "latency_p50_ms", y: str = "accuracy") -> go.Figure:
    trials = [result.trial for result in results]
    members = [result.front for result in results if result.front][-1].members
    limits = trial_tables.limits_on(x, LIMITS)
    return front_figure(_points(trials, members, x, y), x=x, y=y, revision="r", x_limits=limits)


def _trace(figure: go.Figure, name: str) -> go.Scatter:
    (trace,) = [trace for trace in figure.data if trace.name.startswith(name)]
    return trace


def _numbers(trace: go.Scatter) -> list[int]:
    return [point[0] for point in trace.customdata]


def test_every_measured_map_is_exactly_one_point(results: list[SimpleNamespace]) -> None:
    figure = _front(results)
    drawn = sorted(number for trace in figure.data if trace.customdata for number in _numbers(trace))
    assert drawn == [r.trial.number for r in results if "latency_p50_ms" in r.trial.figures]


def test_baselines_are_named_and_have_their_own_mark(results: list[SimpleNamespace]) -> None:
    figure = _front(results)
    baselines = _trace(figure, "Baseline")
    assert list(_trace(figure, "WideLabels").text) == BASELINES
    assert {symbol.removesuffix("-open") for symbol in baselines.marker.symbol} == {"diamond"}


def test_hollow_means_that_a_limit_is_broken(results: list[SimpleNamespace]) -> None:
    figure = _front(results)
    feasible = {r.trial.number: r.trial.feasible for r in results}
    for trace in figure.data:
        for number, symbol in zip(_numbers(trace), trace.marker.symbol, strict=True) if trace.customdata else ():
            assert symbol.endswith("-open") is not feasible[number]
    assert _numbers(_trace(figure, "Breaks a limit")) == [
        number for number, fits in feasible.items() if not fits and number > 5 and number not in (10, 12, 21, 25)
    ]


def test_the_front_is_apart_from_what_it_dominates(results: list[SimpleNamespace]) -> None:
    figure = _front(results)
    members = [result.front for result in results if result.front][-1].members
    assert _numbers(_trace(figure, "On the front")) == [number for number in members if number > 5]
    assert not set(_numbers(_trace(figure, "Dominated"))) & set(members)
    assert _trace(figure, "Dominated").opacity < 1


def test_the_front_line_climbs_and_joins_only_members(results: list[SimpleNamespace]) -> None:
    figure = _front(results)
    line = figure.data[0]
    members = {r.trial.number: r.trial for r in results}
    last = [result.front for result in results if result.front][-1]
    known = {(members[n].figures["latency_p50_ms"].value, members[n].figures["accuracy"].value) for n in last.members}
    assert set(zip(line.x, line.y, strict=True)) == known
    assert list(line.x) == sorted(line.x)
    assert list(line.y) == sorted(line.y)
    assert line.line.shape == "hv"


def test_a_member_that_is_dominated_on_the_axes_shown_is_off_the_line(results: list[SimpleNamespace]) -> None:
    trials = [results[1].trial, results[4].trial]  # bf16 beats int8_weight_only in latency and accuracy
    figure = front_figure(_points(trials, (1, 4)), x="latency_p50_ms", y="accuracy", revision="r")
    assert len(figure.data[0].x) == 1


def test_marker_area_is_proportional_to_weight_memory(results: list[SimpleNamespace]) -> None:
    baselines = _trace(_front(results), "Baseline")
    memory = {r.trial.number: r.trial.figures["weight_memory_mib"].value for r in results[:6]}
    ratio = (baselines.marker.size[1] / baselines.marker.size[0]) ** 2
    assert ratio == pytest.approx(memory[1] / memory[0])


def test_intervals_of_picked_maps_are_error_bars(results: list[SimpleNamespace]) -> None:
    points = _points([r.trial for r in results], ())
    figure = front_figure(points, x="latency_p50_ms", y="accuracy", revision="r", marked={7: ["knee"]})
    bars = _trace(figure, "Picked")
    found = results[7].trial.figures["latency_p50_ms"]
    assert bars.error_x.array[0] == pytest.approx(found.high - found.value)
    assert bars.error_x.arrayminus[0] == pytest.approx(found.value - found.low)
    assert bars.error_y.array is None


def test_limits_are_lines_with_the_broken_side_shaded(results: list[SimpleNamespace]) -> None:
    figure = _front(results, x="latency_p95_ms")
    line, shade = figure.layout.shapes
    assert (line.x0, line.x1) == (22.0, 22.0)
    assert shade.x0 == 22.0
    assert shade.x1 > figure.layout.xaxis.range[1]
    (note,) = figure.layout.annotations
    assert note.text == "limit 22.0 ms"


def test_an_accuracy_floor_is_shaded_below(results: list[SimpleNamespace]) -> None:
    floor = trial_tables.Limit(value=0.71, at_most=False, label="limit")
    points = _points([r.trial for r in results], ())
    figure = front_figure(points, x="latency_p50_ms", y="accuracy", revision="r", y_limits=[floor])
    assert figure.layout.shapes[1].y0 == 0.71
    assert figure.layout.shapes[1].y1 < figure.layout.yaxis.range[0]


def test_a_limit_on_a_logarithmic_axis_is_where_it_belongs(results: list[SimpleNamespace]) -> None:
    limit = trial_tables.Limit(value=1e-3, at_most=True, label="limit")
    points = _points([r.trial for r in results], (), y="divergence")
    figure = front_figure(points, x="latency_p50_ms", y="divergence", revision="r", y_limits=[limit])
    line, shade = figure.layout.shapes
    low, high = figure.layout.yaxis.range
    assert line.y0 == shade.y0 == 1e-3
    assert shade.y1 > 10**high
    assert figure.layout.annotations[0].y == pytest.approx(-3)
    assert low < -3 < high


def test_picked_maps_have_a_ring_and_a_word_before_the_names_of_baselines(results: list[SimpleNamespace]) -> None:
    points = _points([r.trial for r in results], ())
    marked = {7: ["knee"], 1: ["fastest", "smallest"]}
    figure = front_figure(points, x="latency_p50_ms", y="accuracy", revision="r", marked=marked)
    ring = _trace(figure, "Picked")
    assert list(ring.x) == [results[number].trial.figures["latency_p50_ms"].value for number in (1, 7)]
    assert list(_trace(figure, "WideLabels").text)[:2] == ["fastest<br>smallest<br>bf16", "knee"]
    assert list(_trace(figure, "NarrowLabels").text) == ["fastest<br>smallest<br>bf16", "knee"], "and nothing else"
    assert [trace.name for trace in figure.data[-2:]] == ["WideLabels", "NarrowLabels"], "as in the style sheet"


def test_colour_tells_the_front_from_baselines_and_the_rest(results: list[SimpleNamespace]) -> None:
    figure = _front(results)
    front, baseline, dominated = (_trace(figure, name) for name in ("On the front", "Baseline", "Dominated"))
    assert len({trace.marker.color for trace in (front, baseline, dominated)}) == 3


def test_divergence_is_logarithmic_and_full_precision_stays_on_it(results: list[SimpleNamespace]) -> None:
    figure = _front(results, y="divergence")
    baselines = _trace(figure, "Baseline")
    low, high = figure.layout.yaxis.range
    assert figure.layout.yaxis.type == "log"
    assert 0 < baselines.y[0] < min(baselines.y[1:])
    assert all(low < np.log10(value) < high for trace in figure.data for value in trace.y if value)
    assert list(figure.data[0].y) == sorted(figure.data[0].y, reverse=True)


def test_names_from_the_database_are_text_not_html(results: list[SimpleNamespace]) -> None:
    hostile = replace(results[0].trial, label="<b>x</b> & <a href='javascript:alert(1)'>y</a>")
    figure = front_figure(_points([hostile], ()), x="latency_p50_ms", y="accuracy", revision="r")
    baseline = _trace(figure, "Baseline")
    assert "&lt;b&gt;x&lt;/b&gt; &amp;" in baseline.customdata[0][1]
    assert all("<" not in text for text in _trace(figure, "WideLabels").text)
    assert "<a" not in baseline.customdata[0][1]
    assert "%{customdata[1]}" in baseline.hovertemplate


def test_a_hover_says_what_is_broken(results: list[SimpleNamespace]) -> None:
    hover = _trace(_front(results), "Baseline").customdata[0][1]
    assert "Breaks: latency p95" in hover
    assert "Weight memory: 86.6 MiB" in hover


def test_one_point_and_no_point_can_be_drawn(results: list[SimpleNamespace]) -> None:
    for count in (0, 1):
        points = _points([r.trial for r in results[:count]], ())
        for y in ("accuracy", "divergence"):
            figure = front_figure(points, x="latency_p50_ms", y=y, revision="r")
            low, high = figure.layout.yaxis.range
            assert low < high
            assert sum(len(trace.customdata or ()) for trace in figure.data) == count


def test_figures_are_svg_and_keep_the_readers_zoom(results: list[SimpleNamespace]) -> None:
    layers = layer_frame(seed.describe(), results[0].trial.choices)
    fronts = [result.front for result in results if result.front]
    for figure in (_front(results), strip_figure(layers, "r"), hypervolume_figure(fronts, 30, "r")):
        assert {trace.type for trace in figure.data} <= {"scatter", "bar"}
        assert figure.layout.uirevision == "r"


def test_hypervolume_reaches_the_last_trial() -> None:
    fronts = [FrontRecord(trials=n, members=tuple(range(n)), hypervolume=n / 10) for n in (2, 5)]
    (line,) = hypervolume_figure(fronts, 9, "r").data
    assert list(line.x) == [2, 5, 9]
    assert list(line.y) == [0.2, 0.5, 0.5]


def test_the_strip_has_one_cell_a_layer_with_its_colour_and_letter(results: list[SimpleNamespace]) -> None:
    trial = results[9].trial
    layers = layer_frame(seed.describe(), trial.choices)
    figure = strip_figure(layers, "r")
    cells = {}
    for trace in figure.data:
        precision = Precision(trace.name.split()[0])
        assert trace.marker.color == PRECISIONS[precision][0]
        assert trace.name == f"{precision} ({len(trace.text)})"
        for (layer, _), letter in zip(trace.customdata, trace.text, strict=True):
            cells[layer] = (precision.value, letter)
    expected = zip(layers["layer"], zip(layers["precision"], layers["letter"], strict=True), strict=True)
    assert cells == dict(expected)


def test_no_two_cells_of_the_strip_share_a_place(results: list[SimpleNamespace]) -> None:
    layers = layer_frame(seed.describe(), results[9].trial.choices)
    figure = strip_figure(layers, "r")
    places = [place for trace in figure.data for place in zip(trace.y, trace.base, strict=True)]
    assert len(set(places)) == len(layers)


def test_a_cell_says_shape_share_range_and_refusals(results: list[SimpleNamespace]) -> None:
    description = seed.describe()
    hostile = replace(
        description, refusals={**description.refusals, description.layers[0].name: {"int8_static": "<i>no</i>"}}
    )
    figure = strip_figure(layer_frame(hostile, results[0].trial.choices), "r")
    hover = figure.data[0].customdata[0][1]
    assert "embedding, 30522 x 384" in hover
    assert "Calibrated input range -1.685 to 2.894" in hover
    assert "0.0 % of the multiplications" in hover
    assert "Cannot take int8_static: &lt;i&gt;no&lt;/i&gt;" in hover


def test_layers_without_blocks_fill_even_rows() -> None:
    assert blocks([f"features.{n}" for n in range(20)]) == [("from 1", 16), ("from 17", 4)]
    assert blocks(["stem", "mixer", "head"]) == [("from 1", 3)]
    assert blocks([f"model.layers.0.part{n}" for n in range(30)]) == [("from 1", 16), ("from 17", 14)]
    names = ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"]
    assert blocks(names) == [("layer1.0", 2), ("layer1.1", 2)]


def test_precisions_have_different_colours() -> None:
    assert set(PRECISIONS) == set(Precision)
    assert len({color for color, _ in PRECISIONS.values()}) == len(PRECISIONS)


def test_histograms_share_bins_and_count_what_they_hide() -> None:
    rng = np.random.default_rng(0)
    latency = LatencySamples(batch_size=1, candidate_ms=rng.gamma(9, 1, 600), reference_ms=rng.gamma(20, 1, 400))
    reference, candidate = latency_figure(latency, "r").data
    assert reference.x == candidate.x
    assert hidden_samples(latency) == 5  # 0.5 % of 1000
    hidden = latency.reference_ms > reference.x[-1]
    assert sum(reference.y) == pytest.approx(1 - hidden.mean())


def test_equal_latencies_still_make_a_histogram() -> None:
    latency = LatencySamples(batch_size=1, candidate_ms=np.full(3, 2.0), reference_ms=np.array([]))
    (candidate,) = latency_figure(latency, "r").data
    assert sum(candidate.y) == pytest.approx(1.0)


def test_labels_stand_where_they_cover_nothing() -> None:
    assert sides([0.5, 0.5], [0.5, 0.56], [["a"], ["b"]]) == ["bottom center", "top center"]
    assert sides([0.5, 0.5], [0.5, 0.56], [[], ["b"]]) == [None, "top center"]
    assert sides([0.01], [0.5], [["a name"]]) == ["middle right"]
    assert sides([0.99], [0.5], [["a name"]]) == ["middle left"]


def test_no_label_stands_where_a_limit_has_its_own() -> None:
    assert note_box(0.0, 0.5, "limit 5.0e-03") == pytest.approx((0.0, 0.1625, 0.43, 0.5))
    assert note_box(0.9, 1.0, "limit 22.0 ms") == pytest.approx((0.7375, 0.9, 0.93, 1.0))
    assert sides([0.15], [0.55], [["a name"]]) == ["top center"]
    assert sides([0.15], [0.55], [["a name"]], [note_box(0.0, 0.65, "limit 5.0e-03")]) == ["bottom center"]


def test_labels_of_limits_are_kept_free_on_both_axes(
    results: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(
        "dashboard.charts.front.sides",
        lambda xs, *rest, markers, size: given.append((size, rest[-1])) or [None] * len(xs),
    )
    figure = front_figure(
        _points([r.trial for r in results], (), y="divergence"),
        x="latency_p50_ms",
        y="divergence",
        revision="r",
        x_limits=[Limit(value=20.0, at_most=True, label="limit 20.0 ms")],
        y_limits=[Limit(value=1e-3, at_most=True, label="limit 1.0e-03")],
    )
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    for (width, height), notes in given:
        beside = note_box(width * (20.0 - left) / (right - left), height, "limit 20.0 ms")
        below = note_box(0.0, height * (-3.0 - low) / (high - low), "limit 1.0e-03")
        assert notes == [pytest.approx(beside), pytest.approx(below)]
    assert [size for size, _ in given] == [(1.0, 1.0), (0.5, 0.75)], "once for wide and once for narrow plots"


def test_no_label_leaves_the_plot() -> None:
    assert sides([0.5, 0.5], [0.95, 0.05], [["a", "b"], ["c", "d"]]) == ["bottom center", "top center"]
    assert sides([0.55], [0.5], [["a long name"]], size=(0.6, 1.0)) == ["middle left"]
    assert sides([0.3], [0.5], [["a name that is far too long"]]) != [None]
    assert sides([0.3], [0.5], [["a name that is far too long"]], size=(0.6, 1.0)) != [None]
    assert sides([0.2], [0.5], [["a name that is far too long"]], size=(0.3, 1.0)) == [None]


def test_no_label_stands_nearer_to_the_point_of_another_one() -> None:
    # Above the first point is room, but the second one is right above that.
    assert sides([0.5, 0.5], [0.5, 0.62], [["a"], ["b"]]) == ["bottom center", "top center"]
    assert sides([0.5, 0.5], [0.5, 0.62], [["a"], []]) == ["top center", None]
    assert sides([0.5, 0.5], [0.5, 0.66], [["a"], ["b"]]) == ["top center", "top center"]


def test_no_label_covers_a_more_important_one() -> None:
    labels = [["knee"], ["int8_dynamic"], ["int8_static"], *[["bf16"]] * 20]
    at = [0.5, 0.51, 0.49, *[0.5] * 20]
    placed = sides(at, at, labels)
    assert placed[0] == "top center"
    assert None in placed  # there is no room for all of them
    assert len({side for side in placed[3:] if side}) == len([side for side in placed[3:] if side])


def _aligned(results: Sequence[SimpleNamespace], probes: object, layers: slice = slice(None)) -> go.Figure:
    return aligned_figure(layer_frame(seed.describe(), results[9].trial.choices, probes)[layers], "r")


def test_nothing_is_drawn_of_what_clips_nothing_or_is_not_known(results: list[SimpleNamespace]) -> None:
    layers = layer_frame(seed.describe(), results[9].trial.choices, None)
    for clipped in (0.0, math.nan):
        titles = [note.text for note in aligned_figure(layers.assign(clipped=clipped), "r").layout.annotations]
        assert not any("clips" in title for title in titles)


def test_a_histogram_shows_the_range_and_fades_what_is_outside() -> None:
    histogram = ActivationHistogram(low=-2.0, high=2.0, counts=(1, 0, 6, 3), clipped=0.1)
    figure = histogram_figure(histogram, ActivationRange(low=-0.75, high=2.0), "r")
    (bars,) = figure.data
    assert list(bars.x) == [-1.5, -0.5, 0.5, 1.5]
    assert list(bars.y) == [0.1, None, 0.6, 0.3]
    assert len({*bars.marker.color[1:]}) == 1 < len({*bars.marker.color})
    assert [line.x0 for line in figure.layout.shapes] == [-0.75, 2.0]


def test_a_zoom_around_points_has_air_on_linear_and_logarithmic_axes() -> None:
    points = pd.DataFrame({"latency_p50_ms": [10.0, 20.0], "divergence": [0.0, 1e-3], "accuracy": [0.7, 0.7]})
    zoom = Zoom.around(points, "latency_p50_ms", "divergence")
    assert zoom is not None
    assert zoom.x_span == (9.0, 21.0)
    assert zoom.y_span == pytest.approx((1e-3 / 1.5, 1.5e-3))  # full precision's 0 has no logarithm
    assert Zoom.around(points, "latency_p50_ms", "accuracy") is None
    assert Zoom.around(points[:0], "latency_p50_ms", "divergence") is None


def test_a_finished_drawing_is_turned_into_plain_data_once() -> None:
    figure = Drawing(go.Bar(y=[1, 2]))
    assert figure.to_dict() is figure.to_dict()
    assert figure.to_dict()["data"][0]["y"] == [1, 2]


def test_strips_are_aligned_over_the_layers_in_execution_order(results: list[SimpleNamespace]) -> None:
    figure = _aligned(results, seed.probes())
    bars = [trace for trace in figure.data if trace.yaxis != "y"]
    assert [len(trace.x) for trace in bars] == [40] * 5
    assert all(list(trace.x) == list(range(40)) for trace in bars)
    titles = [note.text for note in figure.layout.annotations]
    assert titles[1:5] == [
        "Share of the time of a pass, as probed",
        "Weight memory (MiB)",
        "Share of the expected divergence, as probed",
        "Share of the inputs that the calibrated range clips",
    ]
    choices = {place: trace.customdata[i][1] for trace in figure.data[:-5] for i, place in enumerate(trace.x)}
    assert [choices[place] for place in range(40)] == list(results[9].trial.choices.values())
    assert sum(bars[2].y) == pytest.approx(1.0)
    clipped = {name: kept.clipped for name, kept in seed.describe().calibration.histograms.items()}
    assert [share for share in bars[3].y if not math.isnan(share)] == list(clipped.values())
    assert max(bars[0].y) == pytest.approx(max(bars[0].y[4:]))


def test_without_probes_the_strips_say_less(results: list[SimpleNamespace]) -> None:
    titles = [note.text for note in _aligned(results, None).layout.annotations]
    assert titles[1:3] == ["Share of the multiplications", "Weight memory (MiB)"]
    assert len(titles) == 5


def test_ranges_of_static_layers_stand_out(results: list[SimpleNamespace]) -> None:
    ranges = _aligned(results, seed.probes()).data[-1]
    static = [name == "int8_static" for name in results[9].trial.choices.values()]
    assert len(set(ranges.marker.color)) == 2
    assert [color == ranges.marker.color[static.index(True)] for color in ranges.marker.color] == static
    found = seed.describe().calibration.ranges["pooler.dense"]
    assert (ranges.base[-1], ranges.base[-1] + ranges.y[-1]) == (found.low, pytest.approx(found.high))


def test_a_block_names_its_layers(results: list[SimpleNamespace]) -> None:
    figure = _aligned(results, seed.probes(), slice(3, 9))
    assert list(figure.layout.xaxis6.ticktext) == [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    assert _aligned(results, seed.probes()).layout.xaxis6.ticktext is None


def test_the_histogram_has_percentiles_and_limits_on_the_scale_of_the_figures() -> None:
    rng = np.random.default_rng(0)
    latency = LatencySamples(batch_size=1, candidate_ms=rng.gamma(9, 1, 600), reference_ms=rng.gamma(20, 1, 400))
    limit = Limit(value=12.0, at_most=True, label="limit of p95")
    figure = latency_figure(latency, "r", drift=2.0, limits=[limit])
    places = dict(zip((n.text for n in figure.layout.annotations), (s.x0 for s in figure.layout.shapes), strict=True))
    assert places == {
        **{f"p{p}": pytest.approx(2 * np.percentile(latency.candidate_ms, p)) for p in (50, 95, 99)},
        "limit of p95": 12.0,
    }
    assert figure.data[1].x[0] == pytest.approx(2 * min(latency.candidate_ms.min(), latency.reference_ms.min()))
    few = LatencySamples(batch_size=1, candidate_ms=latency.candidate_ms[:100], reference_ms=latency.reference_ms)
    assert "p99" not in [note.text for note in latency_figure(few, "r").layout.annotations]


def test_a_gap_is_split_into_layers_the_rest_and_what_is_not_explained(results: list[SimpleNamespace]) -> None:
    pair = results[0].trial, results[3].trial
    diff = diff_frame(seed.describe(), pair[0].choices, pair[1].choices, seed.probes())
    gap = latency_gap(diff, seed.probes(), pair)
    (bars,) = gap_figure(diff, "latency_ms", gap, title="ms", revision="r").data
    assert sum(bars.x) == pytest.approx(gap.measured)
    ratio = pair[1].figures["latency_ratio"]  # that of full precision to itself is certain
    assert gap.noise == pytest.approx(27.0 * (ratio.high - ratio.low) / 2)
    noise = latency_gap(diff, seed.probes(), (results[2].trial, pair[1])).noise
    other = results[2].trial.figures["latency_ratio"]
    assert noise == pytest.approx(math.hypot(gap.noise, 27.0 * (other.high - other.low) / 2))
    assert list(bars.customdata[-2:]) == [f"{len(diff) - 12} other layers", "Within measurement noise"]
    assert list(bars.x[:12]) == sorted(bars.x[:12])  # all save time; the largest first
    exact = gap_figure(diff, "latency_ms", replace(gap, noise=0.5 * abs(gap.rest)), title="ms", revision="r")
    assert exact.data[0].customdata[-1] == "Not explained by layers"
    unmeasured = gap_figure(diff, "latency_ms", replace(gap, measured=None), title="ms", revision="r")
    assert sum(unmeasured.data[0].x) == pytest.approx(gap.predicted)


def test_sensitivities_are_a_heat_map_of_layer_and_choice_with_gaps_for_what_is_refused() -> None:
    frame = sensitivity_frame(seed.describe(), seed.probes())
    (cells,) = sensitivity_figure(frame, "r").data
    drawn = {
        (point[0], choice): 10**value
        for row, points in zip(cells.z, cells.customdata, strict=True)
        for choice, value, point in zip(cells.x, row, points, strict=True)
        if not math.isnan(value)
    }
    expected = {(p.layer, p.choice): p.divergence for p in seed.probes().layers if p.choice != "fp32"}
    assert drawn == pytest.approx(expected)
    assert ("embeddings.word_embeddings", "int8_static") not in drawn
    figure = sensitivity_figure(frame, "r")
    assert figure.layout.yaxis.ticktext[0] == "0.output.dense"
    frame.loc[0, "divergence"] = 0.0
    assert not math.isnan(sensitivity_figure(frame, "r").data[0].z[0][list(cells.x).index(frame["choice"][0])])


def test_shares_of_choices_fill_each_layers_bar(results: list[SimpleNamespace]) -> None:
    choices = choice_frame(seed.describe(), [result.trial.choices for result in results[6:10]])
    figure = choices_figure(choices, "r")
    sums: dict[int, float] = {}
    for trace in figure.data:
        for row, share in zip(trace.y, trace.x, strict=True):
            sums[row] = sums.get(row, 0.0) + share
    assert sums == dict.fromkeys(range(40), pytest.approx(1.0))
    patterns = {trace.name: trace.marker.pattern.shape for trace in figure.data}
    assert patterns["int8_static"] != patterns["int8_dynamic"]
    two = pd.DataFrame(
        {"layer": ["a", "a"], "choice": ["int4_weight_only", "int4_weight_only_gptq"], "share": [0.5, 0.5]}
    )
    assert len({bars.marker.pattern.shape for bars in choices_figure(two, "r").data}) == 2
    roles = roles_figure(role_frame(choices), "r")
    assert [sum(column) for column in zip(*(trace.x for trace in roles.data), strict=True)] == pytest.approx([1.0] * 10)


def test_names_of_layers_are_short_where_that_tells_them_apart() -> None:
    assert short_names(["encoder.0.q", "encoder.1.q", "pooler.dense"]) == ["0.q", "1.q", "pooler.dense"]
    assert short_names(["encoder.0.q", "decoder.0.q"]) == ["encoder.0.q", "decoder.0.q"]
    assert short_names(["tower.0", "blocks.1.mlp.2", "0"]) == ["tower.0", "1.mlp.2", "0"]


def test_a_zoom_is_what_the_axes_show(results: list[SimpleNamespace]) -> None:
    points = _points([r.trial for r in results], (), y="divergence")
    zoom = Zoom(x="latency_p50_ms", x_span=(9.0, 12.0), y="divergence", y_span=(1e-4, 1e-2))
    figure = front_figure(points, x="latency_p50_ms", y="divergence", revision="r", zoom=zoom)
    assert figure.layout.xaxis.range == (9.0, 12.0)
    assert figure.layout.yaxis.range == pytest.approx((-4.0, -2.0))


def test_a_zoom_survives_the_link_for_its_axes_only() -> None:
    zoom = Zoom.of_boxes([{"x": [12.0, 9.0], "y": [0.7, 0.72]}], "latency_p50_ms", "accuracy")
    assert zoom is not None
    assert zoom.x_span == (9.0, 12.0)
    assert Zoom.parse(str(zoom), "latency_p50_ms", "accuracy") == zoom
    assert Zoom.parse(str(zoom), "latency_p95_ms", "accuracy") is None
    assert Zoom.of_boxes([], "latency_p50_ms", "accuracy") is None


@pytest.mark.parametrize("text", [None, "", "a,b", "a,b,1,2,3,x", "a,b,1,2,3,nan", "a,b,1,2,3,inf", "a,b,2,1,3,4"])
def test_a_link_without_a_box_is_no_zoom(text: str | None) -> None:
    assert Zoom.parse(text, "a", "b") is None


def test_each_backend_has_its_own_symbol(results: list[SimpleNamespace]) -> None:
    trials = [result.trial for result in results]
    where = {"backend": "cpu"}
    several = [
        replace(trial, backend="aaa" if trial.number % 2 else "", environment=dict(trial.environment) | where)
        for trial in trials
    ]
    figure = front_figure(_points(several, (1, 4)), x="latency_p50_ms", y="accuracy", revision="r")
    names = [trace.name for trace in figure.data if trace.marker.symbol in ("circle", "square")]
    assert names == ["cpu", "aaa"], "that of the reference first"
    drawn = {
        point[0]: symbol.removesuffix("-open")
        for trace in figure.data
        if trace.customdata is not None
        for point, symbol in zip(trace.customdata, trace.marker.symbol, strict=True)
    }
    assert len(drawn) > 10
    assert all(symbol == ("square" if number % 2 else "circle") for number, symbol in drawn.items())
    alone = front_figure(_points(trials, (1, 4)), x="latency_p50_ms", y="accuracy", revision="r")
    assert not {"circle", "square"} & {
        trace.marker.symbol for trace in alone.data if isinstance(trace.marker.symbol, str)
    }
