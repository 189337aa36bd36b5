"""Sensitivities against what they estimate: exact quadratic forms, and layers changed one at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.choice import FULL_PRECISION
from search_spaces.discovery import discover
from workers import quality
from workers.backends.cpu.backend import CpuBackend
from workers.evaluation.evaluator import Evaluator
from workers.model.prepared import PreparedModel
from workers.sensitivity import estimate as estimation
from workers.sensitivity.estimate import MOST, Sensitivity, estimate
from workers.sensitivity.gradient import _products, random_vector
from workers.setup import Estimator, MeasurementSettings, WorkerSetup
from workers.task import OutputKind, Split

#: Choices every layer below can take, one with small and one with large errors.
CHOICES = ("int8_weight_only", "int4_weight_only")
#: Random vectors where the expectation is compared: a standard error of 3 % of one product's square.
MANY = 2000


@dataclass
class Given:
    """A model with its batches; all that sensitivities need of a task."""

    model: nn.Module
    batches: Sequence[torch.Tensor]
    output_kind: OutputKind = OutputKind.EMBEDDING

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(batch)
        return outputs

    def prepared(self) -> PreparedModel:
        layers = discover(self.model.eval(), lambda model: model(self.batches[0]))
        return PreparedModel(self.model, layers, CpuBackend(), {})


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given(build: Callable[[], nn.Module], *batches: torch.Tensor, kind: OutputKind = OutputKind.EMBEDDING) -> Given:
    torch.manual_seed(0)
    return Given(build(), batches or (normal(16, 32),), kind)


def run(
    task: Given,
    prepared: PreparedModel | None = None,
    choices: Sequence[str] = CHOICES,
    most_bytes: int = estimation.RECORDED_BYTES,
) -> Sensitivity:
    prepared = prepared or task.prepared()
    names = [name for name, sizes in prepared.layer_bytes().items() if len(sizes) > 1]
    return estimate(task, prepared, dict.fromkeys(names, choices), task.batches, most_bytes=most_bytes)  # type: ignore[arg-type]


def outputs(task: Given, prepared: PreparedModel, names: Mapping[str, str]) -> torch.Tensor:
    prepared.apply(names)
    with torch.inference_mode():
        return torch.cat([task.forward(prepared.model, batch) for batch in task.batches]).double()


def quadratic_form(task: Given, prepared: PreparedModel, layer: str, choice: str) -> float:
    """Half of e^T H e for the change e of the outputs, H the curvature of 1 - cos: in closed form, no chance in it."""
    exact = outputs(task, prepared, {})
    error = outputs(task, prepared, {layer: choice}) - exact
    length = exact.norm(dim=-1)
    along = (error * exact).sum(dim=-1) / length
    return float((0.5 * (error.square().sum(dim=-1) - along.square()) / length.square()).mean())


def hessian_of_cosine(y: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.autograd.functional.hessian(lambda x: 1.0 - F.cosine_similarity(x, y, dim=0), y)
    return found


def hessian_of_kullback_leibler(y: torch.Tensor) -> torch.Tensor:
    def divergence(x: torch.Tensor) -> torch.Tensor:
        return F.kl_div(F.log_softmax(x, dim=0), F.log_softmax(y, dim=0), reduction="sum", log_target=True)

    found: torch.Tensor = torch.autograd.functional.hessian(divergence, y)
    return found


@pytest.mark.parametrize(
    ("kind", "hessian"),
    [(OutputKind.EMBEDDING, hessian_of_cosine), (OutputKind.LOGITS, hessian_of_kullback_leibler)],
)
@pytest.mark.parametrize("between", [1, 3])
def test_random_vectors_have_the_curvature_as_covariance(
    kind: OutputKind, hessian: Callable[[torch.Tensor], torch.Tensor], between: int
) -> None:
    y = torch.tensor([1.5, -0.5, 0.25, 0.75])
    many = y.expand(200_000, between, 4) if between > 1 else y.expand(200_000, 4)
    vectors = random_vector(many, kind, torch.Generator().manual_seed(0)).flatten(1)
    covariance = vectors.T @ vectors / len(vectors)
    expected = torch.block_diag(*[hessian(y)] * between) / between
    torch.testing.assert_close(covariance, expected, rtol=0.0, atol=0.02 * float(expected.diagonal().max()))


def test_no_random_vector_moves_what_the_divergence_does_not_see() -> None:
    y = normal(50, 4)
    along = random_vector(y, OutputKind.EMBEDDING, torch.Generator().manual_seed(0)) * y  # their lengths
    torch.testing.assert_close(along.sum(dim=-1), torch.zeros(50), rtol=0.0, atol=1e-5)
    shift = random_vector(y, OutputKind.LOGITS, torch.Generator().manual_seed(0))  # a constant in all logits
    torch.testing.assert_close(shift.sum(dim=-1), torch.zeros(50), rtol=0.0, atol=1e-5)


def test_curvatures_are_the_ones_of_the_papers() -> None:
    y = torch.tensor([1.5, -0.5, 0.25, 0.75])
    unit, p = y / y.norm(), F.softmax(y, dim=0)
    torch.testing.assert_close(hessian_of_cosine(y), (torch.eye(4) - torch.outer(unit, unit)) / y.square().sum())
    torch.testing.assert_close(hessian_of_kullback_leibler(y), torch.diag(p) - torch.outer(p, p))


def test_zero_embedding_has_no_direction_to_lose() -> None:
    padded = torch.stack([torch.zeros(4), torch.ones(4)]).unsqueeze(0)  # (1, 2, 4): a token of padding, a real one
    vector = random_vector(padded, OutputKind.EMBEDDING, torch.Generator().manual_seed(0))
    assert torch.equal(vector[0, 0], torch.zeros(4))
    assert vector[0, 1].abs().max() > 0


class Twice(nn.Module):
    """One layer on both halves of the input. They are alike, so its two errors add up instead of averaging out."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(32, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.shared(x) + self.shared(x + 0.1))
        return outputs


