"""Windows: they merge in any order, come back from JSON, and say what is wrong with them."""

import functools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import WindowError
from workers.serving.window import BINS, LayerWindow, Window

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = st.sampled_from(("a", "b.0", "head"))
COUNTS = st.integers(0, 1000)


@st.composite
def layer_windows(draw: st.DrawFn) -> LayerWindow:
    requests = draw(COUNTS)
    sampled = draw(st.integers(0, requests))
    histogram = draw(st.one_of(st.just(()), st.lists(COUNTS, min_size=BINS, max_size=BINS).map(tuple)))
    values = sum(histogram) if histogram else draw(COUNTS)
    ends = draw(st.none() | st.lists(st.floats(-9.0, 9.0), min_size=2, max_size=2).map(sorted))
    return LayerWindow(
        requests=requests,
        flagged_low=draw(st.integers(0, requests)),
        flagged_high=draw(st.integers(0, requests)),
        sampled=sampled,
        outside=draw(st.integers(0, sampled)),
        values=values if histogram else 0,
        clipped=draw(st.integers(0, values)) if histogram else 0,
        low=ends[0] if ends else None,
        high=ends[1] if ends else None,
        histogram=histogram,
    )


@st.composite
def windows(draw: st.DrawFn) -> Window:
    first, last = sorted(draw(st.lists(st.integers(0, 10**9), min_size=2, max_size=2)))
    return Window(
        revision=3,
        map_key="5f",
        start=START + timedelta(microseconds=first),
        end=START + timedelta(microseconds=last),
        requests=draw(COUNTS),
        layers=draw(st.dictionaries(NAMES, layer_windows())),
        dropped=draw(COUNTS),
    )


@given(st.lists(windows(), min_size=1, max_size=5), st.randoms(use_true_random=False), st.data())
def test_windows_merge_in_any_order_and_grouping(found: list[Window], random: Any, data: st.DataObject) -> None:
    whole = functools.reduce(Window.__add__, found)
    random.shuffle(found)
    cut = data.draw(st.integers(1, len(found)))
    parts = [functools.reduce(Window.__add__, part) for part in (found[:cut], found[cut:]) if part]
    assert functools.reduce(Window.__add__, parts) == whole


def test_a_merged_window_counts_what_both_saw() -> None:
    bins = (1, *[0] * (BINS - 2), 2)
    layer = LayerWindow(
        requests=4, flagged_low=1, flagged_high=2, sampled=1, outside=1, values=3, clipped=3, low=-2.0, high=5.0,
        histogram=bins,
    )  # fmt: skip
    other = LayerWindow(requests=2, low=-3.0, high=1.0)
    one = Window(revision=1, map_key="k", start=START, end=START, requests=4, layers={"a": layer}, dropped=1)
    later = START + timedelta(seconds=5)
    two = Window(revision=1, map_key="k", start=later, end=later, requests=2, layers={"a": other, "b": other})
    merged = one + two
    assert (merged.start, merged.end, merged.requests, merged.dropped) == (START, later, 6, 1)
    assert merged.layers == {"a": replace(layer, requests=6, low=-3.0), "b": other}
    assert (layer + layer).histogram == (2, *[0] * (BINS - 2), 4)


@given(windows())
def test_a_window_comes_back_from_json(window: Window) -> None:
    assert Window.from_json(window.to_json()) == window
    assert "\n" not in window.to_json()


def test_json_leaves_out_what_has_its_default() -> None:
    window = Window(revision=1, map_key="k", start=START, end=START, requests=1, layers={"a": LayerWindow(requests=1)})
    assert json.loads(window.to_json())["layers"] == {"a": {"requests": 1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revision": 2}, "one revision and map"),
        ({"map_key": "other"}, "one revision and map"),
    ],
)
def test_windows_of_different_origin_do_not_merge(changes: dict[str, Any], message: str) -> None:
    window = Window(revision=1, map_key="k", start=START, end=START, requests=1)
    with pytest.raises(WindowError, match=message):
        window + replace(window, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "unknown field 'extra'"),
        ({"requests": -1}, "requests must be a whole number of at least 0, but is -1"),
        ({"requests": True}, "requests must be a whole number"),
        ({"revision": 0}, "revision must be a whole number of at least 1"),
        ({"map_key": 5}, "map_key must be text"),
        ({"start": "soon"}, "start must be a time in ISO 8601, but is 'soon'"),
        ({"start": "2026-01-01T00:00:00"}, "with a time zone"),
        ({"start": "2027-01-01T00:00:00+00:00"}, "start must not be after end"),
        ({"layers": []}, "layers must be a mapping"),
        ({"layers": {"a": 1}}, "layer 'a' must be a mapping"),
        ({"layers": {"a": {"clip": 1}}}, "layer 'a' has the unknown field 'clip'"),
        ({"layers": {"a": {"flagged_low": 1}}}, "layer 'a': flagged_low must be at most requests, but 1 > 0"),
        ({"layers": {"a": {"low": 1.0}}}, "low and high must be finite"),
        ({"layers": {"a": {"low": 2.0, "high": 1.0}}}, "low and high must be finite numbers in this order"),
        ({"layers": {"a": {"low": -1e999, "high": 1.0}}}, "low and high must be finite"),
        ({"layers": {"a": {"histogram": 7}}}, "must be a list"),
        ({"layers": {"a": {"histogram": [1]}}}, "66 counts"),
        ({"layers": {"a": {"histogram": [1] * BINS}}}, "the sum of values, 0"),
        ({"layers": {"a": {"requests": 1, "sampled": 1, "values": 3}}}, "the sum of values, 3"),
        ({"layers": {"a": {"histogram": ["x"] * BINS}}}, "0 must be a whole number"),
    ],
)
def test_a_wrong_window_is_refused(changes: dict[str, Any], message: str) -> None:
    window = Window(revision=1, map_key="k", start=START, end=START, requests=1)
    with pytest.raises(WindowError, match=message):
        Window.from_json(json.dumps(json.loads(window.to_json()) | changes))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "must be JSON"), ("[]", "must be a mapping"), ("{}", "needs end, map_key")]
)
def test_text_that_is_no_window_is_refused(text: str, message: str) -> None:
    with pytest.raises(WindowError, match=message):
        Window.from_json(text)
