"""Routes that read jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response

from autotune.api.caller import PREFIX, Caller, needs
from autotune.api.responses import Bytes, answer
from autotune.client import json_records
from autotune.errors import NotFoundError
from autotune.jobs.front import find_trial, pick
from autotune.jobs.recommendation import default_pick
from autotune.jobs.records import EventRecord, FrontRecord, JobRecord, JobState, Scope, TrialRecord
from autotune.jobs.spec import JobSpec
from autotune.maps import map_file
from autotune.maps.map_file import MapFile
from autotune.search.probing import probes_of
from workers.setup import Probes
from workers.tasks import TaskInfo

router = APIRouter(prefix=PREFIX)

_VIEW = needs(Scope.VIEWER)
#: Largest number that fits an integer column of a database.
_LARGEST = 2**31 - 1

JobId = Annotated[str, Path(max_length=64, description="Id of the job.")]
Number = Annotated[int, Path(ge=0, le=_LARGEST, description="Number of the trial.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Maximum number of items.")]
Names = Annotated[list[str], Query(min_length=1, max_length=100)]
Numbers = Annotated[list[Annotated[int, Query(ge=0, le=_LARGEST)]] | None, Query(max_length=100)]


@router.get("/jobs", summary="List jobs, newest first", response_model=json_records.JobPage, openapi_extra=_VIEW)
def list_jobs(
    caller: Caller,
    state: JobState | None = None,
    after: Annotated[str | None, Query(max_length=64, description="The ``next`` of the previous page.")] = None,
    limit: Limit = 50,
) -> Response:
    """Return a page of jobs; request further pages until ``next`` is null."""
    jobs = caller.client.records.jobs(state=state, after=after, limit=limit + 1)
    following = jobs[limit - 1].id if len(jobs) > limit else None
    return answer(json_records.JobPage, json_records.JobPage(jobs=tuple(jobs[:limit]), next=following))


@router.get("/find-job", summary="Find a job by name", response_model=JobRecord, openapi_extra=_VIEW)
def find_job(caller: Caller, reference: Annotated[str, Query(max_length=100)]) -> Response:
    """Return the job with the given id, start of an id, or name; ``last`` is the newest."""
    return answer(JobRecord, caller.client.find(reference))


@router.get("/jobs/{job_id}", summary="Show a job", response_model=JobRecord, openapi_extra=_VIEW)
def show_job(caller: Caller, job_id: JobId) -> Response:
    """Return one job."""
    return answer(JobRecord, caller.client.records.job(job_id))


@router.get("/tallies", summary="Count jobs' trials", response_model=json_records.Tallies, openapi_extra=_VIEW)
def show_tallies(caller: Caller, job: Names) -> Response:
    """Return the jobs' progress by id."""
    return answer(json_records.Tallies, json_records.Tallies(tallies=dict(caller.client.records.tallies(job))))


@router.get("/jobs/{job_id}/trials", summary="List trials", response_model=json_records.TrialPage, openapi_extra=_VIEW)
def list_trials(
    caller: Caller,
    job_id: JobId,
    after: Annotated[int, Query(ge=-1, le=_LARGEST, description="The ``next`` of the previous page.")] = -1,
    limit: Limit = 100,
    number: Numbers = None,
) -> Response:
    """Return a page of a job's trials by ascending number; ``number`` selects trials."""
    trials = caller.client.records.trials(job_id, numbers=number, after=after, limit=limit + 1)
    following = trials[limit - 1].number if len(trials) > limit else None
    return answer(json_records.TrialPage, json_records.TrialPage(trials=tuple(trials[:limit]), next=following))


@router.get("/jobs/{job_id}/trials/{number}", summary="Show a trial", response_model=TrialRecord, openapi_extra=_VIEW)
def show_trial(caller: Caller, job_id: JobId, number: Number) -> Response:
    """Return one trial."""
    return answer(TrialRecord, find_trial(caller.client.records.trials(job_id, numbers=[number]), number))


