"""Compiled models are tuned as the modules that were compiled."""

import pytest
import torch
from torch import nn

from search_spaces.discovery import discover
from workers.model.compiled import uncompiled
from workers.model.fingerprint import fingerprint
from workers.model.full_precision import full_precision_model
from workers.tasks.generic import GenericTask

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def compiled_whole() -> nn.Module:
    whole = torch.compile(plain(), backend="eager")
    assert isinstance(whole, nn.Module)
    return whole


def compiled_inside() -> nn.Module:
    model = plain()
    model[0] = torch.compile(model[0], backend="eager")
    return model


def compiled_in_place() -> nn.Module:
    model = plain()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("build", [compiled_whole, compiled_inside, compiled_in_place, plain])
def test_a_compiled_model_is_tuned_as_the_model_that_was_compiled(build: type[nn.Module]) -> None:
    model = full_precision_model(GenericTask(build, [X, X, X]))
    assert fingerprint(model) == fingerprint(plain())
    assert [layer.name for layer in discover(model, lambda m: m(X)) if layer.frozen_reason is None] == ["0", "2"]
    with torch.inference_mode():
        before = model(X)
        model[0] = nn.Identity()
        assert not torch.equal(model(X), before), "a layer that is replaced no longer runs"


def test_a_plain_model_stays_the_same_object() -> None:
    model = plain()
    assert uncompiled(model) is model
