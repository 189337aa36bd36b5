"""Image classifiers: folders of images, classes, batch norms that are folded."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from autotune.exporters import pretrained
from search_spaces.discovery import discover
from workers import quality
from workers.candidate import Candidate
from workers.errors import TaskError
from workers.evaluation.evaluator import Evaluator
from workers.model.fingerprint import fingerprint
from workers.setup import MeasurementSettings, WorkerSetup
from workers.task import Split
from workers.tasks.images import models
from workers.tasks.images.batch_norms import fold_batch_norms
from workers.tasks.images.classification import ImageClassification, class_numbers
from workers.tasks.images.models import TINY, build_image_model, vision_of
from workers.tasks.images.shape_images import SHAPES, SIDE, draw

SMALL = {"samples": 6, "batch_size": 4}


def unsettle(model: nn.Module) -> None:
    """Stands for training: gives batch norms statistics that a fold must keep."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.2, 0.2)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2.0)


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "unsettled"
    monkeypatch.setenv("AUTOTUNE_CACHE", str(folder))
    monkeypatch.setattr(models, "train", unsettle)


def layers_of(model: nn.Module) -> dict[str, int]:
    """Convolutions and linear layers that can be quantized, with their groups."""
    found = discover(model, lambda m: m(pixel_values=torch.zeros(1, 3, SIDE, SIDE)))
    return {layer.name: layer.conv_groups for layer in found if layer.frozen_reason is None}


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model.modules())


def write_images(folder: Path, names: dict[str, int]) -> None:
    for seed, (name, count) in enumerate(names.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, (picture, _) in enumerate(draw(count, seed)):
            Image.fromarray(picture).resize((40, 30 + number)).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as checkpoints are published: a small vision transformer of three classes, and its processor."""
    from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "vit", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16,
        patch_size=8, id2label={0: "cat", 1: "dog", 2: "newt"}, label2id={"cat": 0, "dog": 1, "newt": 2},
    )  # fmt: skip
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", TINY)
def test_every_batch_norm_of_tiny_models_is_folded_and_outputs_are_equal(name: str) -> None:
    images = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) / 255.0 for picture, _ in draw(4, 9)])
    whole, folded = build_image_model(vision_of(name), fold=False), build_image_model(vision_of(name), fold=True)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images).logits, whole(images).logits, rtol=1e-3, atol=1e-4)
    assert norms_of(folded) == 0 < norms_of(whole)
    assert not any(parameter.is_inference() for parameter in folded.parameters())
    assert layers_of(folded) == layers_of(whole)


def test_depthwise_convolutions_are_layers_that_run_quantized() -> None:
    settings = MeasurementSettings(threads=1, repeats=10, warmup_s=0.0)
    parameters = {**SMALL, "checkpoint": "tiny-mobilenet"}
    found = Evaluator(WorkerSetup(task="image-classification", task_parameters=parameters, measurement=settings))
    depthwise = [layer.name for layer in found.description.layers if layer.conv_groups > 1]
    assert len(depthwise) == 17
    for choice in ("int8_static", "int8_dynamic"):
        measurement = found.measure(Candidate(number=0, choices=dict.fromkeys(depthwise, choice)))
        assert 0.0 < measurement.divergence < 0.05
    assert found.description.skipped == {}


class Skip(nn.Module):
    """A convolution whose result is read beside its norm too."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.norm3 = nn.BatchNorm2d(4, track_running_stats=False)
        self.shared = shared

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        read = self.conv(images)
        normal = self.norm(read) + (read if self.shared else 0.0)
        return self.norm3(self.conv3(self.norm2(self.conv2(torch.relu(normal)))))


@pytest.mark.parametrize("shared", [True, False])
def test_norms_stay_where_folding_would_change_something(shared: bool) -> None:
    torch.manual_seed(0)
    model, images = Skip(shared=shared).eval(), torch.randn(2, 3, 5, 5)
    unsettle(nn.ModuleList([model.norm, model.norm2]))
    with torch.inference_mode():
        before = model(images)
        assert fold_batch_norms(model, lambda m: m(images)) == (("norm2",) if shared else ("norm", "norm2"))
        torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)
    assert isinstance(model.norm2, nn.Identity)
    assert isinstance(model.norm, nn.BatchNorm2d) is shared
    assert isinstance(model.norm3, nn.BatchNorm2d)


def test_norms_of_convolutions_that_run_twice_stay() -> None:
    conv = nn.Conv2d(3, 3, 1)
    model, images = nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)).eval(), torch.randn(1, 3, 4, 4)
    assert fold_batch_norms(model, lambda m: m(images)) == ()
    assert norms_of(model) == 2


def test_folded_models_are_refused_where_transformers_would_load_them() -> None:
    assert pretrained.refusal(build_image_model(vision_of("tiny-resnet"), fold=False)) is None
    reason = pretrained.refusal(build_image_model(vision_of("tiny-resnet"), fold=True))
    assert reason is not None
    assert "the task changed layers of this ResNetForImageClassification" in reason
    assert "fold_batch_norms: false" in reason


