"""The data that users pass: every form of batches and labels, and what each sample is used for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from autotune.tuning.data import Data, Piece, at_most, dealt_out, read
from workers.errors import TaskError
from workers.task import Split


def numbered(count: int, start: int = 0) -> torch.Tensor:
    """Samples that are their own numbers."""
    return torch.arange(start, start + count).float()[:, None]


def numbers(batches: Sequence[torch.Tensor]) -> list[int]:
    return [int(number) for batch in batches for number in batch.flatten()]


def split(pieces: Sequence[Piece], held_out: Sequence[Piece] | None = None) -> tuple[Data, list[list[int]]]:
    """The data, and the numbers of the samples of calibration, evaluation and held-out data."""
    data = dealt_out(pieces, held_out)
    parts = (data.calibration, data.evaluation[Split.EVALUATION], data.evaluation[Split.HELD_OUT])
    return data, [numbers(part) for part in parts]


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        pytest.param(torch.ones(3, 2), [torch.ones(3, 2)], id="tensor"),
        pytest.param(np.ones((3, 2), dtype=np.float32), [torch.ones(3, 2)], id="array"),
        pytest.param([torch.ones(3, 2), torch.ones(1, 2)], [torch.ones(3, 2), torch.ones(1, 2)], id="list"),
        pytest.param(iter([torch.ones(3, 2)]), [torch.ones(3, 2)], id="iterator"),
        pytest.param(DataLoader(TensorDataset(torch.ones(3, 2)), batch_size=3), [torch.ones(3, 2)], id="loader"),
    ],
)
def test_batches_of_one_input(batches: Any, expected: list[torch.Tensor]) -> None:
    found = read(batches, most=100)
    assert all(torch.equal(piece.batch, wanted) for piece, wanted in zip(found, expected, strict=True))
    assert [piece.samples for piece in found] == [len(batch) for batch in expected]


def test_batches_of_several_inputs_keep_their_form() -> None:
    first, second = torch.ones(3, 2), torch.zeros(3, 4)
    (mapping,) = read({"a": first, "b": second}, most=100)
    (arguments,) = read((first, second), most=100)
    (loaded,) = read(DataLoader(TensorDataset(first, second), batch_size=3), most=100)
    assert mapping.batch.keys() == {"a", "b"}
    assert [type(arguments.batch), type(loaded.batch)] == [tuple, tuple]
    assert torch.equal(loaded.batch[1], second)


@pytest.mark.parametrize(
    ("batches", "complaint"),
    [
        pytest.param([], "there are no batches", id="none"),
        pytest.param(3, "must be a tensor, a mapping", id="number"),
        pytest.param("text", "must be a tensor, a mapping", id="text"),
        pytest.param([torch.ones(0, 3)], "at least one sample", id="empty"),
        pytest.param(TensorDataset(torch.ones(3, 2)), "wrap it in a DataLoader", id="dataset"),
    ],
)
def test_other_batches_are_refused(batches: Any, complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint):
        read(batches, most=100)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(torch.arange(5), id="tensor"),
        pytest.param(np.arange(5), id="array"),
        pytest.param([0, 1, 2, 3, 4], id="list"),
        pytest.param([torch.tensor([0, 1, 2]), torch.tensor([3, 4])], id="per batch"),
    ],
)
def test_labels_follow_their_samples(labels: Any) -> None:
    pieces = read([numbered(3), numbered(2, 3)], labels, most=100)
    data, _ = split(pieces)
    for part, own in data.labels.items():
        assert own.tolist() == numbers(data.evaluation[part])


def test_labels_in_batches_follow_their_samples() -> None:
    pairs = DataLoader(TensorDataset(numbered(9), torch.arange(9)), batch_size=2, shuffle=True)
    data, parts = split(read(pairs, paired=True, most=100))
    assert data.labels[Split.EVALUATION].tolist() == parts[1]
    (keyed,) = read([{"x": numbered(4), "labels": torch.arange(4)}], paired=True, most=100)
    assert keyed.batch.keys() == {"x"}
    assert keyed.labels.tolist() == [0, 1, 2, 3]


def test_labels_of_any_type_are_lists() -> None:
    data, parts = split(read(numbered(8), list("abcdefgh"), most=100))
    assert data.labels[Split.EVALUATION] == ["abcdefgh"[number] for number in parts[1]]


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TaskError, match="one item per sample or per batch, but there are 4 for 5"):
        read(numbered(5), torch.arange(4), most=100)
    with pytest.raises(TaskError, match="batch 0 has 3 samples, but 2 labels"):
        read([(numbered(3), torch.arange(2))], paired=True, most=100)
    with pytest.raises(TaskError, match="the metric needs labels, but batch 0 is a Tensor without any"):
        read([numbered(3)], paired=True, most=100)


def test_labels_beside_a_loader_that_shuffles_are_refused() -> None:
    loader = DataLoader(TensorDataset(numbered(8)), shuffle=True)
    with pytest.raises(TaskError, match="let it yield pairs"):
        read(loader, torch.arange(8), most=100)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_every_sample_has_one_use(sizes: list[int]) -> None:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    batches = [numbered(size, start) for size, start in zip(sizes, starts, strict=True)]
    if sum(sizes) < 4:
        with pytest.raises(TaskError, match="at least 4 samples are needed"):
            split(read(batches, most=1000))
        return
    data, parts = split(read(batches, most=1000))
    assert sorted(number for part in parts for number in part) == list(range(sum(sizes)))
    assert all(parts)
    assert data.counts == tuple(map(len, parts))


def test_a_quarter_calibrates_and_a_quarter_is_held_out() -> None:
    _, parts = split(read(numbered(400), most=1000))
    assert [len(part) for part in parts] == [100, 200, 100]


def test_many_batches_stay_whole() -> None:
    data = dealt_out(read([numbered(8, 8 * index) for index in range(16)], most=1000), None)
    assert [len(batch) for batch in data.calibration] == [8] * 4


def test_given_held_out_data_leave_the_rest_to_the_search() -> None:
    data, parts = split(read(numbered(9), most=100), read(numbered(2, 100), most=100))
    assert parts[2] == [100, 101]
    assert data.counts == (3, 6, 2)


def test_reading_stops_at_the_most_samples() -> None:
    seen = []

    def batches() -> Any:
        for index in range(100):
            seen.append(index)
            yield numbered(8)

    pieces = at_most(read(batches(), torch.arange(800), most=20), 20)
    assert len(seen) == 3
    assert sum(piece.samples for piece in pieces) == 20
    assert pieces[-1].labels.tolist() == [16, 17, 18, 19]
