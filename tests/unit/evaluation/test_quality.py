"""Divergence from full precision, against formulas written out in numpy."""

import math
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workers import quality
from workers.errors import TaskError
from workers.quality import divergence
from workers.task import OutputKind, Split

Array = npt.NDArray[np.float64]


def naive_cosine(candidate: Array, reference: Array) -> float:
    return 1.0 - float(candidate @ reference / math.sqrt(candidate @ candidate) / math.sqrt(reference @ reference))


def naive_divergence(candidate: Array, reference: Array) -> float:
    p = np.exp(reference) / np.exp(reference).sum()
    q = np.exp(candidate) / np.exp(candidate).sum()
    return float((p * np.log(p / q)).sum())


NAIVE = {OutputKind.EMBEDDING: naive_cosine, OutputKind.LOGITS: naive_divergence}

each_kind = pytest.mark.parametrize("kind", OutputKind)
seeds = st.integers(0, 2**32 - 1)


def outputs(seed: int, *shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@each_kind
@given(seed=seeds, samples=st.integers(1, 5), between=st.integers(0, 3), features=st.integers(2, 6))
@settings(deadline=None)
def test_equals_the_formula_averaged_over_the_dimensions_between(
    kind: OutputKind, seed: int, samples: int, between: int, features: int
) -> None:
    shape = (samples, *[2] * between, features)
    candidate, reference = outputs(seed, *shape), outputs(seed + 1, *shape)
    expected = [
        np.mean([NAIVE[kind](c, r) for c, r in zip(cs.reshape(-1, features), rs.reshape(-1, features), strict=True)])
        for cs, rs in zip(candidate.double().numpy(), reference.double().numpy(), strict=True)
    ]
    found = divergence(candidate, reference, kind)
    assert found.shape == (samples,)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@each_kind
def test_rows_compared_in_turns_are_as_far_as_at_once(kind: OutputKind, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate, reference = outputs(0, 5, 3, 8), outputs(1, 5, 3, 8)
    at_once = divergence(candidate, reference, kind)
    sizes = []
    double = torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: sizes.append(len(tensor)) or double(tensor))
    monkeypatch.setattr(quality, "_BYTES_AT_ONCE", 8 * candidate[0, 0].nbytes)
    assert torch.equal(divergence(candidate, reference, kind), at_once)
    assert sizes == [8, 8, 7, 7]


@each_kind
@given(seed=seeds, scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e4]))
@settings(deadline=None)
def test_is_zero_for_equal_outputs_and_never_negative(kind: OutputKind, seed: int, scale: float) -> None:
    reference = outputs(seed, 4, 3, 10, scale=scale)
    assert torch.equal(divergence(reference, reference, kind), torch.zeros(4, dtype=torch.float64))
    nearly = reference * (1 + outputs(seed + 1, 4, 3, 10, scale=1e-7))
    assert (divergence(nearly, reference, kind) >= 0.0).all()


@given(seed=seeds, shift=st.floats(-100, 100), factor=st.floats(0.01, 100))
@settings(deadline=None)
def test_ignores_what_does_not_matter(seed: int, shift: float, factor: float) -> None:
    candidate, reference = outputs(seed, 3, 8).double(), outputs(seed + 1, 3, 8).double()
    logits = divergence(candidate + shift, reference, OutputKind.LOGITS)
    torch.testing.assert_close(logits, divergence(candidate, reference, OutputKind.LOGITS))
    angle = divergence(candidate * factor, reference, OutputKind.EMBEDDING)
    torch.testing.assert_close(angle, divergence(candidate, reference, OutputKind.EMBEDDING))


def test_distinguishes_small_differences() -> None:
    reference = outputs(0, 1, 384)
    steps = [reference + outputs(1, 1, 384, scale=scale) for scale in (1e-5, 1e-4, 1e-3)]
    found = [float(divergence(step, reference, OutputKind.EMBEDDING)) for step in steps]
    assert found[0] > 0.0
    np.testing.assert_allclose(np.diff(np.log10(found)), 2.0, atol=0.1)


@each_kind
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_outputs_are_infinitely_far_and_spoil_no_other_sample(kind: OutputKind, broken: float) -> None:
    reference = outputs(0, 3, 2, 5)
    candidate = outputs(1, 3, 2, 5)
    expected = divergence(candidate, reference, kind)
    candidate[1, 0, 3] = broken
    expected[1] = float("inf")
    torch.testing.assert_close(divergence(candidate, reference, kind), expected)


def test_class_that_became_impossible_is_infinitely_far() -> None:
    reference, candidate = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -float("inf")]])
    assert divergence(candidate, reference, OutputKind.LOGITS).tolist() == [float("inf")]


