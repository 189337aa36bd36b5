"""The maps of one backend: what was measured there, and what to measure next."""

from collections.abc import Iterator, Mapping, Sequence

from autotune.jobs.backends import competing
from autotune.jobs.records import JobRecord, TrialKind, TrialRecord, TrialState
from autotune.jobs.space import space_of
from autotune.jobs.spec import JobSpec, SamplerName
from autotune.metrics.from_measurement import MIB
from autotune.planner.prior import expect
from autotune.search.initial_design import mixtures
from autotune.search.recipes import recipe_of
from autotune.search.study import Proposal, Study
from search_spaces.choice import FULL_PRECISION, ActivationMode, choice_named
from search_spaces.quantization_map import map_key
from workers.setup import ModelDescription, Probes
from workers.timing.estimates import Figure


class BackendSearch:
    """The search on one of a job's backends, which competes with those on the others."""

    def __init__(self, spec: JobSpec, description: ModelDescription, *, is_reference: bool, slots: int) -> None:
        """Start without trials; ``relearn`` adds them.

        Args:
            spec: the job.
            description: the model on this backend.
            is_reference: whether everything is compared with full precision on this backend.
            slots: maps measured at once.
        """
        self._spec, self._description, self._slots = spec, description, slots
        #: Name of the backend, and the name under which trials record it.
        self.backend = description.environment.backend
        self.tag = "" if is_reference else self.backend
        #: Its maps.
        self.space = space_of(spec, description)
        #: What the sampler knows.
        self.study = self._study(None, ())
        #: Choices of each uniform map, and of the backend's recipe if it has one; the preferred choice comes first.
        self.baselines: list[tuple[str, ...]] = [(choice,) for choice in self.space.uniform_choices()]
        recipe = recipe_of(spec, self.backend)
        if recipe:
            self.baselines.append(recipe)
        #: Key of each of these maps -> its label. A recipe may be a uniform map, which keeps its label.
        self._labels: dict[str, str] = {}
        for choices in self.baselines:
            key = self.key(self.space.layer_choices(self.space.uniform(*choices)))
            self._labels.setdefault(key, f"{'uniform' if len(choices) == 1 else 'recipe'} {choices[0]}")
        #: Maps that the sampler chose.
        self.sampled = 0

    @property
    def full_precision(self) -> dict[str, str]:
        """The map without quantized layers."""
        return {layer.name: FULL_PRECISION.name for layer in self.space.layers}

    @property
    def urgency(self) -> tuple[float, int]:
        """Sort key that puts the backend first whose next map promises most; of equal ones, the one used least."""
        return -self.study.promise, self.sampled

    def relearn(self, trials: Sequence[TrialRecord], probes: Probes | None = None) -> None:
        """Start a new study from the job's trials on all backends, the reference first.

        Recovered maps teach nothing: their latency was measured as that of their parents.
        """
        trials = [trial for trial in trials if trial.kind is not TrialKind.RECOVERED]
        here = [trial for trial in trials if self._ran(trial)]
        self.study = self._study(probes, here)
        if self.tag and trials:
            self.study.set_scale(trials[0])
        for trial in trials:
            if not self._ran(trial):
                self.study.add_rival(trial)

    def learn(self, trial: TrialRecord, proposal: Proposal | None) -> None:
        """Learn from a trial on any backend; ``proposal`` is the one that it answers, if it answers one here."""
        if trial.kind is TrialKind.RECOVERED:
            return
        if not self._ran(trial):
            self.study.add_rival(trial)
        elif proposal is not None:
            self.study.tell(proposal, trial)
        elif trial.kind is not TrialKind.FINAL:
            self.study.add(trial)

    def tried_full_precision(self, trials: Sequence[TrialRecord]) -> bool:
        """Return whether full precision was submitted here before."""
        return any(self._ran(trial) and _is_full_precision(trial) for trial in trials)

    def has_full_precision(self, trials: Sequence[TrialRecord]) -> bool:
        """Return whether full precision was measured here."""
        found = (trial for trial in trials if self._ran(trial) and _is_full_precision(trial))
        return any(trial.state is TrialState.COMPLETE for trial in found)

    def known_figures(self, choices: Mapping[str, str]) -> dict[str, Figure]:
        """Return the figures that need no measurement: weight memory is computed exactly."""
        return {"weight_memory_mib": Figure(value=self._description.weight_bytes(choices) / MIB)}

    def baseline(self, choices: Sequence[str]) -> Proposal | None:
        """Return one of the ``baselines``, or None if it was proposed before."""
        return self.study.propose(self.space.uniform(*choices))

    def can_run(self, trial: TrialRecord) -> bool:
        """Return whether the map of another backend is a map here, too."""
        return not self._ran(trial) and self.space.holds(trial.choices)

    def key(self, choices: Mapping[str, str]) -> str:
        """Return the key of a map on this backend."""
        return map_key(choices, self.tag)

    def mixtures(self, trials: Sequence[TrialRecord]) -> Iterator[Proposal]:
        """Yield mixtures of the baselines on the front that were not measured yet."""
        search = self._spec.search
        if search.sampler is SamplerName.SENSITIVITY:
            return  # its first maps are better, because it starts from probes
        here = [trials[0], *(trial for trial in trials[1:] if self._ran(trial))]
        for assignment in mixtures(self.space, here, self._spec.objectives, seed=search.seed):
            proposal = self.study.propose(assignment)
            if proposal is not None:
                yield proposal

    def ask(self) -> Proposal | None:
        """Return the sampler's next map, or None if no map is left that is worth measuring."""
        self.sampled += 1
        return self.study.ask()

    def label_of(self, proposal: Proposal) -> str | None:
        """Return the label of a uniform map or a recipe; None for other maps."""
        return self._labels.get(proposal.key)

    def _study(self, probes: Probes | None, history: Sequence[TrialRecord]) -> Study:
        spec = self._spec
        return Study(
            self.space,
            spec.objectives,
            spec.constraints.constraints(),
            spec.search.sampler,
            seed=spec.search.seed,
            trials=spec.search.trials,
            slots=self._slots,
            prior=expect(self.space, self._description, probes, spec.rules()),
            history=history,
            backend=self.tag,
        )

    def _ran(self, trial: TrialRecord) -> bool:
        return trial.backend == self.tag


def searches_of(job: JobRecord, slots: int) -> list[BackendSearch]:
    """Return a search for each backend that can measure a job's maps, the one that everything is compared with first.

    Args:
        job: the job, with the description of its model.
        slots: maps measured at once.
    """
    described = job.description
    assert described is not None
    return [
        BackendSearch(job.spec, described.on(name), is_reference=name == described.environment.backend, slots=slots)
        for name in competing(job.spec, described)
    ]


def promise_of(choice: str) -> tuple[bool, int]:
    """Return a sort key that puts choices first whose uniform map is probably fast: those that compute in few bits."""
    known = choice_named(choice)
    return known.activation is ActivationMode.NONE, known.precision.bits


def _is_full_precision(trial: TrialRecord) -> bool:
    return set(trial.choices.values()) == {FULL_PRECISION.name}
