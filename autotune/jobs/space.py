"""The search space of a job, and what its model keeps in full precision."""

from autotune.jobs.records import JobRecord
from autotune.jobs.spec import JobSpec
from search_spaces.choice import FULL_PRECISION
from search_spaces.errors import AutotuneError
from search_spaces.space import SearchSpace, build_space
from workers.setup import ModelDescription


def space_of(spec: JobSpec, description: ModelDescription) -> SearchSpace:
    """Return the search space of a job for the model that its workers described."""
    return build_space(
        description.layers,
        choices=spec.search.choices,
        supports=lambda layer, choice: description.refusals[layer.name].get(choice.name),
        rules=spec.rules(),
    )


def kept_in_full_precision(job: JobRecord) -> dict[str, str]:
    """Return layer or module name -> why its weights stay in full precision whatever the search does.

    Layers that a rule of the job is about are left out, unless nothing else would be possible: their user has decided.
    """
    described = job.description
    if described is None:
        return {}
    reasons = {layer.name: layer.frozen_reason for layer in described.layers if layer.frozen_reason}
    try:
        space, rules = space_of(job.spec, described), job.spec.rules()
    except AutotuneError:  # the job failed because of its rules, or another version recorded it
        return reasons | dict(described.skipped)
    for group in space.groups:
        if set(group.choices) == {FULL_PRECISION.name}:
            free = [name for name in group.layers if not any(rule.matches(name) for rule in rules)]
            reasons |= {name: next(iter(space.refusals[name].values()), "") for name in free if name not in reasons}
    return {name: reason for name, reason in reasons.items() if reason} | dict(described.skipped)
