"""The two models on digits."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from search_spaces.discovery import discover
from workers.errors import TaskError
from workers.model.fingerprint import fingerprint
from workers.task import Split
from workers.tasks.images import digits
from workers.tasks.images.digits import DigitsCNN, DigitsViT, images_of

PARTS = ("train", "calibration", Split.EVALUATION, Split.HELD_OUT)

each_task = pytest.mark.parametrize("task", [DigitsCNN(), DigitsViT()], ids=lambda task: type(task).__name__)


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Train for one epoch into an empty cache."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path))
    train: Callable[..., None] = digits.train
    monkeypatch.setattr(digits, "train", lambda model: train(model, epochs=1))


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_parts_are_disjoint_and_all_images() -> None:
    parts = {part: {image.numpy().tobytes() for image in images_of(part)[0]} for part in PARTS}
    assert {part: len(images) for part, images in parts.items()} == {
        "train": 869, "calibration": 128, Split.EVALUATION: 400, Split.HELD_OUT: 400,
    }  # fmt: skip
    assert len(set.union(*parts.values())) == 1797


def test_shifted_images_are_the_evaluation_in_four_times_the_contrast() -> None:
    images, labels = images_of(Split.SHIFTED)
    assert torch.equal(images, 4.0 * images_of(Split.EVALUATION)[0])
    assert torch.equal(labels, images_of(Split.EVALUATION)[1])


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_every_digit(part: str) -> None:
    images, labels = images_of(part)
    assert images.shape == (len(labels), 1, 8, 8)
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert labels.bincount(minlength=10).min() >= 5


@each_task
def test_training_does_not_depend_on_threads(
    task: DigitsCNN | DigitsViT, short_training: None, threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prints = set()
    for count in (1, 2):
        torch.set_num_threads(count)
        monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / str(count)))
        prints.add(fingerprint(task.build_model()))
        assert torch.get_num_threads() == count
    assert len(prints) == 1
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2, "both must have trained"


def test_second_build_does_not_train(short_training: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = DigitsViT().build_model()
    monkeypatch.setattr(digits, "train", None)
    assert fingerprint(DigitsViT().build_model()) == fingerprint(first)


def test_seeds_and_networks_have_their_own_weights(short_training: None, tmp_path: Path) -> None:
    models = [DigitsCNN(seed=0).build_model(), DigitsCNN(seed=1).build_model(), DigitsViT(seed=0).build_model()]
    assert len({fingerprint(model) for model in models}) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_file_of_the_weights_names_what_they_depend_on(short_training: None, tmp_path: Path) -> None:
    import sklearn

    DigitsCNN(seed=5).build_model()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"DigitsCNN-seed5-torch{torch.__version__}-sklearn{sklearn.__version__}-")


def test_convolutions_are_wide_enough_for_int8_kernels() -> None:
    layers = discover(DigitsCNN.network(), lambda model: model(torch.zeros(1, 1, 8, 8)))
    assert [layer.kind for layer in layers] == ["conv2d"] * 4 + ["linear"] * 2
    assert max(layer.weight_shape[1] for layer in layers if layer.kind == "conv2d") >= 32
    assert not any(layer.frozen_reason for layer in layers)


def test_projections_of_a_block_are_one_group() -> None:
    layers = discover(DigitsViT.network(), lambda model: model(torch.zeros(1, 1, 8, 8)))
    groups = {layer.name: layer.group for layer in layers}
    assert groups["blocks.0.q_proj"] == groups["blocks.0.k_proj"] == groups["blocks.0.v_proj"] == "blocks.0.qkv"
    assert {layer.name for layer in layers} >= {"blocks.3.fc1", "blocks.3.fc2", "patch_embed", "head"}
    assert not any(layer.frozen_reason for layer in layers)


@each_task
def test_images_of_a_batch_do_not_influence_each_other(task: DigitsCNN | DigitsViT) -> None:
    model = task.network().eval()
    batch = task.latency_batch(5)
    with torch.inference_mode():
        torch.testing.assert_close(model(batch)[3:4], model(batch[3:4]), atol=1e-5, rtol=1e-4)


def test_accuracy_is_the_share_of_right_digits() -> None:
    labels = images_of(Split.HELD_OUT)[1]
    outputs = nn.functional.one_hot(labels, 10).float()
    outputs[:100] = 1.0 - outputs[:100]
    outputs[100] = float("nan")
    assert DigitsCNN().accuracy(outputs, Split.HELD_OUT) == 299 / 400


def test_latency_batch_starts_again_when_images_run_out() -> None:
    batch = DigitsCNN().latency_batch(130)
    assert batch.shape == (130, 1, 8, 8)
    assert torch.equal(batch[128:], batch[:2])


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0", None])
def test_wrong_seeds_are_named(seed: object) -> None:
    with pytest.raises(TaskError, match="task parameter 'seed' must be an integer from 0 to 4294967295, but got"):
        DigitsCNN(seed=seed)  # type: ignore[arg-type]


def test_missing_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._parts.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(TaskError, match=r"'sklearn.*', which is not installed.*pip install 'quant-autotune\[tasks\]'"):
        DigitsCNN().calibration()
