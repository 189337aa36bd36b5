"""The recipes of runtimes as baselines: where they are measured, and what they are called."""

from dataclasses import replace
from typing import Any

import pytest

from autotune.client.actions import submit
from autotune.jobs.lifecycle import with_fields
from autotune.jobs.spec import JobSpec
from autotune.search.backend_search import BackendSearch, searches_of
from autotune.search.recipes import recipe_of
from autotune.store.in_memory import MemoryStore
from search_spaces.layer import Layer, LayerKind
from workers.measurement import Environment
from workers.setup import Calibration, ModelDescription

CHOICES = ("fp32", "int8_static", "int8_dynamic", "int8_weight_only")
PRODUCT = Layer(
    name="fc", kind=LayerKind.LINEAR, weight_shape=(4, 3), has_bias=True, weight_bytes=64, input_shape=(2, 3),
    flops=48, calls=1, order=1, group="fc",
)  # fmt: skip
LOOKUP = replace(PRODUCT, name="words", kind=LayerKind.EMBEDDING, order=0, group="words")
#: Embeddings have no input that could be quantized.
REFUSED = {"fc": {}, "words": {"int8_static": "no products", "int8_dynamic": "no products"}}


def spec(**search: Any) -> JobSpec:
    return JobSpec.parse(
        {
            "name": "x",
            "task": {"name": "t"},
            "objectives": ["latency_p50_ms", "divergence"],
            "search": {"choices": CHOICES, "sampler": "random"} | search,
        }
    )


def search_on(backend: str, *layers: Layer) -> BackendSearch:
    description = ModelDescription(
        fingerprint="f" * 64,
        layers=layers,
        refusals={layer.name: REFUSED[layer.name] for layer in layers},
        layer_bytes={layer.name: dict.fromkeys(CHOICES, 16) for layer in layers},
        other_bytes=8,
        calibration=Calibration(ranges={}, samples=64, seconds=0.5),
        environment=Environment(hardware="cpu", backend=backend, threads=2, load=0.5, versions={}),
    )
    store = MemoryStore()
    job = store.change_job(submit(store, spec()).id, with_fields(0, description=description))
    (found,) = searches_of(job, 1)
    return found


def baselines(search: BackendSearch) -> dict[str | None, dict[str, str]]:
    """Return label -> map of the baselines, each of which is proposed once."""
    proposals = [search.baseline(choices) for choices in search.baselines]
    return {search.label_of(proposal): dict(proposal.choices) for proposal in proposals if proposal is not None}


def test_a_recipe_rounds_embeddings_beside_the_products() -> None:
    found = baselines(search_on("onnxruntime", LOOKUP, PRODUCT))
    assert found["recipe int8_dynamic"] == {"words": "int8_weight_only", "fc": "int8_dynamic"}
    assert found["uniform int8_dynamic"] == {"words": "fp32", "fc": "int8_dynamic"}


def test_a_recipe_that_is_a_uniform_map_is_measured_once_and_keeps_its_label() -> None:
    assert baselines(search_on("onnxruntime", PRODUCT)).keys() == {f"uniform {choice}" for choice in CHOICES}


def test_a_backend_without_a_recipe_has_uniform_maps_alone() -> None:
    assert baselines(search_on("cpu", LOOKUP, PRODUCT)).keys() == {f"uniform {choice}" for choice in CHOICES}


@pytest.mark.parametrize(
    ("search", "has_recipe"),
    [
        ({}, True),
        ({"choices": ("fp32", "int8_dynamic")}, False),
        ({"layers": [{"pattern": "fc", "deny": ["int8_dynamic"]}]}, False),
        ({"layers": [{"pattern": "fc", "sensitivity": 2.0}]}, True),
    ],
)
def test_a_job_that_would_change_a_recipe_has_none(search: dict[str, Any], has_recipe: bool) -> None:
    assert bool(recipe_of(spec(**search), "onnxruntime")) is has_recipe
