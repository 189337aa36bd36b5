"""Text of users as plain data: what is read is what was meant, in YAML and in JSON alike."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autotune.jobs.strict_yaml import load_json, load_yaml

#: Text without characters that databases or YAML reject.
TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e9, 1e9) | TEXT
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)
BOTH = pytest.mark.parametrize("load", [load_json, load_yaml])
Load = Callable[[bytes], Any]


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@given(PLAIN)
def test_json_is_read_as_it_was_written(data: Any) -> None:
    assert load_json(json.dumps(data).encode()) == data


@given(PLAIN)
def test_yaml_is_read_as_it_was_written(data: Any) -> None:
    assert load_yaml(yaml.safe_dump(data, allow_unicode=True).encode()) == data


@BOTH
def test_twenty_levels_are_allowed_and_no_more(load: Load) -> None:
    found = load(nested(20))
    for _ in range(19):
        (found,) = found
    assert found == []
    for levels in (21, 5000, 100_000):
        with pytest.raises(yaml.YAMLError, match="at most 20 levels are allowed"):
            load(nested(levels))


@BOTH
def test_levels_are_counted_along_one_branch_and_not_over_all(load: Load) -> None:
    wide = b"[" + b", ".join([nested(18)] * 5) + b"]"
    assert len(load(wide)) == 5


@BOTH
@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"x": {"a": 1, "a": 2}}]'])
def test_a_key_may_not_be_repeated_at_any_level(load: Load, text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"a key may appear only once.*'a'.*delete one"):
        load(text.encode())


@BOTH
def test_equal_keys_of_different_mappings_are_no_repetition(load: Load) -> None:
    assert load(b'[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]


@BOTH
@pytest.mark.parametrize("text", [r'"a\u0000b"', r'{"a\u0000": 1}', r'[["\u0000"]]', r'"\ud800"', r'"\udfff"'])
def test_text_that_databases_reject_is_refused_as_value_and_as_key(load: Load, text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="must not contain NUL characters or unpaired surrogates"):
        load(text.encode())


def test_the_neighbours_of_surrogates_are_text() -> None:
    assert load_json(rb'"\ud7ff\ue000"') == "\ud7ff\ue000"
    assert load_json(rb'"\ud83d\ude00"') == "\N{GRINNING FACE}", "a pair is a character"


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_in_json_are_finite(constant: str) -> None:
    with pytest.raises(yaml.YAMLError, match=f"a number must be finite, but got {constant}"):
        load_json(f'{{"a": [{constant}]}}'.encode())


@BOTH
def test_bytes_that_are_no_text_are_told_apart(load: Load) -> None:
    with pytest.raises((UnicodeDecodeError, yaml.YAMLError)):
        load(b'"\xff"')


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b"2026-01-02", "2026-01-02"),
        (b"2026-01-02 03:04:05", "2026-01-02 03:04:05"),
        (b"a: 12\nb: 0x10\nc: 1.5e+3", {"a": 12, "b": 16, "c": 1500.0}),
        (b"yes", True),
        (b"'yes'", "yes"),
        (b"", None),
    ],
)
def test_dates_stay_text_and_the_rest_is_as_in_yaml(text: bytes, data: Any) -> None:
    assert load_yaml(text) == data


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        (b"a: 1\nb: &x 1\nc: *x", 3, "aliases are not allowed"),
        (b"a: 1\nb: !!int '3'", 2, "tags are not allowed"),
        (b"a: 1\n\nb: !mine {}", 3, "tags are not allowed"),
        (b"a: 1\n[b]: 2", 2, "a key must be text"),
        (b"a: 1\nb: 2\na: 3", 3, "a key may appear only once"),
        (b"a:\n  b: 0b_", 2, "invalid number"),
    ],
)
def test_errors_of_yaml_name_their_line(text: bytes, line: int, rule: str) -> None:
    with pytest.raises(yaml.YAMLError, match=rule) as caught:
        load_yaml(text)
    assert f"line {line}" in str(caught.value)