def test_accuracy_is_top_1_of_the_shapes() -> None:
    task = ImageClassification(**SMALL)
    outputs = torch.nn.functional.one_hot(torch.tensor([1, 4, 1, 4, 0, 4]), len(SHAPES)).float()
    assert task.accuracy(outputs, Split.EVALUATION) == pytest.approx(5 / 6)
    outputs[0] = torch.nan
    assert task.accuracy(outputs, Split.EVALUATION) == pytest.approx(4 / 6)


def test_no_picture_is_drawn_twice() -> None:
    assert len({picture.tobytes() for seed in (0, 1) for picture, _ in draw(900, seed)}) == 1800


def test_a_published_folder_is_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    write_images(tmp_path, {"cat": 3, "newt": 5})
    task = ImageClassification(**SMALL, checkpoint=str(checkpoint), images=str(tmp_path))
    model = task.build_model()
    assert sorted(task._classes.tolist()) == [0] * 3 + [2] * 5
    assert [len(batch) for batch in (task.calibration()[0], task.evaluation(Split.EVALUATION)[0])] == [3, 3]
    assert task.calibration()[0].shape == (3, 3, 16, 16)
    assert task.forward(model, task.latency_batch(5)).shape == (5, 3)
    assert fingerprint(task.build_model()) == fingerprint(model)
    assert len(task._paths) == 8
    few = ImageClassification(samples=1, checkpoint=str(checkpoint), images=str(tmp_path))
    assert torch.equal(few._classes, task._classes[:3])


def test_without_classes_right_is_what_full_precision_says(checkpoint: Path, tmp_path: Path) -> None:
    write_images(tmp_path, {".": 9})
    task = ImageClassification(**SMALL, checkpoint=str(checkpoint), images=str(tmp_path))
    outputs = quality.outputs(task, task.build_model(), Split.EVALUATION)
    assert task.accuracy(outputs, Split.EVALUATION) == 1.0
    assert task.accuracy(-outputs, Split.EVALUATION) == 0.0


def test_classes_go_by_name_or_else_by_place() -> None:
    labels = ("tench", "goldfish", "shark")
    assert class_numbers(["shark", "tench"], labels) == {"shark": 2, "tench": 0}
    assert class_numbers(["n01", "n02", "n03"], labels) == {"n01": 0, "n02": 1, "n03": 2}
    with pytest.raises(TaskError, match=r"got 'n01'; it knows tench, goldfish, shark. Rename .* its 3 classes"):
        class_numbers(["n01", "tench"], labels)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"checkpoint": "no/such", "images": "."}, r"cannot load the model of checkpoint 'no/such': .* tiny-resnet"),
        ({"checkpoint": "no/such"}, "'no/such' needs a folder of images; give it as the parameter images"),
        ({"images": "no/such"}, r"at least 3 images are needed, .* 'no/such' has 0; give a folder of png or jpeg"),
        ({"fold_batch_norms": 1}, "'fold_batch_norms' must be true or false, but got 1"),
        ({"samples": 0}, "'samples' must be an integer from 1"),
        ({"images": 3}, "'images' must be text, but got 3"),
    ],
)
def test_what_cannot_be_used_is_explained(
    parameters: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def use() -> None:
        task = ImageClassification(**parameters)  # type: ignore[arg-type]
        task.build_model()
        task.calibration()

    with pytest.raises(TaskError, match=message):
        use()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ModuleNotFoundError(name='timm')", r"'timm', which is not installed; .*'quant-autotune\[vision\]'"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            r"torchvision was built for another PyTorch .*torchvision::nms does not exist.* same package index",
        ),
    ],
)
def test_packages_that_cannot_be_imported_are_explained(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text(source)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match=message):
        ImageClassification(checkpoint=str(tmp_path), images=".").build_model()


def test_images_that_cannot_be_used_are_explained(checkpoint: Path, tmp_path: Path) -> None:
    def use() -> None:
        ImageClassification(**SMALL, checkpoint=str(checkpoint), images=str(tmp_path)).calibration()

    write_images(tmp_path, {"cat": 3})
    (tmp_path / "cat" / "9.png").write_text("no image")
    with pytest.raises(TaskError, match=r"cannot read the image .*9.png'.*; remove or replace it"):
        use()
    write_images(tmp_path, {".": 1})
    with pytest.raises(TaskError, match=r"images must all be in subfolders .* move the other images"):
        use()


def test_jobs_of_others_read_no_images_outside_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "data" / "images"
    write_images(inside, {".": 3})
    write_images(tmp_path / "outside", {".": 3})
    monkeypatch.setenv("AUTOTUNE_DATA", str(tmp_path / "data"))
    assert len(ImageClassification(**SMALL, images="images")._paths) == 3
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        ImageClassification(**SMALL, images="../outside").calibration()
    (inside / "link.png").symlink_to(tmp_path / "outside" / "0.png")
    with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
        ImageClassification(samples=4, images=str(inside), checkpoint="tiny-resnet").calibration()


def test_pictures_are_in_the_range_of_bytes() -> None:
    picture, shape = draw(7, 0)[6]
    assert shape == SHAPES[0]
    assert (picture.shape, picture.dtype) == ((SIDE, SIDE, 3), np.uint8)
