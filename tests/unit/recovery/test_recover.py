import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.discovery import discover
from search_spaces.layer import Layer
from search_spaces.quantization_map import ActivationRange, QuantizationMap
from workers.backends.cpu.backend import CpuBackend
from workers.errors import TaskError
from workers.progress import Stage, Step
from workers.quality import divergence, outputs_on
from workers.recovered import RecoveryReport, RecoverySettings, digest
from workers.recovery import recover as recovering
from workers.recovery.learned import decoded, install
from workers.recovery.recover import recover
from workers.task import OutputKind, Split


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """A classifier of sequences; the mean is taken over all positions, so that padding changes the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Residual(), Residual()])
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.layer:
            x = block(x)
        mask = torch.ones(x.shape[:2]) if attention_mask is None else attention_mask.float()
        return self.head((x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))


@dataclass
class SequenceTask:
    """Sequences whose features lie near a subspace, as those of trained models do."""

    samples: int = 64
    masked: bool = False
    seen: list[str] = field(default_factory=list)
    output_kind = OutputKind.LOGITS

    def build_model(self) -> nn.Module:
        torch.manual_seed(0)
        return Net().eval()

    def calibration(self) -> Sequence[Any]:
        self.seen.append("calibration")
        return self.batches(seed=1)

    def evaluation(self, split: Split) -> Sequence[Any]:
        self.seen.append(split)
        return self.batches(seed=2)

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(**batch)

    def batches(self, seed: int) -> list[Any]:
        random = torch.Generator().manual_seed(seed)
        basis = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
        x = torch.randn(self.samples, 8, 6, generator=random) @ basis
        x += 0.1 * torch.randn(x.shape, generator=random)
        mask = torch.ones(self.samples, 8, dtype=torch.long)
        if self.masked:
            mask[:, 4:] = 0
            x[:, 4:] = 1e3
        return [
            {"x": part, "attention_mask": of_part} for part, of_part in zip(x.split(16), mask.split(16), strict=True)
        ]


def parts(task: Any, choice: str = "int4_weight_only") -> tuple[nn.Module, list[Layer], QuantizationMap]:
    model = task.build_model()
    layers = discover(model, lambda m: task.forward(m, task.batches(1)[0]))
    ranges = {layer.name: ActivationRange(low=-30.0, high=30.0) for layer in layers}
    bits = {layer.name: CpuBackend().int8_weight_bits(layer) for layer in layers}
    return model, list(layers), QuantizationMap.from_names({layer.name: choice for layer in layers}, ranges, bits)


def run(task: Any, choice: str = "int4_weight_only", **settings: Any) -> tuple[RecoveryReport, bytes]:
    model, layers, quantization = parts(task, choice)
    return recover(task, model, layers, quantization, CpuBackend(), RecoverySettings(**{"epochs": 8} | settings))


def divergence_of(task: Any, learned: bytes, choice: str = "int4_weight_only") -> float:
    """Return the divergence on data that recovery has not seen."""
    model, layers, quantization = parts(task, choice)
    exact = outputs_on(task, model, task.batches(2))
    if learned:
        install(model, quantization, decoded(learned))
    backend = CpuBackend()
    for layer in layers:
        module = model.get_submodule(layer.name)
        prepared = backend.prepare(module, quantization.choices[layer.name], quantization.ranges[layer.name])
        model.set_submodule(layer.name, prepared)
    return float(divergence(outputs_on(task, model, task.batches(2)), exact, task.output_kind).mean())


def test_recovered_map_is_closer_to_full_precision_on_data_it_has_not_seen() -> None:
    task = SequenceTask()
    report, learned = run(task)
    assert report.layers == ("layer.0.up", "layer.0.down", "layer.1.up", "layer.1.down", "head")
    assert report.kept == {}
    assert (report.samples, report.validation_samples) == (48, 16)
    assert report.after < report.before / 2
    assert (report.sha256, report.nbytes) == (digest(learned), len(learned))
    assert divergence_of(task, learned) < divergence_of(task, b"") / 2


def test_recovery_is_repeatable_and_follows_its_seed() -> None:
    hashes = [run(SequenceTask(), epochs=1, seed=seed)[0].sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_evaluation_data_are_never_touched_and_the_model_is_not_changed() -> None:
    task = SequenceTask()
    model, layers, quantization = parts(task)
    before = copy.deepcopy(model.state_dict())
    modules = dict(model.named_modules())
    recover(task, model, layers, quantization, CpuBackend(), RecoverySettings(epochs=1))
    assert set(task.seen) == {"calibration"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert dict(model.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules.values())


def test_padding_does_not_count() -> None:
    task = SequenceTask(masked=True)
    report, learned = run(task)
    assert report.after < report.before / 2
    assert divergence_of(task, learned) < divergence_of(task, b"") / 2


def test_blocks_that_do_not_win_on_validation_data_keep_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([1.0, 0.5, 1.0, 1.0, 1.0, 2.0])  # of each block, before and after
    monkeypatch.setattr(recovering, "_error", lambda *_: next(errors))
    report, learned = run(SequenceTask(), epochs=1)
    assert set(decoded(learned)) == set(report.layers) == {"layer.0.up", "layer.0.down"}
    words = "on the validation batches its error is {} with learned weights, 1 without"
    assert report.kept == {"layer.1": words.format("1"), "head": words.format("2")}


@pytest.mark.parametrize("after", [0.1, 0.2, float("nan")])
def test_map_that_does_not_win_on_validation_data_is_kept(monkeypatch: pytest.MonkeyPatch, after: float) -> None:
    each = iter([0.1, after])
    monkeypatch.setattr(recovering, "_divergence", lambda *_: next(each))
    report, learned = run(SequenceTask(), epochs=1)
    assert learned == b""
    assert (report.layers, report.sha256, report.nbytes) == ((), "", 0)
    assert report.after == report.before == pytest.approx(0.1)
    words = f"on the validation batches its divergence is {after:.3g} with learned weights, 0.1 without"
    assert report.kept[""] == words


def test_no_block_begins_after_the_time_limit() -> None:
    report, learned = run(SequenceTask(), epochs=1, time_limit_s=0.0)
    assert learned == b""
    assert report.kept == dict.fromkeys(("layer.0", "layer.1", "head"), "the time limit was reached")


def test_map_without_integer_weights_has_nothing_to_learn() -> None:
    report, learned = run(SequenceTask(), "fp16")
    assert (learned, report.layers, report.kept) == (b"", (), {})


def test_too_few_samples_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(TaskError, match="a single batch of at most 8 samples; return more from its method calibration"):
        run(SequenceTask(samples=4))


def test_every_block_is_reported() -> None:
    steps: list[Step] = []
    task = SequenceTask()
    model, layers, quantization = parts(task)
    recover(task, model, layers, quantization, CpuBackend(), RecoverySettings(epochs=1), report=steps.append)
    counts = [(step.done, step.total) for step in steps if step.stage is Stage.RECOVERING]
    assert counts == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_only_as_many_examples_are_kept_as_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []
    original = recovering.reconstructed

    def counting(block: nn.Module, layers: Any, examples: Sequence[Any], **settings: Any) -> Any:
        learned.append(len(examples))
        return original(block, layers, examples, **settings)

    monkeypatch.setattr(recovering, "reconstructed", counting)
    of_all, _ = run(SequenceTask(), epochs=1)
    monkeypatch.setattr(recovering, "_MOST_BYTES", 0)
    of_first, _ = run(SequenceTask(), epochs=1)
    assert learned == [6, 6, 6, 1, 1, 1]
    assert (of_all.samples, of_first.samples) == (48, 8)


def test_samples_of_a_block_that_runs_twice_count_once() -> None:
    class Twice(Net):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
            for block in [*self.layer, *self.layer]:
                x = block(x)
            return self.head(x.mean(dim=1))

    class TwiceTask(SequenceTask):
        def build_model(self) -> nn.Module:
            torch.manual_seed(0)
            return Twice().eval()

    report, _ = run(TwiceTask(), epochs=1)
    assert report.layers
    assert report.samples == 48


def test_block_that_changes_its_inputs_and_takes_a_cache_learns_from_what_it_got() -> None:
    class Cache:
        """Grows with every call, as the cache of a decoder does."""

        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

    class Changing(Residual):
        def forward(self, x: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:  # type: ignore[override]
            cache.seen.append(x.detach())
            assert len(cache.seen) == 1
            return super().forward(x.mul_(0.5)), cache

    class Decoder(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleList([Changing(), Changing()])

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
            x = x.clone()
            for block in self.layer:
                x, _ = block(x, cache=Cache())
            return self.head(x.mean(dim=1))

    class DecoderTask(SequenceTask):
        def build_model(self) -> nn.Module:
            torch.manual_seed(0)
            return Decoder().eval()

    report, _ = run(DecoderTask())
    assert report.after < report.before / 2


def test_weights_that_are_inference_tensors_learn() -> None:
    class Normed(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(super().forward(x))

    class InferenceTask(SequenceTask):
        def build_model(self) -> nn.Module:
            with torch.inference_mode():
                model = super().build_model()
                model.layer = nn.ModuleList([Normed(), Normed()])
            return model.eval()

    report, _ = run(InferenceTask())
    assert report.kept == {}
    assert report.after < report.before / 2


def test_blocks_without_a_gradient_keep_their_weights() -> None:
    class Opaque(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    class OpaqueTask(SequenceTask):
        def build_model(self) -> nn.Module:
            model = super().build_model()
            model.layer = nn.ModuleList([Opaque(), Opaque()])
            return model.eval()

    report, learned = run(OpaqueTask(), epochs=1)
    why = "it cannot learn: RuntimeError: element 0 of tensors does not require grad"
    assert all(report.kept[name].startswith(why) for name in ("layer.0", "layer.1"))
    assert set(decoded(learned)) == {"head"}
