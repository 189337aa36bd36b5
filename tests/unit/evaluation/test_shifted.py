"""Shifted data, from the worker to what the search believes; the store and the pages have tests of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from autotune.errors import JobSpecError
from autotune.jobs.spec import JobSpec
from autotune.metrics.catalog import Constraint
from autotune.metrics.from_measurement import Reference, figures_of
from autotune.metrics.objectives import Objectives
from autotune.planner.next_map import Planner
from autotune.planner.posterior import Posterior
from autotune.planner.prior import Prior
from autotune.search.early_stopping import quality_limits
from autotune.search.run import _check_figures
from search_spaces.quantization_map import ActivationRange
from workers.calibration.calibrate import clipped_shares
from workers.candidate import Candidate, QualityLimit
from workers.evaluation.evaluator import Evaluator
from workers.setup import MeasurementSettings, WorkerSetup
from workers.task import OutputKind, Split
from workers.tasks import register
from workers.timing.estimates import Figure


@register("shifting")
@dataclass(frozen=True)
class Shifting:
    """Two layers on inputs that grow fourfold."""

    has_shifted: bool = True
    output_kind = OutputKind.LOGITS

    def build_model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()

    def calibration(self) -> Sequence[torch.Tensor]:
        return [torch.linspace(-1.0, 1.0, 256).reshape(16, 16)]

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return [4.0 * self.calibration()[0] if split is Split.SHIFTED else self.calibration()[0]]

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(batch)
        return outputs

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        return {Split.EVALUATION: 0.9, Split.HELD_OUT: 0.8, Split.SHIFTED: 0.5}[split]

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        return torch.ones(batch_size, 16)


def evaluator(*, has_shifted: bool = True) -> Evaluator:
    settings = MeasurementSettings(threads=1, repeats=20, warmup_s=0.0)
    return Evaluator(WorkerSetup(task="shifting", task_parameters={"has_shifted": has_shifted}, measurement=settings))


def test_share_outside_the_range_is_counted() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    batches = [torch.tensor([[-3.0, -1.0, 0.0, 2.0]]), torch.tensor([[2.5, float("nan"), 1.0, 1.0]])]
    ranges = {"0": ActivationRange(low=-1.0, high=2.0)}
    assert clipped_shares(model, ranges, batches, lambda m, batch: m(batch)) == {"0": 3 / 8}
    assert not model[0]._forward_pre_hooks


def test_worker_measures_shifted_data_and_describes_the_clipping() -> None:
    found = evaluator()
    clipped = found.description.calibration.clipped
    assert clipped is not None
    assert clipped["0"] == pytest.approx(0.75, abs=0.02)
    dynamic = found.measure(Candidate(number=0, choices={}))
    assert dynamic.shifted == (0.5, 0.0)


def test_a_task_without_shifted_data_has_no_such_figures() -> None:
    found = evaluator(has_shifted=False)
    assert found.description.calibration.clipped is None
    assert found.measure(Candidate(number=0, choices={})).shifted is None


UNREACHABLE = QualityLimit(least_accuracy=2.0)


@pytest.mark.parametrize("limits", [{Split.SHIFTED: UNREACHABLE}, {Split.EVALUATION: UNREACHABLE}])
def test_latency_is_not_measured_if_quality_breaks_a_limit(limits: dict[Split, QualityLimit]) -> None:
    found = evaluator().measure(Candidate(number=0, choices={}, limits=limits))
    assert found.latency == ()
    assert (found.shifted is not None) == (Split.SHIFTED in limits)


def test_figures_are_relative_to_full_precision_on_shifted_data() -> None:
    measurement = replace(evaluator().measure(Candidate(number=0, choices={})), shifted=(0.3, 0.25))
    figures = figures_of(measurement, Reference(accuracy=0.9, latency_p50_ms=1.0, shifted_accuracy=0.4))
    assert figures["shifted_accuracy"].value == 0.3
    assert figures["shifted_accuracy_drop"].value == pytest.approx(0.25)
    assert figures["shifted_divergence"].value == 0.25


def test_floor_is_the_stricter_of_both_constraints() -> None:
    limits = [
        Constraint(metric="shifted_accuracy", limit=0.3, at_most=False),
        Constraint(metric="shifted_accuracy_drop", limit=0.1, at_most=True),
    ]
    reference = Reference(accuracy=0.9, latency_p50_ms=1.0, shifted_accuracy=0.5)
    found = quality_limits(limits, reference)
    assert found[Split.SHIFTED].least_accuracy == pytest.approx(0.45)
    assert found[Split.EVALUATION] == QualityLimit()


@pytest.mark.parametrize(
    "job",
    [{"objectives": ["latency_p50_ms", "shifted_accuracy"]}, {"constraints": {"shifted_accuracy_drop": {"max": 0.1}}}],
)
def test_a_job_that_goes_by_shifted_data_needs_a_task_with_them(job: dict[str, object]) -> None:
    spec = JobSpec.parse({"name": "shifted", "task": {"name": "shifting"}, **job})
    _check_figures(spec, evaluator().description)
    with pytest.raises(JobSpecError, match="needs a task with shifted data, but task 'shifting' has none; use acc"):
        _check_figures(spec, evaluator(has_shifted=False).description)


#: Six equal groups: static is faster by little, dynamic as good on both data.
CHOICES = [("fp32", "int8_static", "int8_dynamic")] * 6
CLEAN = np.tile([0.0, 1e-4, 1e-4], (6, 1))
TRUE_SHIFTED = np.tile([0.0, 1e-1, 1e-4], (6, 1)) * np.arange(1, 7)[:, None]
LATENCY = np.tile([0.0, -0.10, -0.09], (6, 1))
EXPECTED = Prior(
    divergence=CLEAN * np.arange(1, 7)[:, None], latency=LATENCY, memory_mib=np.ones((6, 3)),
    fixed_divergence=0.0, fixed_latency=0.0, fixed_memory_mib=0.0, probed=True,
)  # fmt: skip
FULL = {
    "latency_p50_ms": Figure(value=10.0), "latency_ratio": Figure(value=1.0), "accuracy": Figure(value=0.9),
    "shifted_accuracy": Figure(value=0.8), "weight_memory_mib": Figure(value=6.0),
}  # fmt: skip
UNIFORM = np.repeat(np.arange(3)[:, None], 6, axis=1)


def measured(maps: np.ndarray) -> list[dict[str, Figure]]:
    rows = np.arange(6)
    found = []
    for each in maps:
        clean, shifted = float(EXPECTED.divergence[rows, each].sum()), float(TRUE_SHIFTED[rows, each].sum())
        ratio = 1.0 + float(LATENCY[rows, each].sum())
        values = {
            "divergence": clean, "accuracy_drop": clean, "accuracy": 0.9 * (1 - clean), "latency_ratio": ratio,
            "latency_p50_ms": 10.0 * ratio, "shifted_divergence": shifted, "shifted_accuracy_drop": shifted / 10,
            "shifted_accuracy": 0.8 * (1 - shifted / 10), "weight_memory_mib": 6.0,
        }  # fmt: skip
        found.append({name: Figure(value=value) for name, value in values.items()})
    return found


def test_uniform_maps_show_what_shifted_data_does_to_all_others() -> None:
    posterior = Posterior(EXPECTED, CHOICES, ["shifted_accuracy", "accuracy"])
    posterior.full_precision = FULL
    posterior.observe(UNIFORM, measured(UNIFORM))
    others = np.random.default_rng(0).integers(3, size=(40, 6))
    found, truth = posterior.predict(others), measured(others)
    np.testing.assert_allclose(
        found["shifted_divergence"], [each["shifted_divergence"].value for each in truth], rtol=0.05, atol=1e-4
    )
    np.testing.assert_allclose(found["shifted_accuracy"], [each["shifted_accuracy"].value for each in truth], rtol=0.02)
    assert (found["divergence"] < 1e-2).all()
    assert posterior.costs(split=Split.SHIFTED)[0][:, 1].min() > 50 * posterior.costs()[0][:, 1].max()


def test_the_planner_turns_to_dynamic_where_shifted_accuracy_counts() -> None:
    def proposed(*constraints: Constraint) -> np.ndarray:
        planner = Planner(EXPECTED, CHOICES, Objectives.named(["latency_p50_ms", "accuracy"]), constraints, seed=0)
        planner.set_full_precision(FULL)
        figures = measured(UNIFORM)
        kept = [all(c.violation(each[c.metric].value) <= 0 for c in constraints) for each in figures]
        planner.observe(UNIFORM, figures, kept)
        maps = [planner.propose(UNIFORM[:0]) for _ in range(1)]
        return np.array([each for each in maps if each is not None])

    assert (proposed() == 1).any()
    limited = proposed(Constraint(metric="shifted_accuracy_drop", limit=0.001, at_most=True))
    assert len(limited)
    assert (limited != 1).all()
