"""Reads the store and caches the results until the job's version changes. Opens the database read-only."""

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
import streamlit as st

from autotune.errors import NotFoundError
from autotune.jobs.front import without_superseded
from autotune.jobs.records import EventRecord, FrontRecord, JobRecord, JobState, TrialRecord
from autotune.search.probing import probes_of
from autotune.store.base import WatchStore
from autotune.store.open import default_url, open_store
from dashboard.tables.jobs import JobSummary
from dashboard.tables.trials import candidate_name, trial_frame
from workers.measurement import LatencySamples
from workers.setup import Probes

#: Largest share of the time spent on reading one running job, however many people watch it.
_READING_SHARE = 0.1

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Progress:
    """The results of a job so far."""

    #: Version of the job when this was read.
    version: int
    #: All trials, by ascending number.
    trials: Sequence[TrialRecord]
    #: Every revision of the front, oldest first.
    fronts: Sequence[FrontRecord]
    #: ``dashboard.tables.trials.trial_frame`` of the trials without superseded ones.
    frame: pd.DataFrame
    #: Number of each trial, as in the URL -> name.
    names: Mapping[str, str]
    #: Probes of the layers, taken before any map was measured; None if nothing was probed.
    probes: Probes | None

    @property
    def members(self) -> frozenset[int]:
        """Numbers of the trials on the current front."""
        return frozenset(self.fronts[-1].members) if self.fronts else frozenset()


def jobs() -> list[JobRecord]:
    """Return all jobs, newest first.

    Raises:
        StoreError: if the database cannot be opened or read.
    """
    return _jobs(default_url()).all()


def waiting() -> list[JobRecord]:
    """Return the queued and running jobs with their current leases; the cache would miss renewals of a lease.

    Raises:
        StoreError: if the database cannot be opened or read.
    """
    store = _store(default_url())
    return [job for state in JobState if state.is_live for job in store.jobs(state=state)]


def job(job_id: str) -> JobRecord:
    """Return the current state of one job.

    Raises:
        NotFoundError: if there is no such job.
        StoreError: if the database cannot be opened or read.
    """
    return _jobs(default_url()).one(job_id)


def summary(record: JobRecord) -> JobSummary:
    """Return a summary of a job's progress, reading only the trials on its front."""
    cached_summary = _summary(default_url(), record.id, record.version, record)
    return dataclasses.replace(cached_summary, job=record)  # its stage may be newer than its version


def progress(record: JobRecord) -> Progress:
    """Return the trials and fronts of ``record``, from memory unless its version changed.

    Those of a running job may be slightly outdated, so that watching it does not keep the machine busy.
    """
    watched = _watched(default_url(), record.id)
    if watched.was_read:
        return watched.progress(record)
    with st.spinner("Reading the job ..."):
        return watched.progress(record)


def latency(record: JobRecord, number: int) -> tuple[LatencySamples, ...]:
    """Return a trial's raw latencies, one entry per batch size and workload; empty if there are none."""
    return _latency(default_url(), record.id, number)


def artifact(sha256: str) -> bytes:
    """Return the bytes of an artifact.

    Raises:
        NotFoundError, StoreError: see ``ReadStore.artifact``.
    """
    return _store(default_url()).artifact(sha256)


def probes(record: JobRecord, backend: str) -> Probes | None:
    """Return a job's probes on one of its backends, empty for that of its reference; None if there are none."""
    return _probes(default_url(), record.id, record.version, backend, record)


def events(record: JobRecord) -> list[EventRecord]:
    """Return the events of a job, oldest first."""
    return _events(default_url(), record.id, record.version)


def cached(make: Callable[[], T], *key: Hashable) -> T:
    """Return the result of ``make``, cached for all readers under ``key``; callers must not change it.

    Args:
        make: computes the result from data of this database that ``key`` identifies.
        key: plain values: first the kind of result, then the data, with a version if the data can change.
    """
    made: T = _cached((default_url(), *key), make)
    return made


def database_text() -> str:
    """Return the URL of the database without user name and password."""
    return re.sub(r"(?<=://)[^/@][^@]*@", "", default_url())