class Positions(nn.Module):
    """A table of positions, whose output has no samples, beside layers whose output has; outputs (samples, 5, 16).

    Its rows are equal, so their errors add up where the positions mix.
    """

    def __init__(self) -> None:
        super().__init__()
        self.position, self.first, self.last = nn.Embedding(5, 32), nn.Linear(32, 32), nn.Linear(32, 16)
        self.position.weight = nn.Parameter(self.position.weight[:1].repeat(5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x) + self.position(torch.arange(5))
        outputs: torch.Tensor = self.last(hidden + hidden.mean(dim=1, keepdim=True))
        return outputs


class SharedTable(nn.Module):
    """A table called for every sample and once for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(5, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        per_sample = self.table((x[..., 0] > 0).long())  # (samples, 32)
        outputs: torch.Tensor = self.last(per_sample + self.table(torch.arange(3)).sum(dim=0))
        return outputs


LINEAR: list[Callable[[], Given]] = [
    lambda: given(lambda: nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 16))),
    lambda: given(Twice),
    lambda: given(Positions, normal(16, 5, 32)),
    lambda: given(SharedTable),
    lambda: given(lambda: nn.Sequential(nn.Linear(32, 16)), normal(8, 32), normal(8, 32, seed=1)),
]


@pytest.mark.parametrize("build", LINEAR, ids=["chain", "twice", "positions", "shared-table", "two-batches"])
def test_linear_models_get_their_exact_quadratic_form(
    build: Callable[[], Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimation, "_VECTORS", MANY)
    # Kernels may round in another way for a row or two.
    monkeypatch.setattr(estimation, "_SAMPLES_AT_ONCE", 16)
    task = build()
    prepared = task.prepared()
    found = run(task, prepared)
    assert found.estimator is Estimator.GRADIENT
    assert found.samples == 16
    assert {layer for layer, _ in found.divergence} == set(prepared.layer_bytes())
    for (layer, choice), divergence in found.divergence.items():
        assert divergence == pytest.approx(quadratic_form(task, prepared, layer, choice), rel=0.12), (layer, choice)


class NoGradients(Twice):
    """A model that forbids gradients, as generated code and user code do."""

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class IdleFirst(Twice):
    """A layer whose output is thrown away, before the others."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.idle(x)
        return super().forward(x)


@pytest.mark.parametrize("build", [IdleFirst, NoGradients], ids=["gradients", "no-gradients"])
def test_layers_in_turns_give_the_same(build: type[nn.Module]) -> None:
    task, passes = given(build, normal(8, 32), normal(8, 32, seed=1)), []
    prepared = task.prepared()
    task.model.register_forward_hook(lambda *_: passes.append(1))
    at_once = run(task, prepared)
    passes_at_once = len(passes)
    in_turns = run(task, prepared, most_bytes=1)
    assert in_turns.estimator is at_once.estimator
    assert in_turns.divergence == pytest.approx(at_once.divergence, rel=1e-6)
    turns = len({layer for layer, _ in at_once.divergence})
    parts = sum(map(len, task.batches)) // estimation._SAMPLES_AT_ONCE
    assert len(passes) - 2 * passes_at_once == parts * (turns - 1)


class InPlace(nn.Module):
    """What a layer took and what it returned changes in place after the call, or does not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 16)
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        residual = self.second(hidden)
        hidden = hidden.add_(residual) if self.in_place else hidden + residual
        outputs: torch.Tensor = self.last(F.relu(hidden, inplace=self.in_place))
        return outputs


def test_changes_in_place_after_a_layer_do_not_matter() -> None:
    found, expected = (run(given(lambda wanted=wanted: InPlace(wanted))) for wanted in (True, False))
    assert found.estimator is expected.estimator is Estimator.GRADIENT
    assert found.divergence == pytest.approx(expected.divergence, rel=1e-6)


def test_parameters_require_gradients_as_before() -> None:
    task = given(Twice)
    task.model.get_parameter("shared.weight").requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in task.model.named_parameters()}
    assert set(before.values()) == {True, False}
    assert run(task).estimator is Estimator.GRADIENT
    assert {name: parameter.requires_grad for name, parameter in task.model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in task.model.parameters())


class Breaks(nn.Module):
    """A model that raises once a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.broken = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.first(x)
        if self.broken:
            raise ValueError("broken")
        return outputs


def test_model_that_raises_is_left_as_it_was() -> None:
    task = given(Breaks)
    prepared = task.prepared()
    task.model.broken = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="broken"):
        run(task, prepared)
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    assert not any(module._forward_hooks for module in task.model.modules())


