"""The generic task: any module, any form of input, agreement with full precision as accuracy."""

from collections import UserDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from workers import quality
from workers.errors import TaskError
from workers.task import OutputKind, Split, splits
from workers.tasks.generic import GenericTask, first_tensor, with_samples


class Scaled(nn.Module):
    """Takes its input in any of three forms."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, values: torch.Tensor, scale: float = 1.0) -> dict[str, Any]:
        return {"note": "no tensor", "parts": (scale * self.linear(values), values)}


def build() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scaled()


def values(seed: int, samples: int = 5) -> torch.Tensor:
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))


def task_of(kind: OutputKind = OutputKind.LOGITS, **arguments: Any) -> GenericTask:
    return GenericTask(build, [values(seed) for seed in range(7)], output_kind=kind, **arguments)


@pytest.mark.parametrize("form", [lambda v: v, lambda v: (v, 2.0), lambda v: {"values": v, "scale": 2.0}])
def test_inputs_of_any_form_reach_the_model(form: Any) -> None:
    task = GenericTask(build, [form(values(seed)) for seed in range(3)])
    model = task.build_model()
    plain = isinstance(form(values(0)), torch.Tensor)
    expected = model.linear(values(1)) * (1.0 if plain else 2.0)
    assert torch.equal(quality.outputs(task, model, Split.EVALUATION), expected)


def test_every_third_input_has_each_use() -> None:
    task = task_of()
    parts = [task.calibration(), task.evaluation(Split.EVALUATION), task.evaluation(Split.HELD_OUT)]
    for offset, part in enumerate(parts):
        expected = [values(seed) for seed in range(offset, 7, 3)]
        assert all(torch.equal(found, wanted) for found, wanted in zip(part, expected, strict=True))


@pytest.mark.parametrize("kind", OutputKind)
@pytest.mark.parametrize("split", [Split.EVALUATION, Split.HELD_OUT])
def test_full_precision_agrees_with_itself(kind: OutputKind, split: Split) -> None:
    task = task_of(kind)
    assert task.accuracy(quality.outputs(task, build().eval(), split), split) == pytest.approx(1.0)


def test_agreement_of_logits_is_the_share_of_equal_decisions() -> None:
    task = task_of()
    outputs = quality.outputs(task, task.build_model(), Split.EVALUATION).clone()
    assert len(outputs) == 10
    outputs[0] = outputs[0].roll(1)
    outputs[1, 0] = float("nan")
    assert task.accuracy(outputs, Split.EVALUATION) == pytest.approx(0.8)


def test_agreement_of_embeddings_is_the_mean_cosine() -> None:
    task = task_of(OutputKind.EMBEDDING)
    outputs = quality.outputs(task, task.build_model(), Split.EVALUATION).clone()
    outputs[0] *= -1.0
    outputs[1] = float("nan")
    outputs[2] *= 7.0
    assert task.accuracy(outputs, Split.EVALUATION) == pytest.approx(0.8)


def test_the_reference_is_full_precision_whatever_became_of_the_model() -> None:
    task = task_of()
    model = task.build_model()
    with torch.no_grad():
        model.linear.weight *= -1.0
        model.linear.bias *= -1.0
    assert task.accuracy(quality.outputs(task, model, Split.EVALUATION), Split.EVALUATION) < 0.5


def test_outputs_can_be_named() -> None:
    task = task_of(output=lambda found: found["parts"][1])
    assert torch.equal(quality.outputs(task, build(), Split.HELD_OUT), torch.cat([values(2), values(5)]))


def test_latency_batch_repeats_samples_and_leaves_the_rest() -> None:
    batch = {"rows": values(0), "mask": (torch.ones(2, 2), [values(1)]), "flag": True}
    found: Mapping[str, Any] = with_samples(batch, 7)
    rows = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    assert torch.equal(found["rows"], values(0)[rows])
    assert torch.equal(found["mask"][0], torch.ones(2, 2))
    assert torch.equal(found["mask"][1][0], values(1)[rows])
    assert found["flag"] is True


class Pair(NamedTuple):
    rows: torch.Tensor
    mask: torch.Tensor


class Encoding(UserDict[str, torch.Tensor]):
    """Such as a tokenizer returns."""


def test_containers_keep_their_type() -> None:
    pair = with_samples(Pair(values(0), values(1)), 2)
    assert isinstance(pair, Pair)
    assert torch.equal(pair.mask, values(1)[:2])
    encoding = with_samples(Encoding(ids=values(0)), 7)
    assert isinstance(encoding, Encoding)
    assert len(encoding["ids"]) == 7


def test_shifted_inputs_are_a_split_of_their_own() -> None:
    task = task_of(shifted=[10.0 * values(0)])
    assert splits(task) == tuple(Split)
    assert splits(task_of()) == (Split.EVALUATION, Split.HELD_OUT)
    outputs = quality.outputs(task, task.build_model(), Split.SHIFTED)
    assert len(outputs) == 5
    assert task.accuracy(outputs, Split.SHIFTED) == 1.0
    assert task.accuracy(outputs.roll(1, dims=1), Split.SHIFTED) == 0.0


def test_too_few_inputs_are_refused() -> None:
    with pytest.raises(TaskError, match=r"at least 3 inputs, .*, but got 2; give it more batches"):
        GenericTask(build, [values(0), values(1)])


def test_inputs_and_outputs_need_a_tensor() -> None:
    with pytest.raises(TaskError, match="found none in a dict"):
        GenericTask(build, [{"text": "words"}] * 3)
    with pytest.raises(TaskError, match="found none in a list"):
        first_tensor([(), {}])


def test_a_loss_before_the_logits_is_no_output() -> None:
    class LossFirst(Scaled):
        def forward(self, values: torch.Tensor, scale: float = 1.0) -> dict[str, Any]:
            logits = scale * self.linear(values)
            return {"loss": logits.mean(), "logits": logits}

    task = GenericTask(LossFirst, [values(seed) for seed in range(3)])
    assert task.forward(task.build_model(), values(1)).shape == (5, 3)


@pytest.mark.parametrize("batch", [torch.zeros(0, 4), (torch.zeros(0, 4), torch.zeros(2)), {"x": torch.zeros(())}])
def test_an_input_without_samples_is_refused_by_its_number(batch: Any) -> None:
    with pytest.raises(TaskError, match=r"at least one sample .* input 1 has a tensor of shape \(.*leave out empty"):
        GenericTask(build, [values(0), batch, values(2)])
