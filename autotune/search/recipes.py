"""The maps nearest to what the tools of a runtime do by default, as baselines of a search."""

from collections.abc import Mapping

from autotune.jobs.spec import JobSpec

#: Backend -> choices of its recipe; a layer takes the first one that it can take. ONNX Runtime's is that of
#: ``quantize_dynamic`` with one scale per channel. torchao's, one scale per token on linear layers, is a uniform map.
_RECIPES: Mapping[str, tuple[str, ...]] = {"onnxruntime": ("int8_dynamic", "int8_weight_only")}


def recipe_of(spec: JobSpec, backend: str) -> tuple[str, ...]:
    """Return the choices of a backend's recipe, the preferred one first; none if the job would change the recipe."""
    choices = _RECIPES.get(backend, ())
    bound = any(rule.names() for rule in spec.rules())
    return choices if not bound and set(choices) <= set(spec.search.choices) else ()
