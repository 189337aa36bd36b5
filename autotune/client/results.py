"""What users do with a job's results, alike on a database and through a service."""

from os import PathLike
from pathlib import Path

from autotune.client.base import Client
from autotune.client.follow import check_outcome
from autotune.jobs.front import pick
from autotune.jobs.recommendation import default_pick
from autotune.jobs.records import JobRecord, TrialRecord
from autotune.maps import map_file
from autotune.store.artifacts import learned_weights


class JobResults:
    """The part of a client that follows from its other methods."""

    def wait(self: Client, reference: str) -> JobRecord:
        job = self.find(reference)
        for update in self.follow(job.id):
            last = update
        check_outcome(last)
        return self.records.job(job.id)

    def front(self: Client, reference: str) -> list[TrialRecord]:
        job = self.find(reference)
        members = self.records.tallies([job.id])[job.id].front
        trials = self.records.trials(job.id, numbers=members) if members else []
        return sorted(trials, key=lambda trial: trial.figures[job.spec.objectives[0]].value)

    def export(
        self: Client, reference: str, path: str | PathLike[str] = "map.json", *, choose: str | None = None
    ) -> Path:
        job = self.find(reference)
        spec, trials = job.spec, self.records.trials(job.id)
        trial = pick(trials, choose or default_pick(spec), spec.objectives, spec.constraints.constraints())
        document, written = map_file.map_document(job, trial), Path(path)
        map_file.write(document, written, learned_weights(self.records, trial))
        return written
