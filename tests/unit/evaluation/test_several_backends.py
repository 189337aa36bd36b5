"""One evaluator with several backends: everything is compared with full precision on the first one."""

import math
from dataclasses import replace

import pytest
import torch

from search_spaces.choice import FULL_PRECISION
from workers import backends
from workers.backends.cpu.backend import CpuBackend
from workers.backends.onnx.backend import OnnxRuntimeBackend
from workers.candidate import Candidate
from workers.errors import BackendError
from workers.evaluation.evaluator import Evaluator
from workers.measurement import Split
from workers.sensitivity.estimate import Sensitivity
from workers.setup import KnownKernels, MeasurementSettings, WorkerSetup

SETUP = WorkerSetup(
    task="digits-cnn",
    backend="cpu",
    others={"onnxruntime": KnownKernels()},
    measurement=MeasurementSettings(repeats=20, warmup_s=0.0),
)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(SETUP)


def uniform(evaluator: Evaluator, choice: str, backend: str) -> dict[str, str]:
    legal = evaluator.on(backend).legal()
    return {
        layer.name: choice if choice in legal.get(layer.name, ()) else FULL_PRECISION.name
        for layer in evaluator.description.layers
    }


def test_the_description_has_what_differs(evaluator: Evaluator) -> None:
    described = evaluator.description
    assert described.backends == ("cpu", "onnxruntime")
    assert described.left_out == {}
    assert described.on("") is described.on("cpu") is described
    other = described.on("onnxruntime")
    assert other.environment.backend == "onnxruntime"
    assert (other.fingerprint, other.layers, other.calibration) == (
        described.fingerprint, described.layers, described.calibration
    )  # fmt: skip
    assert other.refusals != described.refusals, "ONNX Runtime has no bf16"
    assert "onnxruntime" in other.environment.versions


def test_full_precision_of_another_backend_is_a_map_like_any_other(evaluator: Evaluator) -> None:
    names = {layer.name: FULL_PRECISION.name for layer in evaluator.description.layers}
    reference = evaluator.measure(Candidate(number=0, choices=names))
    other = evaluator.measure(Candidate(number=1, choices=names, backend="onnxruntime"))
    assert reference.divergence == 0.0
    assert 0.0 < other.divergence < 1e-6, "sums in another order"
    assert other.accuracy == reference.accuracy
    assert (reference.environment.backend, other.environment.backend) == ("cpu", "onnxruntime")
    assert reference.session_seconds is None
    assert other.session_seconds is not None