class _Jobs:
    """The jobs of a database. Only changed jobs are read again, because their descriptions are long."""

    def __init__(self, store: WatchStore) -> None:
        self._store = store
        self._read: dict[str, JobRecord] = {}

    def all(self) -> list[JobRecord]:
        """Return all jobs, newest first."""
        versions, known = self._store.versions(), self._read
        changed = {job_id for job_id, version in versions.items() if not _is_current(known.get(job_id), version)}
        # Two threads may both read the changed jobs; the result of the last one is at least as new.
        read = self._store.jobs() if changed and not known else [self._store.job(job_id) for job_id in changed]
        newest = known | {job.id: job for job in read}
        self._read = {job_id: newest[job_id] for job_id in versions}
        stages = self._store.stages()
        return [
            dataclasses.replace(job, stage=stages[job.id]) if job.id in stages else job for job in self._read.values()
        ]

    def one(self, job_id: str) -> JobRecord:
        """Return one job."""
        found = next((job for job in self.all() if job.id == job_id), None)
        if found is None:
            raise NotFoundError(f"no job {job_id!r} in this database")
        return found


def _is_current(job: JobRecord | None, version: int) -> bool:
    return job is not None and job.version >= version


class _Watched:
    """The progress of one job, shared by all its readers."""

    def __init__(self, store: WatchStore) -> None:
        self._store = store
        self._reading = threading.Lock()
        self._read: Progress | None = None
        #: One row per trial read, by number, including superseded trials.
        self._rows = pd.DataFrame()
        self._next_at = 0.0

    @property
    def was_read(self) -> bool:
        """Whether the job was read before."""
        return self._read is not None

    def progress(self, record: JobRecord) -> Progress:
        """Return the progress as of ``record``, or an older one if the job is being read or was read recently."""
        read = self._read
        if read and record.state.is_live:
            recent = read.version >= record.version or time.monotonic() < self._next_at
            if recent or self._reading.locked():
                return read
        with self._reading:
            return self._renew(record)

    def _renew(self, record: JobRecord) -> Progress:
        if self._read and self._read.version >= record.version:  # another thread read it meanwhile
            return self._read
        began = time.monotonic()
        new = self._new_trials(record.id)
        trials = sorted([*(self._read.trials if self._read else ()), *new], key=lambda trial: trial.number)
        rows = trial_frame(new).set_index("number", drop=False)
        rows = pd.concat([self._rows, rows]) if len(self._rows) else rows
        found = Progress(
            version=record.version,
            trials=trials,
            fronts=self._store.fronts(record.id),
            frame=rows.loc[[trial.number for trial in without_superseded(trials)]].reset_index(drop=True),
            names={str(trial.number): candidate_name(trial) for trial in trials},
            probes=self._read.probes if self._read and self._read.probes else probes_of(self._store, record),
        )
        ended = time.monotonic()
        self._next_at = ended + (ended - began) * (1.0 / _READING_SHARE - 1.0)
        self._read, self._rows = found, rows
        return found

    def _new_trials(self, job_id: str) -> list[TrialRecord]:
        """Return the trials that were not read before; recorded trials never change."""
        if self._read is None:
            return self._store.trials(job_id)
        known = {trial.number for trial in self._read.trials}
        return self._store.trials(job_id, numbers=[n for n in self._store.numbers(job_id) if n not in known])


# Records are frozen, so they can be shared; ``cache_data`` would pickle and copy them at every read.


@st.cache_resource(max_entries=4, show_spinner=False)
def _store(url: str) -> WatchStore:
    return open_store(url, read_only=True)


@st.cache_resource(max_entries=4, show_spinner=False)
def _jobs(url: str) -> _Jobs:
    return _Jobs(_store(url))


@st.cache_resource(max_entries=1024, show_spinner=False)
def _summary(url: str, job_id: str, version: int, _record: JobRecord) -> JobSummary:
    tally = _store(url).tallies([job_id])[job_id]
    front = _store(url).trials(job_id, numbers=tally.front)
    return JobSummary(job=_record, searched=tally.searched, front=front)


@st.cache_resource(max_entries=64, show_spinner=False)
def _probes(url: str, job_id: str, version: int, backend: str, _record: JobRecord) -> Probes | None:
    return probes_of(_store(url), _record, backend)


@st.cache_resource(max_entries=128, show_spinner=False)
def _cached(key: tuple[Hashable, ...], _make: Callable[[], Any]) -> Any:
    return _make()


@st.cache_resource(max_entries=256, show_spinner=False)
def _watched(url: str, job_id: str) -> _Watched:
    return _Watched(_store(url))


@st.cache_resource(max_entries=64, show_spinner=False)
def _latency(url: str, job_id: str, number: int) -> tuple[LatencySamples, ...]:
    return _store(url).latency(job_id, number)


@st.cache_resource(max_entries=64, show_spinner=False)
def _events(url: str, job_id: str, version: int) -> list[EventRecord]:
    return _store(url).events(job_id)
