"""How far the outputs of an export may lie from our backend's."""

import math

import pytest
import torch

from autotune.exporters import verify
from workers.task import Task
from workers.tasks import build_task


@pytest.fixture
def embedder() -> Task:
    """A task whose outputs are compared by angle; the divergence of two is 1 - cos."""
    return build_task("minilm-lee", {})


def at(divergence: float) -> torch.Tensor:
    angle = math.acos(1.0 - divergence)
    return torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("format_name", "backend", "apart", "holds"),
    [
        ("torchao", "x86", 1.9, True),
        ("torchao", "x86", 2.1, False),
        ("torchao", "torchao", 1.9, True),
        ("compressed-tensors", "x86", 2.4, True),
        ("compressed-tensors", "x86", 2.6, False),
        ("onnxruntime", "x86", 1.9, True),
        ("onnxruntime", "onnxruntime", 0.0, True),
        ("onnxruntime", "onnxruntime", 0.1, False),
    ],
)
def test_outputs_may_lie_apart_by_what_the_format_rounds(
    embedder: Task, format_name: str, backend: str, apart: float, holds: bool
) -> None:
    own = 0.001
    full, ours = at(0.0), at(own)
    # On the other side of ours, so that its divergence from ours is known too.
    turn = math.acos(1.0 - own) + math.acos(1.0 - apart * own)
    actual = torch.tensor([[math.cos(turn), math.sin(turn)]], dtype=torch.float64)
    limit = verify._apart(format_name, backend)
    check, _ = verify._output_checks(embedder, actual, ours, full, limit)
    assert check.measured == pytest.approx(apart * own, abs=1e-9)
    assert check.holds is holds