def test_maps_of_another_backend_are_interleaved_with_the_reference(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    for name in ("cpu", "onnxruntime"):
        deployed = evaluator.on(name).deployed
        forward = deployed.model.forward

        def noted(*given: object, name: str = name, forward: object = forward) -> object:
            ran.append((name, torch.get_num_threads()))
            return forward(*given)  # type: ignore[operator]

        monkeypatch.setattr(deployed.model, "forward", noted)
    threads = torch.get_num_threads()
    (samples,) = evaluator.on("onnxruntime").latency.of(uniform(evaluator, "int8_static", "onnxruntime"))
    assert len(samples.candidate_ms) >= 20
    assert len(samples.reference_ms) >= 4
    assert set(ran) == {("cpu", threads), ("onnxruntime", 1)}, "PyTorch has all threads for its own passes only"
    assert evaluator.reference.prepared.installed == evaluator.on("onnxruntime").prepared.installed | dict.fromkeys(
        evaluator.reference.prepared.installed, FULL_PRECISION.name
    )


def test_quality_is_relative_to_the_outputs_of_the_reference(evaluator: Evaluator) -> None:
    choices = uniform(evaluator, "int8_static", "onnxruntime")
    _, here = evaluator.on("onnxruntime").quality.of(choices, Split.EVALUATION)
    _, there = evaluator.quality.of(choices, Split.EVALUATION)
    assert here == pytest.approx(there, rel=0.5), "both round to the same integers, and sum in another order"
    found = evaluator.on("onnxruntime").quality.held_out_accuracies(choices)
    assert found is not None
    assert found[1] == evaluator.quality.reference_accuracy(Split.HELD_OUT)


def test_a_divergence_is_estimated_once(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.evaluation import evaluator as module

    asked = []
    estimate = module.estimate

    def noted(
        task: object, prepared: object, choices: dict[str, list[str]], *given: object, **named: object
    ) -> Sensitivity:
        asked.append({(layer, name) for layer, names in choices.items() for name in names})
        return estimate(task, prepared, choices, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "estimate", noted)
    monkeypatch.setattr(evaluator, "_estimated", None)
    first, second = evaluator.probe(), evaluator.probe(backend="onnxruntime")
    assert evaluator.probe(backend="onnxruntime").layers[0].divergence == second.layers[0].divergence
    assert len(asked) <= 2
    assert len(asked) == 1 or not asked[0] & asked[1]
    shared = {(probe.layer, probe.choice): probe for probe in first.layers}
    both = [
        (probe, shared[probe.layer, probe.choice]) for probe in second.layers if (probe.layer, probe.choice) in shared
    ]
    assert len(both) > 5
    assert all(here.divergence == there.divergence for here, there in both)
    assert second.pass_ms != first.pass_ms


def test_an_unknown_backend_is_refused(evaluator: Evaluator) -> None:
    with pytest.raises(BackendError, match="does not run on the backend torchao: it is not among the backends"):
        evaluator.on("torchao")
    with pytest.raises(BackendError, match="unknown backend 'onxruntime'"):
        Evaluator(replace(SETUP, others={"onxruntime": KnownKernels()}))


class OnGpu(CpuBackend):
    name, device = "gpu", "cuda"

    def unavailable(self) -> None:
        return None


def test_all_backends_of_a_job_are_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.BACKENDS, "gpu", OnGpu)
    with pytest.raises(
        BackendError, match="run on one device, but cpu runs on cpu and gpu on cuda; submit a job for each"
    ):
        Evaluator(replace(SETUP, others={"gpu": KnownKernels()}))
    every = Evaluator(replace(SETUP, others={}, all_backends=True)).description
    assert every.backends[:2] == ("cpu", "onnxruntime")
    assert "gpu" not in every.backends


class Refusing(OnnxRuntimeBackend):
    def deploy(self, *_: object) -> None:  # type: ignore[override]
        raise BackendError("cannot trace this model")


def test_a_backend_that_cannot_run_the_model_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.BACKENDS, "onnxruntime", Refusing)
    evaluator = Evaluator(SETUP)
    assert evaluator.description.left_out == {"onnxruntime": "cannot trace this model"}
    assert evaluator.description.backends == ("cpu",)
    with pytest.raises(BackendError, match="does not run on the backend onnxruntime: cannot trace this model"):
        evaluator.measure(Candidate(number=0, choices={}, backend="onnxruntime"))


def test_another_worker_of_the_job_computes_the_same(evaluator: Evaluator) -> None:
    again = SETUP.continued(evaluator.description)
    assert set(again.others) == {"onnxruntime"}
    assert again.others["onnxruntime"].weight_bits == evaluator.on("onnxruntime").description.weight_bits
    choices = uniform(evaluator, "int8_static", "onnxruntime")
    found = [each.on("onnxruntime").quality.of(choices, Split.EVALUATION) for each in (evaluator, Evaluator(again))]
    assert found[0] == found[1]
    assert not math.isnan(found[0][1])


def test_models_of_several_backends_share_their_weights(evaluator: Evaluator) -> None:
    models = [evaluator.on(name).prepared for name in ("cpu", "onnxruntime")]
    for prepared in models:
        prepared.reset()
    here, there = (prepared.model for prepared in models)
    assert {id(p) for p in here.parameters()} == {id(p) for p in there.parameters()}
