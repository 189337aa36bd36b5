"""Probes are taken once for every model, data, kernels and hardware, and a search can do without them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest

from autotune.client.actions import submit
from autotune.jobs.lifecycle import with_fields
from autotune.jobs.progress import Silent
from autotune.jobs.records import JobRecord
from autotune.jobs.spec import JobSpec
from autotune.search.probing import obtain_probes, probes_of
from autotune.store.in_memory import MemoryStore
from search_spaces.layer import Layer, LayerKind
from search_spaces.quantization_map import ActivationRange
from workers.errors import PoolError
from workers.measurement import Environment
from workers.setup import Calibration, Estimator, LayerProbe, ModelDescription, Probes

LAYER = Layer(
    name="fc", kind=LayerKind.LINEAR, weight_shape=(4, 3), has_bias=True, weight_bytes=64, input_shape=(2, 3),
    flops=48, calls=1, order=0, group="fc",
)  # fmt: skip
DESCRIPTION = ModelDescription(
    fingerprint="f" * 64,
    layers=(LAYER,),
    refusals={"fc": {}},
    layer_bytes={"fc": {"fp32": 64}},
    other_bytes=8,
    calibration=Calibration(ranges={"fc": ActivationRange(low=-1.5, high=2.25)}, samples=64, seconds=0.5),
    environment=Environment(hardware="cpu", backend="x86", threads=2, load=0.5, versions={"torch": "2"}),
)
SPEC: dict[str, Any] = {
    "name": "small",
    "task": {"name": "digits-cnn"},
    "calibration": {"observer": "percentile", "percentile": 99.0},
}


class FakePool:
    """Probes at once, each time with another result, or fails."""

    def __init__(self, error: PoolError | None = None) -> None:
        self.error = error
        self.probed = 0

    def probe(self, budget_s: float = math.inf, backend: str = "") -> Probes:
        self.probed += 1
        if self.error is not None:
            raise self.error
        layers = (LayerProbe(layer="fc", choice="fp32", divergence=0.0, latency_ms=0.5),)
        return Probes(layers=layers, pass_ms=1.0, estimator=Estimator.GRADIENT, samples=self.probed, seconds=2.5)


class Stages(Silent):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def stage(self, text: str) -> None:
        self.seen.append(text)


def job(store: MemoryStore, spec: Mapping[str, Any] = SPEC, description: ModelDescription = DESCRIPTION) -> JobRecord:
    """Return a job whose workers have said what the model is."""
    return store.change_job(submit(store, JobSpec.parse(spec)).id, with_fields(0, description=description))


def obtain(store: MemoryStore, record: JobRecord, pool: FakePool) -> Probes | None:
    return obtain_probes(store, record, pool, Silent())  # type: ignore[arg-type]


def environment(**changes: Any) -> ModelDescription:
    return dataclasses.replace(DESCRIPTION, environment=dataclasses.replace(DESCRIPTION.environment, **changes))


def test_probes_are_taken_recorded_and_announced() -> None:
    store, pool, stages = MemoryStore(), FakePool(), Stages()
    record = job(store)
    assert probes_of(store, record) is None
    found = obtain_probes(store, record, pool, stages)  # type: ignore[arg-type]
    assert found is not None
    assert probes_of(store, record) == found
    assert stages.seen == ["Probing layers"]
    assert [(event.kind, event.message) for event in store.events(record.id)] == [
        ("probed", "Probed 1 layer choices in 2.5 s (gradient estimate on 1 sample)")
    ]


SAME = {
    "same": (SPEC, DESCRIPTION),
    "name": (SPEC | {"name": "other"}, DESCRIPTION),
    "search": (SPEC | {"search": {"trials": 7, "seed": 5, "choices": ["fp32", "bf16"]}}, DESCRIPTION),
    "further batch sizes": (SPEC | {"measurement": {"batch_sizes": [1, 8]}}, DESCRIPTION),
    "load": (SPEC, environment(load=9.5)),
    "ranges not calibrated again": (
        SPEC,
        dataclasses.replace(DESCRIPTION, calibration=dataclasses.replace(DESCRIPTION.calibration, samples=0)),
    ),
}


@pytest.mark.parametrize(("spec", "description"), SAME.values(), ids=SAME)
def test_second_job_on_the_same_model_is_served(spec: Mapping[str, Any], description: ModelDescription) -> None:
    store, pool = MemoryStore(), FakePool()
    first = obtain(store, job(store), pool)
    second = job(store, spec, description)
    assert obtain(store, second, pool) == first == probes_of(store, second)
    assert pool.probed == 1
    assert store.events(second.id) == []


OTHER = {
    "factors that smooth": (SPEC | {"search": {"choices": ["fp32", "int8_static_smooth"]}}, DESCRIPTION),
    "corrected biases": (SPEC | {"calibration": SPEC["calibration"] | {"bias_correction": True}}, DESCRIPTION),
    "second moments": (SPEC | {"search": {"choices": ["fp32", "int4_weight_only_gptq"]}}, DESCRIPTION),
    "weights": (SPEC, dataclasses.replace(DESCRIPTION, fingerprint="e" * 64)),
    "task": (SPEC | {"task": {"name": "digits-vit"}}, DESCRIPTION),
    "task parameter": (SPEC | {"task": {"name": "digits-cnn", "parameters": {"seed": 1}}}, DESCRIPTION),
    "observer": (SPEC | {"calibration": {"observer": "mse", "percentile": 99.0}}, DESCRIPTION),
    "percentile": (SPEC | {"calibration": {"observer": "percentile", "percentile": 99.9}}, DESCRIPTION),
    "batch size": (SPEC | {"measurement": {"batch_sizes": [8, 1]}}, DESCRIPTION),
    "hardware": (SPEC, environment(hardware="another cpu")),
    "kind": (SPEC, environment(kind="another kind")),
    "backend": (SPEC, environment(backend="cuda")),
    "threads": (SPEC, environment(threads=1)),
    "version": (SPEC, environment(versions={"torch": "3"})),
}


@pytest.mark.parametrize(("spec", "description"), OTHER.values(), ids=OTHER)
def test_job_that_differs_is_probed_anew(spec: Mapping[str, Any], description: ModelDescription) -> None:
    store, pool = MemoryStore(), FakePool()
    first = obtain(store, job(store), pool)
    second = obtain(store, job(store, spec, description), pool)
    assert pool.probed == 2
    assert second != first
    assert obtain(store, job(store), pool) == first


def test_probes_recorded_before_kinds_of_hardware_are_found() -> None:
    store, pool = MemoryStore(), FakePool()
    recorded = pool.probe()
    store.record_probes("261f6c8cd4f930504ffc193d272e0b92db8b127f37e25cde1bcafd8346b06171", recorded)
    assert probes_of(store, job(store)) == recorded


def test_model_that_cannot_be_probed_is_searched_without() -> None:
    store, pool = MemoryStore(), FakePool(PoolError("the model cannot be probed: no room"))
    record = job(store)
    assert obtain(store, record, pool) is None
    assert probes_of(store, record) is None
    assert [(event.kind, event.message) for event in store.events(record.id)] == [
        ("probes_failed", "the model cannot be probed: no room")
    ]
    pool.error = None
    assert obtain(store, record, pool) is not None


def test_job_that_never_ran_has_no_probes() -> None:
    store = MemoryStore()
    obtain(store, job(store), FakePool())
    assert probes_of(store, submit(store, JobSpec.parse(SPEC))) is None


def test_probes_that_were_cut_short_serve_their_own_job_only() -> None:
    class Hurried(FakePool):
        def probe(self, budget_s: float = math.inf, backend: str = "") -> Probes:
            return dataclasses.replace(super().probe(budget_s), cut=True)

    store, pool = MemoryStore(), Hurried()
    hurried, other = job(store), job(store)
    found = obtain(store, hurried, pool)
    assert probes_of(store, hurried) == obtain(store, hurried, pool) == found
    assert pool.probed == 1
    assert probes_of(store, other) is None
