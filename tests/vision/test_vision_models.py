"""Image classifiers of timm and torchvision: what they are loaded from, how images are prepared, what is quantized."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from torch import nn
from torchvision import models

from search_spaces.discovery import discover, skipped
from workers.backends.cpu.backend import CpuBackend
from workers.errors import TaskError
from workers.model.fingerprint import fingerprint
from workers.model.prepared import PreparedModel
from workers.task import Split
from workers.tasks.images.batch_norms import fold_batch_norms
from workers.tasks.images.classification import ImageClassification
from workers.tasks.images.models import build_image_model, vision_of
from workers.tasks.images.shape_images import SHAPES, Pixels, draw


def unsettle(model: nn.Module) -> nn.Module:
    """Stands for training: gives batch norms statistics that a fold must keep."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.2, 0.2)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture(autouse=True)
def _fixed_weights() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def timm_folder(folder: Path, architecture: str, **configuration: Any) -> Path:
    """A folder as timm's checkpoints are published, with random weights."""
    model = unsettle(timm.create_model(architecture, num_classes=len(SHAPES)))
    timm.models.save_for_hf(model, folder, model_config=configuration, safe_serialization=True)
    return folder


def write_images(folder: Path, count: int = 9) -> Path:
    for number, (picture, shape) in enumerate(draw(count, 0)):
        (folder / shape).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).resize((200, 180 + number)).save(folder / shape / f"{number}.png")
    return folder


