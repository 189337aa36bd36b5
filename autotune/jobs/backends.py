"""The backends of a job: which of them run the model, and which were left out."""

from autotune.jobs.spec import JobSpec
from workers.setup import ModelDescription


def left_out(spec: JobSpec, description: ModelDescription) -> dict[str, str]:
    """Return name -> why, for backends of a job that cannot measure its maps; never that of the reference."""
    found = dict(description.left_out)
    for name in description.others:
        workloads = description.on(name).workloads
        missing = [workload for workload in spec.workloads() if workload not in workloads]
        if missing:
            found[name] = f"it runs the forward pass only, and the job needs the workload {missing[0]}"
    return found


def competing(spec: JobSpec, description: ModelDescription) -> list[str]:
    """Return the names of the backends that measure a job's maps, that of the reference first."""
    without = left_out(spec, description)
    return [name for name in description.backends if name not in without]
