"""Routes that submit and control jobs, and routes that manage tokens."""

import logging
from typing import Annotated, Any
from urllib.parse import unquote

import yaml
from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict

from autotune.api.caller import PREFIX, Body, Caller, Session, needs
from autotune.api.read_routes import JobId
from autotune.api.responses import answer
from autotune.client.tokens import NewToken
from autotune.errors import JobSpecError
from autotune.jobs.records import JobRecord, Scope, TokenRecord
from autotune.jobs.spec import JobSpec
from autotune.jobs.strict_yaml import load_json
from autotune.validation import M, validated

_log = logging.getLogger(__name__)

router = APIRouter(prefix=PREFIX)

Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="Repeating a request with the same key and job returns the first job."),
]
#: Example of a job file.
_JOB = {
    "name": "minilm-12ms",
    "task": {"name": "minilm-lee"},
    "objectives": ["latency_p50_ms", "divergence"],
    "constraints": {"accuracy_drop": {"max": 0.01}},
    "search": {"trials": 40},
}
_SUBMIT = needs(Scope.SUBMITTER)
_ADMIN = needs(Scope.ADMIN)


class Plan(BaseModel):
    """Changes to a job that are allowed while it runs; omitted fields stay unchanged."""

    model_config = ConfigDict(extra="forbid")

    trials: int | None = None
    #: Null removes the limit.
    time_limit_s: float | None = None
    priority: int | None = None


class TokenRequest(BaseModel):
    """A token to create."""

    model_config = ConfigDict(extra="forbid")

    name: str
    scope: Scope = Scope.SUBMITTER
    #: Days until it expires; null means never.
    days: float | None = None


def _takes(model: type[BaseModel], example: dict[str, Any], *more_types: str) -> dict[str, Any]:
    """Return the OpenAPI description of a body that routes parse themselves, to report its errors like all others."""
    content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": example}
    types = ("application/json", *more_types)
    return {"requestBody": {"required": True, "content": dict.fromkeys(types, content)}}


@router.post(
    "/jobs",
    summary="Submit a job",
    status_code=201,
    response_model=JobRecord,
    openapi_extra=_SUBMIT | _takes(JobSpec, _JOB, "application/yaml"),
)
def submit_job(
    caller: Caller,
    body: Body,
    content_type: Annotated[str, Header()] = "application/json",
    key: Key = None,
    priority: Annotated[int, Query(description="Jobs with higher priority start first.")] = 0,
) -> Response:
    """Queue the job described by a job file in JSON or YAML."""
    spec = JobSpec.read(body, source="job file", as_json="json" in content_type)
    job = caller.client.submit(spec, key=_decoded(key), priority=priority)
    return _done("submitted", caller, job, status=201)


@router.post(
    "/jobs/{job_id}/clone", summary="Clone a job", status_code=201, response_model=JobRecord, openapi_extra=_SUBMIT
)
def clone_job(caller: Caller, job_id: JobId, key: Key = None) -> Response:
    """Submit a copy of a job as your own new job."""
    return _done("cloned", caller, caller.client.clone(job_id, key=_decoded(key)), status=201)


@router.post("/jobs/{job_id}/pause", summary="Pause a job", response_model=JobRecord, openapi_extra=_SUBMIT)
def pause_job(caller: Caller, job_id: JobId) -> Response:
    """Pause one of your jobs."""
    return _done("paused", caller, caller.client.pause(caller.own(job_id).id))


@router.post("/jobs/{job_id}/resume", summary="Resume a job", response_model=JobRecord, openapi_extra=_SUBMIT)
def resume_job(caller: Caller, job_id: JobId) -> Response:
    """Queue one of your jobs to continue."""
    return _done("resumed", caller, caller.client.resume(caller.own(job_id).id))


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", response_model=JobRecord, openapi_extra=_SUBMIT)
def cancel_job(caller: Caller, job_id: JobId) -> Response:
    """Cancel one of your jobs; its results are kept."""
    return _done("cancelled", caller, caller.client.cancel(caller.own(job_id).id))


@router.patch(
    "/jobs/{job_id}",
    summary="Change a job's budget or priority",
    response_model=JobRecord,
    openapi_extra=_SUBMIT | _takes(Plan, {"trials": 200, "time_limit_s": 1800}),
)
def change_plan(caller: Caller, job_id: JobId, body: Body) -> Response:
    """Change the trials, the time limit or the priority of one of your jobs, even while it runs."""
    changes = _parsed(Plan, body).model_dump(exclude_unset=True)
    return _done("replanned", caller, caller.client.change_plan(caller.own(job_id).id, **changes))


@router.post(
    "/tokens",
    summary="Create a token",
    status_code=201,
    response_model=NewToken,
    openapi_extra=_ADMIN | _takes(TokenRequest, {"name": "ann", "scope": "submitter", "days": 90}),
)
def add_token(caller: Caller, body: Body) -> Response:
    """Create a token. Only this response contains its text."""
    wanted = _parsed(TokenRequest, body)
    made = caller.client.add_token(wanted.name, scope=wanted.scope, days=wanted.days)
    _log.info("token %s of %s created by %s", made.token.id, made.token.name, caller.holder.name)
    return answer(NewToken, made, status=201)


@router.get("/tokens", summary="List tokens", response_model=list[TokenRecord], openapi_extra=_ADMIN)
def list_tokens(caller: Caller) -> Response:
    """Return all tokens, without their texts, oldest first."""
    return answer(list[TokenRecord], caller.client.tokens())


@router.delete("/tokens/{token_id}", summary="Revoke a token", response_model=TokenRecord, openapi_extra=_ADMIN)
def revoke_token(caller: Caller, token_id: Annotated[str, Path(max_length=64)]) -> Response:
    """Revoke a token with immediate effect."""
    revoked = caller.client.revoke_token(token_id)
    _log.info("token %s of %s revoked by %s", revoked.id, revoked.name, caller.holder.name)
    return answer(TokenRecord, revoked)


def _decoded(key: str | None) -> str | None:
    # Headers can hold Latin-1 characters only, so clients may percent-encode the key.
    return None if key is None else unquote(key)


def _done(what: str, caller: Session, job: JobRecord, *, status: int = 200) -> Response:
    _log.info("%s by %s", what, caller.holder.name, extra={"job": job.id})
    return answer(JobRecord, job, status=status)


def _parsed(model: type[M], body: bytes) -> M:
    try:
        data = load_json(body)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobSpecError(f"the request is not valid JSON: {error}") from None
    return validated(model, data, "the request is not valid")
