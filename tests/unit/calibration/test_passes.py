"""The passes of a calibration: which there are, what each one reports, and what it may cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search_spaces.discovery import discover
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange
from workers.calibration.calibrate import calibrate, calibrated, clipped_shares, with_moments, with_smoothing
from workers.calibration.significant_digits import shortened
from workers.progress import Stage, Step
from workers.setup import CalibrationSettings, ObserverKind
from workers.task import OutputKind, Split

FEATURES = 8


def inputs(count: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(count, 4, FEATURES, generator=torch.Generator().manual_seed(seed)))


@dataclass(frozen=True)
class Data:
    """Three batches to calibrate on, and two that are shifted."""

    has_shifted: bool = True
    output_kind = OutputKind.LOGITS

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, 6), nn.ReLU(), nn.Linear(6, 3)).eval()

    def calibration(self) -> Sequence[torch.Tensor]:
        return inputs(3)

    def evaluation(self, split: Split) -> Sequence[torch.Tensor]:
        return [10.0 * x for x in inputs(2, seed=1)] if split is Split.SHIFTED else inputs(1)

    def forward(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = model(batch)
        return outputs

    def accuracy(self, outputs: torch.Tensor, split: Split) -> float:
        raise AssertionError("calibration judges nothing")

    def latency_batch(self, batch_size: int) -> torch.Tensor:
        raise AssertionError("calibration times nothing")


def layers_of(model: nn.Module) -> Sequence[Layer]:
    return discover(model, lambda m: m(inputs(1)[0]))


@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("has_shifted", [False, True])
def test_every_batch_of_every_pass_is_reported(smoothing: bool, moments: bool, has_shifted: bool) -> None:
    task, steps = Data(has_shifted), list[Step]()
    model = task.build_model()
    settings = CalibrationSettings(smoothing=smoothing, moments=moments)
    found = calibrated(task, model, layers_of(model), settings, {}, steps.append)
    total = 3 * (1 + smoothing + moments) + 2 * has_shifted
    assert steps == [Step(stage=Stage.CALIBRATING, done=done, total=total) for done in range(total + 1)]
    assert found.samples == 3 * 4, "the samples of one pass"
    assert (found.smoothing_seconds is not None) == smoothing
    assert (found.moments_seconds is not None) == moments
    assert (found.clipped is not None) == has_shifted
    for known in found.ranges.values():
        assert (known.smoothing is not None) == smoothing
        assert (known.moments is not None) == moments
        assert known.means is None


def test_passes_add_to_the_range_and_change_nothing_else() -> None:
    task = Data()
    model = task.build_model()
    given = (model, layers_of(model), task.calibration(), task.forward)
    plain = calibrate(*given, CalibrationSettings(bias_correction=True))
    both = with_moments(with_smoothing(plain, *given), *given)
    assert set(both.ranges) == set(plain.ranges) == {"0", "2"}
    for name, known in plain.ranges.items():
        assert (both.ranges[name].low, both.ranges[name].high) == (known.low, known.high)
        assert both.ranges[name].means == known.means
    assert (both.histograms, both.samples, both.seconds) == (plain.histograms, plain.samples, plain.seconds)


def test_only_the_extremes_may_be_found_from_a_sample_of_the_values() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 2)).eval()
    batch = torch.zeros(1 << 13, FEATURES)  # twice as many values as are counted of one tensor
    for kind in ObserverKind:
        found = calibrate(model, layers_of(model), [batch], lambda m, x: m(x), CalibrationSettings(observer=kind))
        counted = sum(found.histograms["0"].counts)
        assert counted == batch.numel() if kind is not ObserverKind.MINMAX else counted < 0.6 * batch.numel()


@given(st.lists(st.floats(-4.0, 4.0, width=32), min_size=1, max_size=12), st.floats(-3.0, 0.0), st.floats(0.0, 3.0))
def test_clipped_is_what_lies_beyond_the_range(values: list[float], low: float, high: float) -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    batches = [torch.tensor([[value]]) for value in values]
    ranges = {"0": ActivationRange(low=low, high=high)}
    found = clipped_shares(model, ranges, batches, lambda m, batch: m(batch))
    bounds = torch.tensor([low, high]).tolist()  # compared in fp32, as the inputs are
    beyond = sum(value < bounds[0] or value > bounds[1] for value in values)
    assert found == {"0": pytest.approx(beyond / len(values))}


def test_a_layer_that_does_not_run_clips_nothing() -> None:
    model = nn.ModuleDict({"used": nn.Linear(1, 1), "idle": nn.Linear(1, 1)})
    ranges = dict.fromkeys(("used", "idle"), ActivationRange(low=-1.0, high=1.0))
    found = clipped_shares(model, ranges, [torch.tensor([[2.0]])], lambda m, batch: model["used"](batch))
    assert found == {"used": 1.0, "idle": 0.0}


@given(st.floats(1e-30, 1e30), st.sampled_from([-1.0, 1.0]))
def test_numbers_in_files_have_four_digits(size: float, sign: float) -> None:
    short = shortened(sign * size)
    assert short == pytest.approx(sign * size, rel=5.0001e-4)
    assert short == shortened(short)
    assert len(f"{short:e}".partition("e")[0].lstrip("-").rstrip("0")) <= len("1.234")