class Idle(nn.Module):
    """A layer that runs and whose output is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.last = nn.Linear(32, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.idle(x)
        outputs: torch.Tensor = self.last(x)
        return outputs


def test_layer_the_outputs_do_not_depend_on_costs_nothing() -> None:
    found = run(given(Idle))
    assert found.estimator is Estimator.GRADIENT
    assert all((value == 0.0) == (layer == "idle") for (layer, _), value in found.divergence.items())


def test_full_precision_is_installed_and_unhooked_afterwards() -> None:
    for task in (given(Twice), given(NoGradients)):
        prepared = task.prepared()
        before = dict(prepared.model.named_modules())
        prepared.apply({"shared": "int4_weight_only"})
        run(task, prepared)
        assert dict(prepared.model.named_modules()) == before
        assert not any(module._forward_hooks for module in prepared.model.modules())


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize(("task", "every"), [("digits-cnn", 1), ("digits-vit", 6)])
def test_trained_models_rank_as_one_layer_at_a_time_does(task: str, every: int) -> None:
    evaluator = Evaluator(WorkerSetup(task=task, measurement=MeasurementSettings(threads=1, repeats=20)))
    probes = evaluator.probe()
    assert probes.estimator is Estimator.GRADIENT
    looked_at = [probe for probe in probes.layers if probe.choice != FULL_PRECISION.name][::every]
    true = [evaluator.quality.of({probe.layer: probe.choice}, Split.EVALUATION)[1] for probe in looked_at]
    assert len(looked_at) > 20
    assert rank_correlation([probe.divergence for probe in looked_at], true) > 0.9
    # Not only the order is right: so is the size, up to the chance in 48 products.
    ratios = [probe.divergence / divergence for probe, divergence in zip(looked_at, true, strict=True)]
    assert 0.7 < np.median(ratios) < 1.4


@pytest.mark.parametrize("kind", OutputKind)
def test_without_gradients_the_layers_share_what_the_uniform_map_diverges(
    kind: OutputKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimation, "_SAMPLES_AT_ONCE", 16)
    task = given(NoGradients, kind=kind)
    prepared = task.prepared()
    found = run(task, prepared)
    assert found.estimator is Estimator.LOCAL
    assert found.samples == 16
    for choice in CHOICES:
        reference = outputs(task, prepared, {})
        uniform = outputs(task, prepared, dict.fromkeys(("shared", "last"), choice))
        expected = float(quality.divergence(uniform, reference, kind).mean())
        shares = [value for (_, name), value in found.divergence.items() if name == choice]
        assert min(shares) > 0.0
        assert sum(shares) == pytest.approx(expected, rel=1e-3)


class Overflows(nn.Module):
    """A layer with a weight that is infinite in bf16, and healthy neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.large, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 16)
        with torch.no_grad():
            self.large.weight[0, 0] = torch.finfo(torch.float32).max

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden = torch.cat([1e-38 * hidden[..., :1], hidden[..., 1:]], dim=-1)
        outputs: torch.Tensor = self.last(self.large(hidden))
        return outputs