def photo() -> Pixels:
    """A picture that no crop, size or interpolation leaves alike."""
    return np.random.RandomState(0).randint(0, 256, size=(301, 421, 3), dtype=np.uint8)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_folders_of_timm_are_told_by_their_configuration(prefix: str, tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "model", "test_resnet", label_names=list(SHAPES))
    state = torch.get_rng_state()
    vision = vision_of(f"{prefix}{folder}")
    model, again = vision.build(), build_image_model(vision, fold=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert vision.labels == SHAPES
    assert fingerprint(model) == fingerprint(again) == fingerprint(timm.create_model(f"local-dir:{folder}", True))
    assert not again.training


def test_images_are_prepared_as_timm_says_of_the_checkpoint(tmp_path: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    numbers = {"input_size": (3, 96, 96), "interpolation": "bilinear", "crop_pct": 0.5, "mean": mean, "std": std}
    folder = timm_folder(tmp_path / "model", "test_resnet", pretrained_cfg=numbers)
    (inputs,) = vision_of(str(folder)).prepared([photo()])
    small = Image.fromarray(photo()).resize((268, 192), Image.Resampling.BILINEAR).crop((86, 48, 182, 144))
    scaled = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255.0
    expected = (scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(inputs, expected)


@pytest.mark.parametrize(
    ("written", "classes", "labels"),
    [
        ({}, 6, ("0", "1", "2", "3", "4", "5")),
        ({"label_names": {"1": "cat", "0": "dog"}}, 3, ("dog", "cat", "2")),
        ({}, 1000, tuple(timm.data.ImageNetInfo().label_names())),
    ],
)
def test_classes_are_named_by_the_checkpoint_or_by_imagenet(
    written: dict[str, Any], classes: int, labels: tuple[str, ...], tmp_path: Path
) -> None:
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=classes), tmp_path, model_config=written)
    assert vision_of(str(tmp_path)).labels == labels


@pytest.mark.parametrize("architecture", ["test_resnet", "test_byobnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_norms_of_timm_are_folded_and_keep_their_activations(architecture: str) -> None:
    model, images = unsettle(timm.create_model(architecture)), torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        before = model(images)
        norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        assert set(fold_batch_norms(model, lambda m: m(images))) == set(norms)
        torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-4)


def test_a_norm_that_activates_stays_if_no_convolution_is_before_it() -> None:
    model = unsettle(nn.Sequential(BatchNormAct2d(3), nn.Conv2d(3, 4, 1), BatchNormAct2d(4)))
    assert fold_batch_norms(model, lambda m: m(torch.ones(1, 3, 5, 5))) == ("2",)
    assert isinstance(model.get_submodule("2.act"), nn.ReLU)


class Shifted(nn.BatchNorm2d):
    """A norm that does something of its own beside calling a layer."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(images)) + 1.0


def test_a_norm_that_does_more_than_its_layers_stays() -> None:
    model = unsettle(nn.Sequential(nn.Conv2d(3, 4, 1), Shifted(4)))
    assert fold_batch_norms(model, lambda m: m(torch.ones(1, 3, 5, 5))) == ()
    assert isinstance(model[1], Shifted)


@pytest.mark.parametrize(
    ("architecture", "size", "grouped", "layers"),
    [
        ("test_resnet", 64, 0, 16),
        ("test_convnext", 64, 9, 32),
        ("test_vit", 160, 0, 26),
        ("mobilenetv3_small_050", 64, 11, 54),
    ],
)
def test_every_weight_of_timm_is_that_of_a_layer(
    architecture: str, size: int, grouped: int, layers: int, tmp_path: Path
) -> None:
    model = build_image_model(vision_of(str(timm_folder(tmp_path, architecture))), fold=True)
    found = discover(model, lambda m: m(torch.zeros(1, 3, size, size)))
    assert (sum(layer.conv_groups > 1 for layer in found), len(found)) == (grouped, layers)
    assert [layer.name for layer in found if layer.frozen_reason is not None] == []
    assert set(skipped(model)) <= {"(model)"}  # ViT's table of positions


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext", "test_efficientnet"])
def test_layers_of_timm_run_quantized(architecture: str, tmp_path: Path) -> None:
    backend = CpuBackend()
    if backend.unavailable() is not None:
        pytest.skip("needs the x86 backend")
    vision = vision_of(str(timm_folder(tmp_path, architecture)))
    model, images = build_image_model(vision, fold=True), vision.prepared([photo()])
    with torch.inference_mode():
        expected = vision.logits(model, images)
        layers = discover(model, lambda m: vision.logits(m, images))
        names = {layer.name: "int8_dynamic" for layer in layers}
        PreparedModel(model, layers, backend, {}).apply(names)
        logits = vision.logits(model, images)
    assert 0.0 < (logits - expected).norm() < 0.1 * expected.norm()


def torchvision_file(folder: Path, architecture: str, name: str, **options: Any) -> Path:
    state = unsettle(models.get_model(architecture, **options)).state_dict()
    if name.endswith(".safetensors"):
        save_file(state, folder / name)
    else:
        torch.save(state, folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["mine.safetensors", "mine.pth"])
def test_a_file_of_weights_is_a_model_of_torchvision(name: str, tmp_path: Path) -> None:
    weights = torchvision_file(tmp_path, "squeezenet1_1", name, num_classes=len(SHAPES))
    task = ImageClassification(
        checkpoint="torchvision:squeezenet1_1", weights=str(weights), images=str(write_images(tmp_path / "images"))
    )
    model = task.build_model()
    assert task._vision.labels == ("0", "1", "2", "3", "4", "5")
    assert task.forward(model, task.latency_batch(2)).shape == (2, 6)
    assert task.evaluation(Split.EVALUATION)[0].shape == (3, 3, 224, 224)


def test_published_files_have_their_own_images_and_classes(tmp_path: Path) -> None:
    recipe = models.MobileNet_V2_Weights.IMAGENET1K_V1
    weights = torchvision_file(tmp_path, "mobilenet_v2", Path(recipe.url).name)
    vision = vision_of("torchvision:mobilenet_v2", str(weights))
    assert vision.labels == tuple(recipe.meta["categories"])
    (inputs,) = vision.prepared([photo()])
    torch.testing.assert_close(inputs, recipe.transforms()(Image.fromarray(photo())))
    (others,) = vision_of("torchvision:mobilenet_v2", str(weights.rename(tmp_path / "mine.pth"))).prepared([photo()])
    assert not torch.equal(others, inputs)


def test_weights_by_name_are_those_that_were_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for recipe in models.ShuffleNet_V2_X0_5_Weights:
        torchvision_file(folder, "shufflenet_v2_x0_5", Path(recipe.url).name)
    model = vision_of("torchvision:shufflenet_v2_x0_5", "DEFAULT").build()
    assert fingerprint(model) == fingerprint(models.shufflenet_v2_x0_5(weights="DEFAULT"))


@pytest.mark.parametrize("architecture", ["googlenet", "densenet121"])
def test_state_dicts_as_torchvision_published_them_are_read(architecture: str, tmp_path: Path) -> None:
    options = {"init_weights": False} if architecture == "googlenet" else {}
    original = models.get_model(architecture, num_classes=2, **options)
    state = {re.sub(r"(denselayer\d+\.\w+?)([12]\.)", r"\1.\2", name): t for name, t in original.state_dict().items()}
    torch.save(state, tmp_path / "old.pth")
    model = vision_of(f"torchvision:{architecture}", str(tmp_path / "old.pth")).build()
    assert model.state_dict().keys() == {n for n in original.state_dict() if not n.startswith("aux")}
    assert getattr(model, "transform_input", True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"checkpoint": "torchvision:resnet18"}, "'weights' is required for architectures of torchvision"),
        ({"weights": "mine.pth"}, "got 'mine.pth' for checkpoint 'tiny-resnet'"),
        ({"checkpoint": "torchvision:resnet8", "weights": "a"}, "unknown classifier of torchvision 'resnet8'; did you"),
        ({"checkpoint": "torchvision:alexnet", "weights": "no.pth"}, r"torchvision:alexnet': .*No such file.* DEFAULT"),
        ({"checkpoint": "torchvision:alexnet", "weights": "pickle.pth"}, r"Weights only load failed.* DEFAULT"),
        ({"checkpoint": "torchvision:alexnet", "weights": "other.pth"}, r"'classifier.6.bias'; give the parameter"),
        ({"checkpoint": "headless"}, "'headless' must be a classifier, but has no classes"),
        ({"checkpoint": "strange"}, r"model of checkpoint 'strange': Unknown model \(resnet9000\); give a folder"),
        ({"checkpoint": "empty"}, r"model of checkpoint 'empty': No suitable checkpoints found .*; give a folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_explained(
    parameters: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc": SHAPES, "code": timm.create_model}, "pickle.pth")
    torch.save({"weight": torch.ones(2)}, "other.pth")
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=0), "headless")
    timm.models.save_for_hf(timm.create_model("test_resnet"), "empty")
    Path("empty/pytorch_model.bin").unlink()
    Path("strange").mkdir()
    Path("strange/config.json").write_text(json.dumps({"architecture": "resnet9000", "pretrained_cfg": {}}))
    with pytest.raises(TaskError, match=message):
        ImageClassification(**{"images": "." if "checkpoint" in parameters else "", **parameters}).build_model()


def test_jobs_of_others_read_no_weights_outside_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = timm_folder(tmp_path / "outside", "test_resnet")
    monkeypatch.setenv("AUTOTUNE_DATA", str(tmp_path / "data"))
    for checkpoint, weights in ((f"local-dir:{outside}", ""), ("torchvision:alexnet", str(outside / "a.pth"))):
        with pytest.raises(TaskError, match="must be a path inside the workers' folder"):
            vision_of(checkpoint, weights)
