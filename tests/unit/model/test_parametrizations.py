"""Parametrized tensors become plain ones, with the same outputs."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from search_spaces.discovery import discover
from workers.errors import TaskError
from workers.model.fingerprint import fingerprint
from workers.model.full_precision import full_precision_model, identified_model
from workers.model.parametrizations import without_parametrizations
from workers.task import in_evaluation_mode
from workers.tasks.generic import GenericTask

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Doubled(nn.Module):
    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return 2.0 * value


def old(norm: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def apply(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(layer)

    return apply


def both(layer: nn.Module) -> nn.Module:
    parametrizations.weight_norm(layer)
    return parametrize.register_parametrization(layer, "bias", Doubled())


CHANGES = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two tensors": both,
    "old weight norm": old(nn.utils.weight_norm),
    "old spectral norm": old(nn.utils.spectral_norm),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.l1_unstructured(prune.random_unstructured(layer, "weight", 0.2), "weight", 0.5),
}


def build(change: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        change(layer)
        return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tensors_become_parameters_with_the_same_outputs(
    change: Callable[[nn.Module], nn.Module], trainable: bool
) -> None:
    model = build(change).requires_grad_(trainable)
    with torch.inference_mode():
        before = model(X)
    plain = without_parametrizations(model)
    with torch.inference_mode():
        assert torch.equal(plain(X), before)
    assert type(plain[0]) is nn.Linear
    assert {name for name, _ in plain.named_parameters()} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not list(plain.buffers())
    assert [layer.frozen_reason for layer in discover(plain, lambda m: m(X))] == [None, None]
    copy.deepcopy(plain)


def test_tensors_that_parametrizations_share_keep_their_values() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    model[1].weight = model[0].weight
    for layer in model:
        parametrize.register_parametrization(layer, "weight", Doubled())
    with torch.inference_mode():
        before = model(X)
        assert torch.equal(without_parametrizations(model)(X), before)


def test_a_parametrized_buffer_stays_a_buffer() -> None:
    model = nn.BatchNorm1d(8).eval()
    parametrize.register_parametrization(model, "running_mean", Doubled())
    assert "running_mean" in dict(without_parametrizations(model).named_buffers())


def test_the_fingerprint_is_that_of_the_model_as_it_is_built() -> None:
    task = GenericTask(lambda: build(parametrizations.weight_norm), [X, X, X])
    model, identity = identified_model(task)
    assert identity == fingerprint(build(parametrizations.weight_norm))
    assert not parametrize.is_parametrized(model[0])
    assert not parametrize.is_parametrized(full_precision_model(task)[0])


def test_an_exported_program_is_refused_with_the_way_out() -> None:
    program = torch.export.export(build(lambda layer: layer), (X,))
    for model in (program, program.module()):
        with pytest.raises(TaskError, match=r"exported program.*build the nn.Module that it was exported from"):
            in_evaluation_mode(model)
    with pytest.raises(TaskError, match=r"must build an nn\.Module, but this one built a dict"):
        in_evaluation_mode({})
