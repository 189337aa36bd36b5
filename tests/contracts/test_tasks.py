"""What every task promises, the built-in ones and the example's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.discovery import discover
from workers import quality
from workers.model.fingerprint import fingerprint
from workers.task import Batch, OutputKind, Split, Task, splits
from workers.tasks import build_task, load_task_file

EXAMPLES = Path(__file__).parents[2] / "examples"

#: Name -> accuracy that full precision reaches on the evaluation split.
FLOORS = {
    "minilm-lee": 0.6,
    "digits-cnn": 0.97,
    "digits-vit": 0.95,
    "own-digits": 0.94,
    "own-model": 1.0,
    "causal-lm": 0.0036,
    "speech-seq2seq": 1.0,
    "image-classification": 0.95,
    "diffusion": 1.0 - 1e-9,
    "text-to-image": 1.0 - 1e-9,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A task with its model and the model's outputs."""

    name: str
    task: Task
    model: nn.Module
    outputs: dict[Split, torch.Tensor]
    #: What accuracies are taken of: outputs, or what is generated.
    judged: dict[Split, torch.Tensor]

    def accuracy(self, split: Split, *, moved: int = 0) -> float:
        return self.task.accuracy(self.judged[split].roll(moved, dims=0), split)


@pytest.fixture(scope="module", params=FLOORS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    for own in EXAMPLES.glob("own_*.py"):
        load_task_file(str(own))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "weights"))
        task = build_task(request.param, {})
        model = task.build_model()
        outputs = {split: quality.outputs(task, model, split) for split in splits(task)}
        judged = {split: quality.judged(task, model, split) for split in outputs}
        yield Built(name=request.param, task=task, model=model, outputs=outputs, judged=judged)


def samples(batches: list[Batch]) -> set[bytes]:
    """The samples of batches, as bytes; documents without their padding."""
    found = set()
    for batch in batches:
        if isinstance(batch, torch.Tensor):
            found |= {row.numpy().tobytes() for row in batch}
        elif "input_ids" in batch:
            found |= {row[row != 0].numpy().tobytes() for row in batch["input_ids"]}
        else:
            found |= {b"".join(row.numpy().tobytes() for row in rows) for rows in zip(*batch.values(), strict=True)}
    return found


def nan_in(result: Any) -> Any:
    """What a model returned, with every number of its tensors lost."""
    if isinstance(result, torch.Tensor):
        return torch.full_like(result, float("nan"))
    if isinstance(result, Mapping):
        return type(result)({name: nan_in(value) for name, value in result.items()})
    if isinstance(result, tuple):
        return tuple(map(nan_in, result))
    return result


def test_is_a_task(built: Built) -> None:
    assert isinstance(built.task, Task)
    assert isinstance(built.task.output_kind, OutputKind)


def test_model_is_full_precision_and_evaluates(built: Built) -> None:
    assert not any(module.training for module in built.model.modules())
    assert {(p.dtype, p.device.type) for p in built.model.parameters()} == {(torch.float32, "cpu")}


def test_two_builds_are_equal(built: Built) -> None:
    task = build_task(built.name, {})
    model = task.build_model()
    assert fingerprint(model) == fingerprint(built.model)
    assert torch.equal(quality.outputs(task, model, Split.HELD_OUT), built.outputs[Split.HELD_OUT])
    assert samples(task.calibration()) == samples(built.task.calibration())


def test_building_again_leaves_random_numbers_alone(built: Built) -> None:
    if built.name.startswith("own-"):
        pytest.skip("a task of users may draw from the global generator")
    state = torch.get_rng_state()
    built.task.build_model()
    assert torch.equal(torch.get_rng_state(), state)


def test_calibration_is_never_evaluated_on(built: Built) -> None:
    calibration = samples(built.task.calibration())
    assert len(calibration) >= 60
    for split in splits(built.task):
        assert calibration.isdisjoint(samples(built.task.evaluation(split)))


def test_held_out_data_are_not_in_the_evaluation(built: Built) -> None:
    if built.name == "minilm-lee":
        pytest.skip("its splits are pairs of the same documents; see the unit tests of the corpus")
    evaluation, held_out = (samples(built.task.evaluation(s)) for s in (Split.EVALUATION, Split.HELD_OUT))
    assert evaluation.isdisjoint(held_out)


@pytest.mark.parametrize("split", Split)
def test_outputs_have_one_finite_row_a_sample(built: Built, split: Split) -> None:
    if split not in splits(built.task):
        pytest.skip("the task has no shifted data")
    outputs = built.outputs[split]
    assert len(outputs) == len(samples(built.task.evaluation(split)))
    assert outputs.dim() >= 2
    assert outputs.isfinite().all()


def test_full_precision_does_not_diverge_from_itself(built: Built) -> None:
    outputs = built.outputs[Split.EVALUATION]
    assert quality.divergence(outputs, outputs, built.task.output_kind).max() < 1e-12


def test_accuracy_is_that_of_a_trained_model(built: Built) -> None:
    accuracies = [built.accuracy(split) for split in (Split.EVALUATION, Split.HELD_OUT)]
    assert accuracies[0] >= FLOORS[built.name]
    assert abs(accuracies[1] - accuracies[0]) < 0.15


def test_shifted_inputs_differ_and_are_what_the_accuracy_reads(built: Built) -> None:
    if Split.SHIFTED not in splits(built.task):
        pytest.skip("the task has no shifted data")
    evaluation, shifted = (samples(built.task.evaluation(s)) for s in (Split.EVALUATION, Split.SHIFTED))
    assert evaluation.isdisjoint(shifted)
    assert 0.3 < built.accuracy(Split.SHIFTED) < built.accuracy(Split.EVALUATION)
    assert built.accuracy(Split.SHIFTED, moved=1) < built.accuracy(Split.SHIFTED)


def test_accuracy_reads_the_outputs_in_order(built: Built) -> None:
    assert built.accuracy(Split.EVALUATION, moved=1) < 0.5


def test_outputs_that_are_nan_look_bad(built: Built) -> None:
    class Broken(nn.Module):
        def forward(self, *args: object, **kwargs: object) -> object:
            return nan_in(built.model(*args, **kwargs))

    judged = quality.judged(built.task, Broken(), Split.EVALUATION)
    assert 0.0 <= built.task.accuracy(judged, Split.EVALUATION) < 0.2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_latency_batch_has_so_many_samples(built: Built, batch_size: int) -> None:
    with torch.inference_mode():
        outputs = built.task.forward(built.model, built.task.latency_batch(batch_size))
    assert len(outputs) == batch_size
    assert outputs.isfinite().all()


def test_every_layer_that_a_latency_batch_runs_is_calibrated_and_evaluated(built: Built) -> None:
    def layers(batch: Batch) -> set[str]:
        found = discover(built.model, lambda model: built.task.forward(model, batch))
        return {layer.name for layer in found if layer.calls}

    timed = layers(built.task.latency_batch(1))
    assert len(timed) >= 3
    assert layers(built.task.calibration()[0]) == timed
    assert layers(built.task.evaluation(Split.EVALUATION)[0]) == timed
