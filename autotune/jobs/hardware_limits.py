"""What hardware cannot do for a model, and why no map is faster than full precision, in sentences."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from autotune.jobs.backends import competing
from autotune.jobs.front import without_superseded
from autotune.jobs.records import JobRecord, TrialRecord, TrialState
from autotune.metrics.catalog import METRICS, decisive_workload, percentiles_of, ratio_of
from search_spaces.choice import FULL_PRECISION
from workers.setup import ModelDescription
from workers.timing.estimates import Figure

#: Milliseconds of full precision per layer below which layers are called small.
_SMALL_LAYER_MS = 0.1
#: Bits of int8 weights where nothing limits them.
_FULL_BITS = 8


def refused_everywhere(description: ModelDescription, choices: Iterable[str]) -> dict[str, str]:
    """Return choice name -> most frequent reason, for the choices that no layer of a model can take."""
    free = [description.refusals.get(layer.name, {}) for layer in description.layers if not layer.frozen_reason]
    refused = [name for name in choices if free and all(name in reasons for reasons in free)]
    return {name: Counter(reasons[name] for reasons in free).most_common(1)[0][0] for name in refused}


def hardware_limits(refused: Mapping[str, str], int8_weight_bits: int) -> list[str]:
    """Return what the hardware cannot do, in sentences; empty if it can do everything.

    Args:
        refused: choice name -> reason, for the choices that no layer can take.
        int8_weight_bits: bits of int8 weights in int8 products.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in refused.items():
        by_reason.setdefault(reason, []).append(name)
    found = [f"No layer can take {' or '.join(names)} here: {reason}." for reason, names in by_reason.items()]
    if int8_weight_bits < _FULL_BITS:
        found.append(
            f"int8 products use {int8_weight_bits}-bit weights here: this processor lacks VNNI, and products of 8-bit "
            "weights would saturate."
        )
    return found


def limits_of_job(job: JobRecord) -> list[str]:
    """Return what the hardware of a job's workers cannot do for its model; empty before it is known."""
    described = job.description
    if described is None:
        return []
    choices = [name for name in job.spec.search.choices if name != FULL_PRECISION.name]
    refused, *others = (refused_everywhere(described.on(name), choices) for name in competing(job.spec, described))
    common = {name: why for name, why in refused.items() if all(name in elsewhere for elsewhere in others)}
    return hardware_limits(common, min(described.weight_bits.values(), default=_FULL_BITS))


def why_nothing_is_faster(job: JobRecord, trials: Sequence[TrialRecord]) -> Iterator[str]:
    """Yield why no map within the limits is faster than full precision, if none is."""
    workload = decisive_workload(job.spec.objectives)
    ratio = ratio_of(workload).name
    counting = [trial for trial in without_superseded(trials) if trial.state is TrialState.COMPLETE]
    maps = [trial for trial in counting if trial.key != trials[0].key and ratio in trial.figures]
    faster = [trial for trial in maps if _is_faster(trial.figures[ratio])]
    if not maps or any(trial.feasible for trial in faster) or not any(trial.feasible for trial in counting):
        return
    if faster:
        best = min(faster, key=lambda trial: trial.figures[ratio].value)
        broken = [limit for limit in job.spec.constraints.constraints() if best.violations.get(limit.metric, 0.0) > 0]
        missed = "; ".join(limit.missed_by(best.figures[limit.metric].value) for limit in broken)
        speed = METRICS[ratio].text_with_unit(best.figures[ratio].value)
        yield (
            f"No map within the limits is measurably faster than full precision. Trial {best.number} is {speed}, "
            f"but misses a limit: {missed}."
        )
        return
    median = trials[0].figures.get(percentiles_of(workload)[50].name)
    yield f"No map is measurably faster than full precision. {_where_the_time_goes(job, median)}"


def _is_faster(ratio: Figure) -> bool:
    """Return whether a map is measurably faster than full precision."""
    return (ratio.value if ratio.high is None else ratio.high) < 1.0


def _where_the_time_goes(job: JobRecord, median: Figure | None) -> str:
    """Return that the layers are small, or else where to read what each of them would save."""
    layers = len(job.description.layers) if job.description else 0
    if layers and median is not None and median.value / layers < _SMALL_LAYER_MS:
        return (
            f"Its {layers} layers are small: a pass takes {median.value:.3g} ms, and at this size converting "
            "activations can take longer than faster products save. Larger batches (measurement.batch_sizes) may gain."
        )
    return f"What each layer would save: autotune sensitivity {job.id}."
