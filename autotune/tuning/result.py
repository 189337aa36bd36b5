"""What tuning found: the front, the maps to choose from, and what to do with one."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from autotune.console import front
from autotune.console.output import as_text, mix
from autotune.console.progress import ConsoleListener
from autotune.exporters.export import export
from autotune.exporters.verify import ExportVerification, verify_export
from autotune.jobs.front import pick
from autotune.jobs.recommendation import default_pick, recommended
from autotune.jobs.records import JobRecord, TrialRecord
from autotune.jobs.spec import PROMISING, RecoverySection
from autotune.maps import map_file
from autotune.maps.apply import NativeMap
from autotune.maps.verify import Verification, verify
from autotune.metrics.catalog import decisive_ratio
from autotune.metrics.from_measurement import MIB
from autotune.reports import trials_csv
from autotune.search.run import recover_maps
from autotune.search.stages import Stages
from autotune.serving import bundle
from autotune.serving.selection import selected
from autotune.store.artifacts import learned_weights
from autotune.store.base import ReadStore
from autotune.store.open import open_store
from autotune.tuning import notebook
from autotune.tuning.dashboard import RunningDashboard
from autotune.tuning.live import copy_of
from autotune.validation import validated
from workers.device.threads import same_threads
from workers.recovered import RecoverySettings
from workers.tasks import build_task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TunedMap:
    """One measured map of a job."""

    job: JobRecord
    trial: TrialRecord
    #: URL of the database that holds the job.
    database: str

    @property
    def number(self) -> int:
        """Number of the trial that measured it."""
        return self.trial.number

    @property
    def choices(self) -> Mapping[str, str]:
        """Layer name -> choice."""
        return self.trial.choices

    @property
    def figures(self) -> dict[str, float]:
        """Metric name -> measured value, in the unit at the end of the name."""
        return {name: figure.value for name, figure in self.trial.figures.items()}

    def apply(self, model: nn.Module | None = None) -> nn.Module:
        """Return a quantized copy of a model, in evaluation mode; ``model`` stays as it is.

        Args:
            model: the model that was tuned; None for the one that the job's task builds.

        Raises:
            MapError: if it is another model, or has other weights.
            TaskError: if the model cannot be copied, or another process holds the one that was tuned.
            BackendError: if the map's backend runs whole graphs; ``export`` writes them.
        """
        spec = self.job.spec
        full = build_task(spec.task.name, spec.task.parameters).build_model() if model is None else copy_of(model)
        return NativeMap(self._file()).apply(full)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the map file, which ``autotune.load_map`` reads, and return its path.

        The learned weights of a recovered map go into another file beside it.

        Raises:
            MapError: if a file cannot be written.
        """
        map_file.write(self._document(), Path(path), self._learned())
        return Path(path)

    def export(self, format_name: str, folder: str | PathLike[str]) -> Path:
        """Write the quantized model in the format of another runtime, and return the folder.

        Args:
            format_name: a format of ``autotune export``, such as ``onnxruntime``.
            folder: where to write it; an earlier export there is replaced.

        Raises:
            ExportError: if there is no such format, or it cannot express the map.
            ConflictError: if the folder contains anything but an export.
        """
        export(self._document(), format_name, Path(folder), learned=self._learned())
        return Path(folder)

    def verify(self) -> Verification:
        """Rebuild the map from what ``save`` writes, measure it again, and return whether its figures hold.

        Raises:
            MapError: if the task now builds another model.
            TaskError: if another process holds the model that was tuned.
        """
        with same_threads(), ConsoleListener(self.job.spec.objectives[0]) as listener:
            stages = Stages(listener)
            stages.stage("Measuring the map")
            return verify(self._file(), report=stages.report)

    def verify_export(self, folder: str | PathLike[str]) -> ExportVerification:
        """Run what ``export`` wrote in its runtime, and return whether it holds what its map promises.

        Writes the report into the folder, too. A live model's export runs in this process, any other one in a fresh
        process.

        Raises:
            ExportError: if the folder is not an export, was changed, or its runtime cannot load it.
            TaskError: if another process holds the model that was tuned.
        """
        with same_threads(), ConsoleListener(self.job.spec.objectives[0]) as listener:
            stages = Stages(listener)
            stages.stage("Measuring the export")
            found = verify_export(Path(folder), report=stages.report)
        found.write(Path(folder))
        return found

    def __repr__(self) -> str:
        ratio = self.trial.figures.get(decisive_ratio(self.job.spec.objectives).name)
        speedup = f", {1 / ratio.value:.2f}x as fast as full precision" if ratio else ""
        return f"trial {self.number}: {mix(self.choices)}{speedup}"

    def _document(self) -> dict[str, object]:
        return map_file.map_document(self.job, self.trial)

    def _learned(self) -> bytes:
        if self.trial.recovery is None:
            return b""
        with closing(open_store(self.database, read_only=True)) as store:
            return learned_weights(store, self.trial)

    def _file(self) -> map_file.MapFile:
        return map_file.MapFile.model_validate(self._document()).with_learned(self._learned())


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """The maps of a job: a table for people, and each map by its name or number.

    ``result[34]`` is the map of trial 34; iterating yields the maps on the front, the fastest first.
    """

    job: JobRecord
    trials: tuple[TrialRecord, ...]
    #: Numbers of the trials on the front.
    members: tuple[int, ...]
    #: URL of the database that holds the job.
    database: str
    #: Sentences about how the data were used.
    told: tuple[str, ...] = ()

    @classmethod
    def read(cls, store: ReadStore, job_id: str, database: str, told: tuple[str, ...] = ()) -> "Result":
        """Return the result of a job as it is recorded now."""
        job = store.job(job_id)
        return cls(
            job=job,
            trials=tuple(store.trials(job_id)),
            members=front.front_members(store, job),
            database=database,
            told=told,
        )

    @property
    def best(self) -> TunedMap:
        """The recommended map: the fastest within the limits, or the knee of the front without limits.

        Raises:
            NoFeasibleMapError: if no map satisfies the limits; the message names the nearest one.
        """
        return self._picked(default_pick(self.job.spec))

    @property
    def fastest(self) -> TunedMap:
        """The map with the lowest latency within the limits. See ``best``."""
        return self._picked("fastest")

    @property
    def smallest(self) -> TunedMap:
        """The map with the smallest weights within the limits. See ``best``."""
        return self._picked("smallest")

    @property
    def most_accurate(self) -> TunedMap:
        """The map with the highest accuracy within the limits. See ``best``."""
        return self._picked("most-accurate")

    def __getitem__(self, number: int) -> TunedMap:
        """Return the map of a trial, with its final measurement if there is one.

        Raises:
            NotFoundError: if there is no such trial.
        """
        return self._picked(str(number))

    def __iter__(self) -> Iterator[TunedMap]:
        shown = front.sorted_front(self.trials, self.members, self.job.spec.objectives)
        return (TunedMap(job=self.job, trial=trial, database=self.database) for trial in shown)

    def __repr__(self) -> str:
        return as_text([*front.front_parts(self.job, self.trials, self.members), *self.told])

    def _repr_html_(self) -> str:
        return notebook.front_page(self.job, self.trials, self.members, self.told)

    def recover(
        self, *picks: str | int, time_limit: str | float | None = "5 min", epochs: int = RecoverySettings().epochs
    ) -> "Result":
        """Learn weights for maps, which then lose less at the same speed, and return the result with them.

        This result stays as it is. Each map that was recovered is a trial of its own; see ``docs/recovery.md``.

        Args:
            picks: numbers of trials, or ``knee``, ``fastest``, ``smallest``, ``most-accurate`` or ``promising``, which
                is the default: the recommended map, and faster ones that miss nothing but limits on quality.
            time_limit: time for all maps together, such as ``"5 min"`` or seconds; None for no limit.
            epochs: passes over the calibration data for each block of the model.

        Raises:
            ConflictError: if a map cannot be recovered, or its job is still running.
            NotFoundError, JobSpecError: if there is no such map.
            TaskError: if another process holds the model that was tuned.
        """
        data = {"time_limit_s": time_limit, "epochs": epochs}
        settings = validated(RecoverySection, data, "the recovery is wrong").settings(self.job.spec.search.seed)
        wanted = [str(each) for each in picks] or [PROMISING]
        with same_threads(), closing(open_store(self.database)) as store:
            with ConsoleListener(self.job.spec.objectives[0]) as listener:
                recover_maps(store, self.job.id, wanted, settings, listener=listener)
            return Result.read(store, self.job.id, self.database, self.told)

    def bundle(self, folder: str | PathLike[str], *, max_mib: float | None = None) -> Path:
        """Write the maps of the front into one folder, to deploy them together, and return the folder.

        ``autotune.load_bundle`` reads it. The recommended map is always among them.

        Args:
            folder: where to write.
            max_mib: most MiB that the weights of all maps may take together; None takes the whole front.

        Raises:
            NoFeasibleMapError: if no measured map satisfies the constraints.
            ConflictError: if the recommended map needs more, or runs on another runtime.
            MapError: if a file cannot be written.
        """
        max_bytes = None if max_mib is None else int(max_mib * MIB)
        selection = selected(self.job, self.trials, self.members, max_bytes)
        learned = {trial.number: self[trial.number]._learned() for trial in selection.trials}
        bundle.write(self.job, selection, learned, Path(folder))
        return Path(folder)

    def plot(self) -> notebook.Chart:
        """Return a chart of the front, which a notebook shows; ``save`` writes it as an HTML file."""
        best = recommended(self.trials, self.job.spec)
        return notebook.chart(self.job, self.trials, self.members, best.number if best else None)

    def to_frame(self) -> "pd.DataFrame":
        """Return the trials as a data frame with one row per trial, whose number is the index."""
        import pandas as pd

        rows = trials_csv.rows(self.trials, self.members)
        return pd.DataFrame(rows, columns=trials_csv.columns(self.trials)).set_index("number")

    def dashboard(self) -> RunningDashboard:
        """Serve the dashboard of the job's database on this machine until this process ends, and return its address."""
        return RunningDashboard.start(self.database, self.job.id)

    def _picked(self, how: str) -> TunedMap:
        trial = pick(self.trials, how, self.job.spec.objectives)
        return TunedMap(job=self.job, trial=trial, database=self.database)