def test_masked_classes_do_not_count() -> None:
    masked = torch.tensor([[-float("inf"), 1.0, 2.0]])
    assert divergence(masked, masked, OutputKind.LOGITS).tolist() == [0.0]
    assert divergence(torch.tensor([[-9.0, 1.0, 2.0]]), masked, OutputKind.LOGITS).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("apart", [1e-4, 1e-2, 1.0, 30.0])
def test_divergence_over_a_large_vocabulary_is_that_in_float64(apart: float) -> None:
    random = torch.Generator().manual_seed(0)
    reference = 4.0 * torch.randn(3, 50_000, generator=random)
    candidate = reference + apart * torch.randn(3, 50_000, generator=random)
    expected = F.kl_div(
        F.log_softmax(candidate.double(), -1), F.log_softmax(reference.double(), -1), reduction="none", log_target=True
    ).sum(dim=-1)
    torch.testing.assert_close(divergence(candidate, reference, OutputKind.LOGITS), expected, rtol=1e-3, atol=0.0)


def test_a_row_that_needs_float64_does_not_change_the_others() -> None:
    random = torch.Generator().manual_seed(0)
    reference = torch.randn(3, 2_000, generator=random)
    candidate = reference + torch.randn(3, 2_000, generator=random)
    alone = divergence(candidate, reference, OutputKind.LOGITS)
    reference[1, 0], candidate[1, 0] = -torch.inf, -torch.inf
    found = divergence(candidate, reference, OutputKind.LOGITS)
    assert torch.equal(found[[0, 2]], alone[[0, 2]])
    assert 0.0 < found[1] != alone[1]


