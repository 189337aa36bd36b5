"""The application: routes behind a guard, with error handlers and an OpenAPI description."""

import functools
import threading
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Match, Route

import autotune
from autotune.api import event_stream, read_routes, write_routes
from autotune.api.caller import PREFIX, SCOPE_KEY, check_scope, needs
from autotune.api.documentation import POLICY, documentation
from autotune.api.guard import Guard
from autotune.api.metrics import Metrics
from autotune.api.responses import STATUSES, answer, problem, refusal
from autotune.api.settings import ApiSettings
from autotune.client import json_records
from autotune.errors import FieldError, JobSpecError, MethodNotAllowedError
from autotune.jobs.records import Scope
from autotune.jobs.spec import JobSpec
from autotune.store.base import Store
from search_spaces.errors import AutotuneError

_TITLE = "quant-autotune"
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": "What is wrong and how to fix it", "content": _ERROR}
    for status in sorted({*STATUSES.values()})
}

_service = APIRouter()
_ROUTERS = (_service, read_routes.router, write_routes.router, event_stream.router)


def create_app(store: Store, settings: ApiSettings, check_database: Callable[[], None]) -> FastAPI:
    """Return the API of a store.

    Args:
        store: where jobs are recorded.
        settings: who may call, and how often.
        check_database: raises an error unless this version can use the database.
    """
    app = FastAPI(
        title=_TITLE,
        version=autotune.__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(check_scope)],
        responses=_REFUSALS,
    )
    app.state.store, app.state.settings, app.state.check_database = store, settings, check_database
    app.state.metrics = Metrics(store)
    #: Set when streams should end.
    app.state.stopping = threading.Event()
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.add_middleware(Guard, store=store, settings=settings, metrics=app.state.metrics)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


@_service.get("/healthz", summary="Check that the process responds", response_model=dict[str, str])
def is_alive() -> Response:
    """Respond while the process runs."""
    return answer(dict[str, str], {"status": "ok"})


@_service.get("/readyz", summary="Check that the database can be used", response_model=dict[str, str])
def is_ready(request: Request) -> Response:
    """Check that the database is reachable and its tables match this version."""
    try:
        request.app.state.check_database()
    except AutotuneError:
        # Callers need no token, so the answer must not reveal where the database is.
        return problem("StoreUnavailableError", "the database cannot be used; see the service's log for the cause", 503)
    return answer(dict[str, str], {"status": "ok"})


@_service.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    openapi_extra=needs(Scope.VIEWER),
)
def show_metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    return PlainTextResponse(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


@_service.get(f"{PREFIX}/openapi.json", summary="Describe the API for programs")
def show_description(request: Request) -> Response:
    """Return the OpenAPI document."""
    return answer(dict[str, Any], describe(request.app))


@_service.get("/docs", summary="Describe the API for people", response_class=HTMLResponse)
def show_documentation(request: Request) -> Response:
    """Return this page."""
    page = documentation(describe(request.app))
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})


@functools.cache
def describe(app: FastAPI) -> dict[str, Any]:
    """Return the API's OpenAPI document."""
    document = get_openapi(title=_TITLE, version=app.version, routes=app.routes)
    components = document["components"]
    for model in (json_records.ErrorAnswer, JobSpec, write_routes.Plan, write_routes.TokenRequest):
        schema = TypeAdapter(model).json_schema(ref_template="#/components/schemas/{model}")
        components["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["tags"] = [_tag_of(path)]
            if SCOPE_KEY not in operation:
                operation["security"] = []
    return document


def _tag_of(path: str) -> str:
    """Return the group of routes that a path belongs to."""
    subject = path.removeprefix(f"{PREFIX}/").partition("/")[0]
    if subject in ("jobs", "tokens"):
        return subject.capitalize()
    return "Jobs" if subject in ("find-job", "tallies", "probes", "artifacts") else "Service"


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, AutotuneError)
    return refusal(error)


def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request)))
        told = refusal(MethodNotAllowedError(f"{request.url.path} takes {allowed}, but got {request.method}"))
        told.headers["Allow"] = allowed
        return told
    known = "no such route; see /docs" if error.status_code == 404 else str(error.detail)
    answered = problem("NotFoundError" if error.status_code == 404 else "AutotuneError", known, error.status_code)
    answered.headers.update(error.headers or {})
    return answered


def _methods(request: Request) -> set[str]:
    """Return the methods that the path of a request takes; each is a route of its own."""
    routes = [route for router in _ROUTERS for route in router.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in matching for method in route.methods or ()}


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        FieldError(path=".".join(str(part) for part in item["loc"]), message=item["msg"]) for item in error.errors()
    ]
    return refusal(JobSpecError("\n  ".join(["the request is not valid:", *map(str, found)]), found))


def _failed(request: Request, error: Exception) -> Response:
    # The traceback goes to the log; the caller learns no internals.
    return problem("AutotuneError", "the service failed; see its log for the cause", 500)


_HANDLERS = {AutotuneError: _refused, HTTPException: _unknown, RequestValidationError: _malformed, Exception: _failed}
