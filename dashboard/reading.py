"""Reads of the store, each kept until the job's version moves. Opens the database read-only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from autotune.store.base import ReadStore
from autotune.store.open import default_url, open_store
from autotune.store.records import FrontRecord, JobRecord, TrialRecord
from workers.measurement import LatencySamples


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a job has found so far."""

    #: By ascending number.
    trials: Sequence[TrialRecord]
    #: Every revision of the front, oldest first.
    fronts: Sequence[FrontRecord]

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
    """Return the trials and fronts of ``record``, from memory unless its version moved."""
    return _progress(default_url(), record.id, record.version)


def latency(record: JobRecord, number: int) -> tuple[LatencySamples, ...]:
    """Return a trial's raw latencies, by batch size; empty if there are none."""
    return _latency(default_url(), record.id, number)


def place() -> str:
    """Return where the database is, without user name and password."""
    return re.sub(r"(?<=://)[^/@][^@]*@", "", default_url())


# Records are frozen and shared as they are: ``cache_data`` would pickle and copy them on every read.


@st.cache_resource(max_entries=4, show_spinner=False)
def _store(url: str) -> ReadStore:
    return open_store(url, read_only=True)


@st.cache_resource(max_entries=256, show_spinner=False)
def _progress(url: str, job_id: str, version: int) -> Progress:
    store = _store(url)
    return Progress(trials=store.trials(job_id), fronts=store.fronts(job_id))


@st.cache_resource(max_entries=64, show_spinner=False)
def _latency(url: str, job_id: str, number: int) -> tuple[LatencySamples, ...]:
    return _store(url).latency(job_id, number)
