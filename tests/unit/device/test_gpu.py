"""What is recorded of a GPU, and which lock it has, on a made-up one."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers.device import environment, gpu
from workers.timing import device_lock
from workers.timing.device_lock import DeviceLock


@pytest.fixture(autouse=True)
def h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\nGCC version: 12\n")
    monkeypatch.setattr(gpu, "_DRIVER", version)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="5f1d", total_memory=80 << 30)
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)", "580.65.06"),
        ("GCC version:  gcc version 12.3.0", None),
    ],
)
def test_driver_version_is_read_from_its_kernel_module(text: str, version: str | None) -> None:
    assert gpu.driver_version(text) == version


def test_environment_records_the_gpu() -> None:
    found = environment.capture(hardware=gpu.hardware(), backend="torchao", device="cuda")
    assert found.hardware == "NVIDIA H100 80GB HBM3, compute capability 9.0"
    assert found.versions.items() >= {"cuda": "13.0", "nvidia-driver": "535.183.01"}.items()


def test_environment_of_the_cpu_knows_no_gpu() -> None:
    assert not {"cuda", "nvidia-driver"} & set(environment.capture(hardware="", backend="x86", device="cpu").versions)


def test_each_gpu_has_a_lock_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_lock.tempfile, "gettempdir", lambda: str(tmp_path))
    for uuid in ("5f1d", "other"):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda uuid=uuid: SimpleNamespace(uuid=uuid))
        with DeviceLock("cuda").exclusive(), DeviceLock("cpu").exclusive():
            pass
    names = {path.name for path in tmp_path.glob("*.lock")}
    devices = ("cpu", "cuda-5f1d", "cuda-other")
    assert names == {f"quant-autotune-{device}{lock}.lock" for device in devices for lock in ("", "-turn")}


def test_run_of_the_gpu_tests_is_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(Path(__file__).parents[2] / "record_gpu.py"))["main"]
    written = tmp_path / "gpu-tests.json"

    def run(arguments: list[str], plugins: list[Any]) -> int:
        assert arguments == ["-m", "gpu", "-x"]
        for when, outcome in (("setup", "skipped"), ("setup", "passed"), ("call", "passed"), ("call", "failed")):
            plugins[0].pytest_runtest_logreport(SimpleNamespace(when=when, outcome=outcome))
        return 1

    monkeypatch.setattr(pytest, "main", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(written, "-x") == 1
    assert not written.exists()
    assert "nothing was run" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(written, "-x") == 1
    found = json.loads(written.read_text())
    assert found["hardware"] == "NVIDIA H100 80GB HBM3, compute capability 9.0"
    assert found["memory_mib"] == 80 << 10
    assert found["versions"].keys() >= {"torch", "torchao", "cuda", "nvidia-driver", "quant-autotune"}
    assert found["tests"] == {"passed": 1, "failed": 1, "skipped": 1}
