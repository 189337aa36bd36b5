"""How far the outputs of an export may lie from our backend's."""

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace

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
        ("openvino", "openvino", 0.0, True),
        ("openvino", "openvino", 0.1, False),
        ("openvino", "onnxruntime", 1.9, True),
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


def verification(checks: Sequence[verify.ExportCheck]) -> verify.ExportVerification:
    return verify.ExportVerification(
        format="torchao", rounding="none", libraries={}, untimed=None, checks=tuple(checks), hardware="Some CPU"
    )


@pytest.mark.parametrize(
    ("candidate_ms", "full_ms", "holds", "inconclusive"),
    [
        (2.0, 4.0, True, False),
        (3.0, 4.0, False, False),
        (3.0, 4.5, False, False),  # 12.5 % is the same speed
        (3.0, 5.0, False, True),
        (3.0, 3.0, False, True),
        (1.5, 3.0, True, False),  # a ratio that holds, holds at any speed
    ],
)
def test_a_latency_beside_another_speed_of_full_precision_is_inconclusive(
    candidate_ms: float, full_ms: float, holds: bool, inconclusive: bool
) -> None:
    file = SimpleNamespace(measurement=SimpleNamespace(batch_sizes=(1,)))
    found = {
        verify.CANDIDATE_MS: torch.full((20,), candidate_ms),
        verify.REFERENCE_MS: torch.full((8,), full_ms),
    }
    promised = {"latency_ratio": 0.5, "latency_p50_ms": 2.0}
    checks = verify._latency_checks(file, found, promised, 0.525)  # type: ignore[arg-type]
    report = verification(checks)
    assert (report.holds, report.inconclusive) == (holds, inconclusive)
    assert (report.document()["holds"], report.document()["inconclusive"]) == (holds, inconclusive)
    assert repr(report).startswith(report.verdict)
    full = next(check for check in checks if check.name == "full_precision_p50_ms")
    assert (full.expected, full.measured) == (4.0, full_ms)
    if inconclusive:
        assert f"full precision takes {full_ms:.3g} ms here, and took 4 ms" in report.verdict
        assert report.verdict.endswith("quiet machine with Some CPU.")
        wrong = verify.ExportCheck(name="accuracy", expected=0.8, measured=0.5, limit=0.79, holds=False)
        broken = dataclasses.replace(report, checks=(*checks, wrong))
        assert not broken.inconclusive
        assert broken.verdict == "The export does not hold what its map promises."
