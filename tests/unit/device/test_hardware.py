"""What kind of hardware this is, on a real processor and made-up GPUs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers.device import environment
from workers.device.hardware import KIND, kind_of, kinds_here
from workers.device.processor import MASK, this_processor
from workers.errors import PoolError
from workers.pools import ray_nodes
from workers.pools.ray_nodes import look


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KIND, raising=False)


def have_gpus(monkeypatch: pytest.MonkeyPatch, *models: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(models))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(models))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: models[number])


def test_without_a_gpu_it_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch)
    assert kind_of("cpu") == this_processor().kind
    assert kinds_here() == (this_processor().kind,)


def test_the_processor_stays_one_of_its_kinds_beside_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, "H100", "A100")
    assert (kind_of("cpu"), kind_of("cuda")) == (this_processor().kind, "H100")
    assert kinds_here() == (this_processor().kind, "H100", "A100")


def test_features_make_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    here = kind_of("cpu")
    monkeypatch.setenv(MASK, "")
    assert kind_of("cpu") != here


def test_a_name_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, "H100")
    monkeypatch.setenv(KIND, " rack\n two ")
    assert (kind_of("cpu"), kind_of("cuda"), kinds_here()) == ("rack two", "rack two", ("rack two",))
    monkeypatch.setenv(KIND, " ")
    assert kind_of("cuda") == "H100"


def test_environments_record_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.capture(hardware="", backend="x86", device="cpu").kind == this_processor().kind
    have_gpus(monkeypatch, "H100")
    assert environment.capture(hardware="", backend="torchao", device="cuda").kind == "H100"


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a backend run on a GPU, on a node of a cluster."""
    monkeypatch.setattr("workers.backends.build_backend", lambda name: SimpleNamespace(device="cuda"))
    context: Any = SimpleNamespace(get_node_id=lambda: "n1")
    monkeypatch.setattr(ray_nodes.ray, "get_runtime_context", lambda: context)


@pytest.mark.usefixtures("on_cuda")
def test_a_node_tells_the_kind_of_the_device_that_its_workers_have(monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, "H100", "H100")
    with_gpus, without = look("torchao", 1.0), look("torchao", 0.0)
    assert (with_gpus.node_id, with_gpus.kind, without.kind) == ("n1", "H100", this_processor().kind)
    assert with_gpus.kinds == without.kinds == {"H100", this_processor().kind}


@pytest.mark.usefixtures("on_cuda")
def test_a_node_with_gpus_of_two_models_has_no_workers_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpus(monkeypatch, "H100", "A100")
    with pytest.raises(PoolError, match=r"of the kinds A100 and H100, so .* CUDA_VISIBLE_DEVICES"):
        look("torchao", 1.0)
    assert look("torchao", 0.0).kind == this_processor().kind
    monkeypatch.setenv(KIND, "lab")
    assert look("torchao", 1.0).kind == "lab"
