"""The audit chain: every change, deletion, swap and insertion is found, and a cut against a known head."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.deployments.audit import START, canonical, chained, verify
from autotune.deployments.records import AuditEntry, Head
from autotune.errors import JobSpecError

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
changes = st.fixed_dictionaries(
    {"actor": texts, "action": texts, "subject": texts, "payload": st.dictionaries(texts, values, max_size=3)}
)


def chain(contents: Sequence[dict[str, Any]]) -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    for second, content in enumerate(contents):
        head = entries[-1].head if entries else START
        entries.append(chained(head, at=AT + timedelta(seconds=second), **content))
    return entries


def plain(count: int) -> list[AuditEntry]:
    contents = [{"actor": "ann", "action": "promote", "subject": "web", "payload": {"n": n}} for n in range(count)]
    return chain(contents)


chains = st.lists(changes, min_size=2, max_size=5).map(chain)


@given(chains)
def test_a_chain_is_whole_against_each_of_its_heads(entries: list[AuditEntry]) -> None:
    assert verify(entries) is None
    for head in [START, *(entry.head for entry in entries)]:
        assert verify(entries, head=head) is None


@given(chains, st.data())
def test_a_changed_field_is_found_where_it_is(entries: list[AuditEntry], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(entries) - 1))
    old = entries[index]
    changed: list[dict[str, Any]] = [
        {"position": old.position + 1},
        {"at": old.at + timedelta(microseconds=1)},
        {"actor": old.actor + "x"},
        {"action": old.action + "x"},
        {"subject": old.subject + "x"},
        {"payload": {**old.payload, "a longer key than any": None}},
        {"previous_sha256": "f" * 64},
        {"sha256": "f" * 64},
    ]
    change = data.draw(st.sampled_from(changed))
    entries[index] = dataclasses.replace(old, **change)
    assert verify(entries) == old.position


@given(chains, st.data())
def test_a_deleted_entry_is_found(entries: list[AuditEntry], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(entries) - 2))
    del entries[index]
    assert verify(entries) == index + 1


@given(chains, st.data())
def test_swapped_entries_are_found(entries: list[AuditEntry], data: st.DataObject) -> None:
    first, second = sorted(data.draw(st.lists(st.integers(0, len(entries) - 1), min_size=2, max_size=2, unique=True)))
    entries[first], entries[second] = entries[second], entries[first]
    assert verify(entries) == first + 1


@given(chains, changes, st.data())
def test_an_inserted_entry_is_found_even_if_it_is_chained(
    entries: list[AuditEntry], content: dict[str, Any], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(entries) - 1))
    head = entries[index - 1].head if index else START
    # The time of no entry of the chain, so that the inserted one differs.
    entries.insert(index, chained(head, at=AT - timedelta(days=1), **content))
    assert verify(entries) == index + 2


@given(chains, st.data())
def test_a_cut_is_found_only_against_a_known_head(entries: list[AuditEntry], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(entries) - 1))
    assert verify(entries[:kept]) is None
    assert verify(entries[:kept], head=entries[-1].head) == kept + 1


def test_a_chain_written_anew_is_found_only_against_a_known_head() -> None:
    entries = plain(3)
    forged = [*entries[:1], chained(entries[0].head, at=AT, actor="eve", action="promote", subject="web", payload={})]
    forged.append(chained(forged[-1].head, at=AT, actor="ann", action="promote", subject="web", payload={}))
    assert verify(forged) is None
    assert verify(forged, head=entries[1].head) == 2


def test_an_entry_that_was_rewritten_with_its_hash_breaks_the_next_one() -> None:
    entries = plain(3)
    entries[1] = chained(entries[0].head, at=AT, actor="eve", action="promote", subject="web", payload={})
    assert verify(entries) == 3


def test_a_position_that_was_skipped_is_found() -> None:
    entries = plain(1)
    skipped = Head(position=2, sha256=entries[0].sha256)
    entries.append(chained(skipped, at=AT, actor="ann", action="promote", subject="web", payload={}))
    assert verify(entries) == 2


def test_texts_cannot_be_split_elsewhere() -> None:
    one = chained(START, at=AT, actor="ab", action="c", subject="", payload={})
    other = chained(START, at=AT, actor="a", action="bc", subject="", payload={})
    assert one.sha256 != other.sha256


def test_the_hash_is_that_of_the_documented_bytes() -> None:
    entry = chained(START, at=AT, actor="ann", action="promote", subject="é", payload={"b": 0.5, "a": [None, True]})
    zeros = "0" * 64
    content = f'[1,"2026-01-02T03:04:05.678901+00:00","ann","promote","é",{{"a":[null,true],"b":0.5}},"{zeros}"]'
    assert entry.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert entry.head == Head(position=1, sha256=entry.sha256)


def test_the_same_moment_in_another_zone_has_the_same_hash() -> None:
    entry = plain(1)[0]
    elsewhere = dataclasses.replace(entry, at=AT.astimezone(timezone(timedelta(hours=5))))
    assert verify([elsewhere]) is None


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": {"d": 1, "c": 2}, "a": 3}) == canonical({"a": 3, "b": {"c": 2, "d": 1}})


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({"gain": math.nan}, "finite"),
        ({"gain": [math.inf]}, "finite"),
        ({"layer": "\ud800"}, "Unicode"),
        ({"layers": {"encoder"}}, "must be JSON"),
        ({"by layer": [{1: "a"}]}, "write it as '1'"),
    ],
)
def test_what_has_no_canonical_json_is_refused_and_counts_as_broken(payload: dict[str, Any], complaint: str) -> None:
    with pytest.raises(JobSpecError, match=complaint):
        chained(START, at=AT, actor="ann", action="promote", subject="web", payload=payload)
    assert verify([dataclasses.replace(plain(1)[0], payload=payload)]) == 1


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(JobSpecError, match="must have a zone"):
        chained(START, at=AT.replace(tzinfo=None), actor="ann", action="promote", subject="web", payload={})
