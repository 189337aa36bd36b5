"""Reads of the store, each kept until the job's version moves. Opens the database read-only."""

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from autotune.front import standing
from autotune.probing import probes_of
from autotune.store.base import ReadStore
from autotune.store.open import default_url, open_store
from autotune.store.records import EventRecord, FrontRecord, JobRecord, TrialRecord
from dashboard.frames import trial_frame
from workers.measurement import LatencySamples
from workers.setup import Probes

#: Share of the time at most that is spent on reading one running job, however many people watch it.
_READING_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Progress:
    """What a job has found so far."""

    #: The job's, when this was read.
    version: int
    #: By ascending number.
    trials: Sequence[TrialRecord]
    #: Every revision of the front, oldest first.
    fronts: Sequence[FrontRecord]
    #: ``dashboard.frames.trial_frame`` of the trials that count.
    frame: pd.DataFrame
    #: What was expected of every layer before any map was measured; None if nothing was probed.
    probes: Probes | None

    @property
    def members(self) -> frozenset[int]:
        """Return the numbers of the trials on the current front."""
        return frozenset(self.fronts[-1].members) if self.fronts else frozenset()


def jobs() -> list[JobRecord]:
    """Return all jobs, newest first.

    Raises:
        StoreError: if the database cannot be opened or read.
    """
    return _store(default_url()).jobs()


def job(job_id: str) -> JobRecord:
    """Return one job as it is now.

    Raises:
        NotFoundError: if there is none.
        StoreError: if the database cannot be opened or read.
    """
    return _store(default_url()).job(job_id)


def progress(record: JobRecord) -> Progress:
    """Return the trials and fronts of ``record``, from memory unless its version moved.

    Those of a running job may be a little older, so that watching it does not keep the machine busy.
    """
    watched = _watched(default_url(), record.id)
    if watched.was_read:
        return watched.progress(record)
    with st.spinner("Reading the job ..."):
        return watched.progress(record)


def latency(record: JobRecord, number: int) -> tuple[LatencySamples, ...]:
    """Return a trial's raw latencies, by batch size; empty if there are none."""
    return _latency(default_url(), record.id, number)


def events(record: JobRecord) -> list[EventRecord]:
    """Return what happened to a job, oldest first."""
    return _events(default_url(), record.id, record.version)


def place() -> str:
    """Return where the database is, without user name and password."""
    return re.sub(r"(?<=://)[^/@][^@]*@", "", default_url())


class _Watched:
    """The progress of one job, shared by everybody who looks at it."""

    def __init__(self, store: ReadStore) -> None:
        self._store = store
        self._reading = threading.Lock()
        self._read: Progress | None = None
        self._next_at = 0.0

    @property
    def was_read(self) -> bool:
        """Return whether there is something to show at once."""
        return self._read is not None

    def progress(self, record: JobRecord) -> Progress:
        """Return the progress as of ``record``; an older one if that is being read, or was a moment ago."""
        read = self._read
        if read and record.state.is_live:
            recent = read.version >= record.version or time.monotonic() < self._next_at
            if recent or self._reading.locked():
                return read
        with self._reading:
            return self._renew(record)

    def _renew(self, record: JobRecord) -> Progress:
        if self._read and self._read.version >= record.version:  # read while this one waited
            return self._read
        began = time.monotonic()
        trials = self._store.trials(record.id)
        found = Progress(
            version=record.version,
            trials=trials,
            fronts=self._store.fronts(record.id),
            frame=trial_frame(standing(trials)),
            probes=self._read.probes if self._read and self._read.probes else probes_of(self._store, record),
        )
        ended = time.monotonic()
        self._next_at = ended + (ended - began) * (1.0 / _READING_SHARE - 1.0)
        self._read = found
        return found


# Records are frozen and shared as they are: ``cache_data`` would pickle and copy them on every read.


@st.cache_resource(max_entries=4, show_spinner=False)
def _store(url: str) -> ReadStore:
    return open_store(url, read_only=True)


@st.cache_resource(max_entries=256, show_spinner=False)
def _watched(url: str, job_id: str) -> _Watched:
    return _Watched(_store(url))


@st.cache_resource(max_entries=64, show_spinner=False)
def _latency(url: str, job_id: str, number: int) -> tuple[LatencySamples, ...]:
    return _store(url).latency(job_id, number)


@st.cache_resource(max_entries=64, show_spinner=False)
def _events(url: str, job_id: str, version: int) -> list[EventRecord]:
    return _store(url).events(job_id)