@router.get(
    "/jobs/{job_id}/trials/{number}/latency",
    summary="Show raw latencies",
    response_model=tuple[json_records.Latency, ...],
    openapi_extra=_VIEW,
)
def show_latency(caller: Caller, job_id: JobId, number: Number) -> Response:
    """Return a trial's raw latencies, one entry per workload and batch size; empty if it was not timed."""
    samples = caller.client.records.latency(job_id, number)
    return answer(tuple[json_records.Latency, ...], tuple(map(json_records.Latency.of, samples)))


@router.get("/jobs/{job_id}/fronts", summary="Show fronts", response_model=list[FrontRecord], openapi_extra=_VIEW)
def list_fronts(caller: Caller, job_id: JobId) -> Response:
    """Return every revision of a job's front, oldest first; the last one is current."""
    return answer(list[FrontRecord], caller.client.records.fronts(job_id))


@router.get("/jobs/{job_id}/events", summary="List events", response_model=list[EventRecord], openapi_extra=_VIEW)
def list_events(caller: Caller, job_id: JobId, start: Annotated[int, Query(ge=0, le=_LARGEST)] = 0) -> Response:
    """Return a job's events, oldest first, without the first ``start`` ones."""
    return answer(list[EventRecord], caller.client.records.events(job_id, start=start))


@router.get("/jobs/{job_id}/probes", summary="Show sensitivities", response_model=Probes, openapi_extra=_VIEW)
def show_job_probes(caller: Caller, job_id: JobId) -> Response:
    """Return the predicted effects of a job's layers, taken before any map was measured."""
    found = probes_of(caller.store, caller.client.records.job(job_id))
    if found is None:
        raise NotFoundError(f"job {job_id} has no sensitivities yet, or its sampler does not probe layers")
    return answer(Probes, found)


@router.get("/probes/{key}", summary="Show probes by key", response_model=Probes, openapi_extra=_VIEW)
def show_probes(caller: Caller, key: Annotated[str, Path(max_length=64)]) -> Response:
    """Return the probes recorded under a key."""
    found = caller.client.records.probes(key)
    if found is None:
        raise NotFoundError(f"no probes {key!r} in this database")
    return answer(Probes, found)


@router.get(
    "/artifacts/{sha256}",
    summary="Download a file",
    response_class=Bytes,
    responses={304: {"description": "The caller has it already"}},
    openapi_extra=_VIEW,
)
def show_artifact(
    caller: Caller,
    sha256: Annotated[str, Path(max_length=64, description="sha256 of its bytes, which a recovered map names.")],
    known: Annotated[str | None, Header(alias="If-None-Match")] = None,
) -> Response:
    """Return the learned weights of a recovered map, a safetensors file that never changes."""
    # The bytes of a hash never change, so a caller that has them needs no look at the database.
    if known is not None and _tag(sha256) in known:
        return Response(status_code=304, headers=_immutable(sha256))
    return Bytes(caller.client.records.artifact(sha256), headers=_immutable(sha256))


@router.get("/jobs/{job_id}/map", summary="Export a map", response_model=MapFile, openapi_extra=_VIEW)
def export_map(
    caller: Caller,
    job_id: JobId,
    choose: Annotated[str | None, Query(alias="pick", max_length=20, description="See ``autotune export``.")] = None,
) -> Response:
    """Return the map file of one of a job's maps, as ``autotune export`` writes it."""
    job = caller.client.records.job(job_id)
    how = choose or default_pick(job.spec)
    trial = pick(caller.client.records.trials(job_id), how, job.spec.objectives, job.spec.constraints.constraints())
    return Response(map_file.dump(map_file.map_document(job, trial)), media_type="application/json")


def _tag(sha256: str) -> str:
    return f'"{sha256}"'


def _immutable(sha256: str) -> dict[str, str]:
    # Private, because readers need a token; not compressed, so that the size is known.
    return {
        "ETag": _tag(sha256),
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Encoding": "identity",
    }


@router.get("/tasks", summary="List tasks", response_model=list[TaskInfo], openapi_extra=_VIEW)
def list_tasks(caller: Caller) -> Response:
    """Return the tasks available to job files, with their parameters."""
    return answer(list[TaskInfo], caller.client.tasks())


@router.get("/schema", summary="Describe job files", response_model=dict[str, Any], openapi_extra=_VIEW)
def show_schema() -> Response:
    """Return the JSON schema of job files."""
    return answer(dict[str, Any], JobSpec.json_schema())