def test_zero_vectors() -> None:
    zero, other = torch.zeros(1, 4), torch.ones(1, 4)
    assert divergence(zero, zero, OutputKind.EMBEDDING).tolist() == [0.0]
    assert divergence(zero, other, OutputKind.EMBEDDING).tolist() == [1.0]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (torch.zeros(7), r"shape \(samples, \.\.\., features\), but got \(7,\)"),
        (
            torch.zeros(()),
            r"but got \(\); return one row per sample .*logits instead of a loss",
        ),
        ({"logits": torch.zeros(7, 2)}, "forward must return a tensor .* but returned a dict"),
    ],
)
def test_outputs_without_samples_and_features_are_refused(returned: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        quality.outputs_on(returning(returned), nn.Identity(), [None])


def test_a_split_without_samples_is_refused_by_name() -> None:
    for batches in ([], [torch.zeros(0, 2)]):
        with pytest.raises(TaskError, match=rf"no held_out data: .* {len(batches)} batches .* Split.HELD_OUT"):
            quality.outputs(returning(torch.zeros(0, 2), batches), nn.Identity(), Split.HELD_OUT)


def returning(returned: object, batches: Sequence[object] = ()) -> Any:
    """A task whose forward returns ``returned``."""
    return SimpleNamespace(forward=lambda model, batch: returned, evaluation=lambda split: batches)


@pytest.mark.parametrize("accuracy", [1, 0.25, np.float32(0.25), torch.tensor(0.25), torch.tensor([0.25]), np.ones(1)])
def test_an_accuracy_that_is_a_number_is_taken(accuracy: object) -> None:
    found = quality.number(accuracy)
    assert type(found) is float
    assert found in (1.0, 0.25)


@pytest.mark.parametrize("accuracy", [None, "0.5", {"accuracy": 0.5}, torch.ones(2)])
def test_an_accuracy_that_is_no_number_is_refused_by_what_was_returned(accuracy: object) -> None:
    with pytest.raises(TaskError, match=f"must return a number, but returned .*, a {type(accuracy).__name__}"):
        quality.number(accuracy)


class Doubling:
    """A task with two batches a split."""

    output_kind = OutputKind.EMBEDDING

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        start = 0 if split is Split.EVALUATION else 100
        return [torch.arange(start, start + 4).reshape(4, 1), torch.arange(start + 4, start + 6).reshape(2, 1)]

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        doubled: torch.Tensor = model(batch).to(torch.bfloat16)
        return doubled


class Double(nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return 2 * batch


DOUBLING: Any = Doubling()


@pytest.mark.parametrize(("split", "first"), [(Split.EVALUATION, 0.0), (Split.HELD_OUT, 200.0)])
def test_outputs_are_those_of_all_batches_in_order(split: Split, first: float) -> None:
    found = quality.outputs(DOUBLING, Double(), split)
    assert found.dtype == torch.float32
    assert found.tolist() == [[first + 2.0 * i] for i in range(6)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_batches_of_any_sizes_are_joined(sizes: list[int]) -> None:
    batches = [torch.randn(size, 2, 3) for size in sizes]
    found = quality.outputs_on(DOUBLING, Double(), batches)
    assert torch.equal(found, torch.cat([(2 * batch).to(torch.bfloat16).float() for batch in batches]))


class Answering(Doubling):
    """Generates answers of two tokens."""

    def generate(self, model: nn.Module, split: Split) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        return torch.cat([self.forward(model, batch) for batch in self.evaluation(split)]).repeat(1, 2)


class AnsweringAtOnce(Answering):
    """The same, batch by batch; counts them."""

    def __init__(self) -> None:
        self.batches = 0

    def forward_and_generate(self, model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches += 1
        outputs = self.forward(model, batch)
        return outputs, outputs.repeat(1, 2)


@pytest.mark.parametrize("split", [Split.EVALUATION, Split.HELD_OUT])
def test_outputs_and_answers_are_the_same_one_after_the_other_and_at_once(split: Split) -> None:
    apart: Any = Answering()
    at_once: Any = AnsweringAtOnce()
    outputs, answers = quality.outputs_and_judged(apart, Double(), split)
    assert torch.equal(outputs, quality.outputs(apart, Double(), split))
    assert torch.equal(answers, quality.judged(apart, Double(), split))
    for found, expected in zip(quality.outputs_and_judged(at_once, Double(), split), (outputs, answers), strict=True):
        assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())
    assert at_once.batches == 2


@pytest.mark.parametrize("task", [Doubling(), Answering(), AnsweringAtOnce()])
def test_divergence_batch_by_batch_is_that_of_all_outputs(task: Any) -> None:
    reference = torch.tensor([[2.0], [-1.0], [3.0], [0.0], [-2.0], [1.0]])
    outputs, judged = quality.outputs_and_judged(task, Double(), Split.EVALUATION)
    diverged, also_judged = quality.divergence_and_judged(task, Double(), Split.EVALUATION, reference)
    assert diverged.tolist() == [1.0, 2.0, 0.0, 1.0, 2.0, 0.0]
    assert torch.equal(diverged, quality.divergence(outputs, reference, task.output_kind))
    assert torch.equal(also_judged, judged)


def test_compared_outputs_are_dropped_before_the_next_batch() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    class Watched(AnsweringAtOnce):
        def forward_and_generate(self, model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            assert [output() for output in made] == [None] * len(made)
            outputs, answers = super().forward_and_generate(model, batch)
            outputs = outputs.float()  # fp32 outputs on the CPU are not copied
            made.append(weakref.ref(outputs))
            return outputs, answers

    task: Any = Watched()
    quality.divergence_and_judged(task, Double(), Split.EVALUATION, torch.ones(6, 1))
    assert len(made) == 2


def test_outputs_are_judged_themselves_if_nothing_is_generated() -> None:
    outputs, judged = quality.outputs_and_judged(DOUBLING, Double(), Split.EVALUATION)
    assert judged is outputs


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (
            torch.zeros(2, 3),
            r"outputs of forward and the answers of generate, but returned a tensor of shape \(2, 3\)$",
        ),
        ((torch.zeros(2, 3), None), r"but returned a tensor of shape \(2, 3\) and a NoneType"),
        ((torch.zeros(2, 3), torch.zeros(1, 3)), r"a row for each sample, .* \(2, 3\) and a tensor of shape \(1, 3\)"),
        ((torch.zeros(()), torch.zeros(())), r"outputs must have shape .* got \(\)"),
    ],
)
def test_anything_but_outputs_and_answers_is_refused(returned: object, words: str) -> None:
    task = returning(None, [None])
    task.forward_and_generate = lambda model, batch: returned
    with pytest.raises(TaskError, match=words):
        quality.outputs_and_judged(task, nn.Identity(), Split.EVALUATION)


def test_answers_of_several_shapes_are_refused() -> None:
    task = returning(None, [2, 3])
    task.forward_and_generate = lambda model, tokens: (torch.ones(4, 1), torch.ones(4, tokens))
    with pytest.raises(TaskError, match=r"each sample's had \(2,\) and then \(3,\); pad them in forward_and_generate"):
        quality.outputs_and_judged(task, nn.Identity(), Split.EVALUATION)


def test_a_split_without_samples_has_no_answers_either() -> None:
    task = returning(None)
    task.forward_and_generate = lambda model, batch: batch
    with pytest.raises(TaskError, match=r"no held_out data: .* 0 batches"):
        quality.outputs_and_judged(task, nn.Identity(), Split.HELD_OUT)


def test_batches_of_several_shapes_are_refused() -> None:
    # The second could be broadcast to the first's shape.
    with pytest.raises(TaskError, match=r"one shape .* got \(2, 3\) and then \(2, 1\); pad or pool"):
        quality.outputs_on(DOUBLING, Double(), [torch.ones(2, 3), torch.ones(2, 1)])
