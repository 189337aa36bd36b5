import math

import pytest
import torch
from torch import nn

from search_spaces.choice import CHOICES
from search_spaces.discovery import discover
from search_spaces.quantization_map import ActivationRange
from workers.calibration.calibrate import calibrate
from workers.errors import CalibrationError
from workers.setup import Calibration, CalibrationSettings, ObserverKind


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 2)
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(3, 1)
        self.unused = nn.Linear(3, 1)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.embed(indices)).relu())


def run(model: nn.Module, batches: list[torch.Tensor], kind: ObserverKind = ObserverKind.MINMAX) -> Calibration:
    layers = discover(model, lambda m: m(torch.tensor([0])))
    return calibrate(model, layers, batches, lambda m, batch: m(batch), CalibrationSettings(observer=kind))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_ranges_cover_all_batches() -> None:
    model = Model()
    model.embed.weight.data = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [9.0, 0.0], [100.0, 100.0]])
    calibration = run(model, [torch.tensor([0]), torch.tensor([1, 2])])
    assert calibration.ranges["first"] == ActivationRange(low=-3.0, high=9.0)
    assert calibration.ranges["second"].low == 0.0
    assert calibration.samples == 3
    assert calibration.seconds > 0


def test_only_layers_that_can_be_static_have_a_range() -> None:
    calibration = run(Model(), [torch.tensor([0])])
    assert set(calibration.ranges) == set(calibration.histograms) == {"first", "second"}
    assert sum(calibration.histograms["second"].counts) == 3


def test_model_is_left_without_hooks() -> None:
    model = Model()
    run(model, [torch.tensor([0])])
    assert hooks(model) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_input_that_is_not_finite_names_its_layer(value: float) -> None:
    model = Model()
    model.first.bias.data.fill_(value)
    with pytest.raises(CalibrationError, match="'second' received nan or inf"):
        run(model, [torch.tensor([0])])
    assert hooks(model) == 0


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, dtype=torch.long)]])
def test_no_data_is_refused(batches: list[torch.Tensor]) -> None:
    with pytest.raises(CalibrationError, match=f"no layer received any in {len(batches)} batches"):
        run(Model(), batches)


def test_a_layer_that_no_batch_runs_can_be_anything_but_static() -> None:
    class Routed(Model):
        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            hidden = self.first(self.embed(indices)).relu()
            result: torch.Tensor = self.unused(hidden) if int(indices[0]) == 3 else self.second(hidden)
            return result

    model = Routed()
    layers = {layer.name: layer for layer in discover(model, lambda m: m(torch.tensor([3])))}
    settings = CalibrationSettings(bias_correction=True)
    calibration = calibrate(model, tuple(layers.values()), [torch.tensor([0])], lambda m, batch: m(batch), settings)
    assert set(calibration.ranges) == {"first"}
    refused = {name for name, choice in CHOICES.items() if calibration.refuses(layers["unused"], choice)}
    assert {"int8_static", "fp8_static", "int8_static_smooth"} <= refused
    assert not {"int8_weight_only", "int8_dynamic", "bf16"} & refused
    assert "no calibration batch ran this layer" in str(calibration.refuses(layers["unused"], CHOICES["int8_static"]))
    assert calibration.refuses(layers["first"], CHOICES["int8_static"]) is None


def test_model_of_embeddings_needs_no_data() -> None:
    assert run(nn.Sequential(nn.Embedding(4, 2)), []).ranges == {}


def test_layer_called_several_times_is_counted_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.tensor([[5.0]])) + self.layer(torch.tensor([[-7.0]]))

    assert run(Twice(), [torch.tensor([0])]).ranges["layer"] == ActivationRange(low=-7.0, high=5.0)
