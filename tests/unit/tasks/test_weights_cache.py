"""Trained weights on disk."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from workers.tasks.weights_cache import cache_folder, restore_or_train


class Training:
    """Sets every weight to one value, and counts how often it was asked to."""

    def __init__(self, value: float = 3.0) -> None:
        self.value = value
        self.runs = 0

    def __call__(self, model: nn.Module) -> None:
        self.runs += 1
        for parameter in model.parameters():
            nn.init.constant_(parameter, self.value)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weight(name: str, training: Training) -> float:
    model = nn.Linear(2, 2)
    restore_or_train(model, name, training)
    assert len(model.weight.unique()) == 1
    return model.weight[0, 0].item()


def test_trains_once(folder: Path) -> None:
    training = Training()
    assert [weight("linear", training), weight("linear", training)] == [3.0, 3.0]
    assert training.runs == 1
    assert [path.name for path in folder.iterdir()] == ["linear.safetensors"]


def test_another_name_is_another_model() -> None:
    assert weight("one", Training(1.0)) == 1.0
    assert weight("two", Training(2.0)) == 2.0


@pytest.mark.parametrize("content", [b"", b"not weights", b"\xff" * 100])
def test_damaged_file_is_trained_again(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "linear.safetensors").write_bytes(content)
    training = Training()
    assert weight("linear", training) == 3.0
    assert weight("linear", training) == 3.0
    assert training.runs == 1


def test_cache_that_cannot_be_written_costs_only_time(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    assert weight("linear", Training()) == 3.0


def test_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(weights: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("workers.tasks.weights_cache.save_file", full_disk)
    assert weight("linear", Training()) == 3.0
    assert list(folder.iterdir()) == []


def test_workers_that_train_at_once_do_not_disturb_each_other(folder: Path) -> None:
    together = threading.Barrier(4, timeout=120)

    def train(model: nn.Module) -> None:
        together.wait()
        Training()(model)

    def work(_: int) -> float:
        model = nn.Linear(2, 2)
        restore_or_train(model, "linear", train)
        return model.weight[0, 0].item()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [3.0] * 4
    assert [path.name for path in folder.iterdir()] == ["linear.safetensors"]
    untouched = Training(7.0)
    assert (weight("linear", untouched), untouched.runs) == (3.0, 0)


def test_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AUTOTUNE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "quant-autotune"
    monkeypatch.setenv("AUTOTUNE_CACHE", "~/weights")
    assert cache_folder() == tmp_path / "weights"