class OverflowsWithoutGradients(Overflows):
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ("build", "estimator"), [(Overflows, Estimator.GRADIENT), (OverflowsWithoutGradients, Estimator.LOCAL)]
)
def test_layer_that_overflows_is_finite_and_worst(build: type[nn.Module], estimator: Estimator) -> None:
    task = given(build)
    prepared = task.prepared()
    lacking = prepared.refusals("large").get("bf16")
    if lacking is not None:
        pytest.skip(lacking)
    assert not outputs(task, prepared, {"large": "bf16"}).isfinite().all()
    found = run(task, prepared, ["bf16"])
    assert found.estimator is estimator
    assert found.divergence["large", "bf16"] == MOST == 1e6
    assert all(math.isfinite(found.divergence[layer, "bf16"]) for layer in ("first", "last"))
    assert 0.0 < found.divergence["last", "bf16"] < 0.1


def test_an_estimate_ends_after_the_first_part_that_exhausts_its_seconds() -> None:
    task = given(Twice)
    prepared = task.prepared()
    names = dict.fromkeys(prepared.layer_bytes(), CHOICES)
    found = estimate(task, prepared, names, task.batches, budget_s=0.0)  # type: ignore[arg-type]
    assert found.samples == estimation._SAMPLES_AT_ONCE
    assert set(found.divergence) == {(layer, choice) for layer in names for choice in CHOICES}


@pytest.mark.parametrize("build", [Twice, NoGradients], ids=["gradients", "no-gradients"])
def test_layers_that_rounding_does_not_change_cost_nothing(build: type[nn.Module]) -> None:
    def zeros() -> nn.Module:
        model = build()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        return model

    assert set(run(given(zeros, kind=OutputKind.LOGITS)).divergence.values()) == {0.0}


class Pairs(Given):
    """Takes a batch with a table beside it, which has another length."""

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        outputs: torch.Tensor = model(batch[0] + batch[1].sum(dim=0))
        return outputs


def test_batches_that_cannot_be_cut_are_used_whole() -> None:
    batches = [(normal(8, 32, seed=seed), 0.01 * normal(3, 32)) for seed in range(3)]
    torch.manual_seed(0)
    task = Pairs(Twice(), batches)  # type: ignore[arg-type]
    layers = discover(task.model.eval(), lambda model: task.forward(model, batches[0]))
    found = run(task, PreparedModel(task.model, layers, CpuBackend(), {}))
    assert found.samples == 16, "the twelve that are needed, in whole batches of eight"


def test_products_are_taken_by_sample_where_outputs_have_samples() -> None:
    gradients, error = normal(2, 3, 4, 5), normal(3, 4, 5, seed=1)
    expected = (gradients * error).sum(dim=(2, 3))
    torch.testing.assert_close(_products([*gradients, None], error, 3), torch.cat([expected, torch.zeros(1, 3)]))
    for one in (error, normal(3, seed=1)):  # of another number of samples, and of none
        several = normal(2, *one.shape)
        found = _products(list(several), one, 7 if one.dim() > 1 else 3)
        torch.testing.assert_close(found, (several * one).flatten(1).sum(dim=1, keepdim=True))
