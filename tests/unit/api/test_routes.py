"""The HTTP API: who may do what, what is refused, and how."""

import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from autotune.api import event_stream
from autotune.api.app import create_app, describe
from autotune.api.guard import Guard, _Failures
from autotune.api.settings import ApiSettings, parse_listen
from autotune.client import tokens
from autotune.client.actions import submit
from autotune.client.follow import Update, Watcher
from autotune.client.local import Limits
from autotune.errors import JobSpecError, StoreUnavailableError, UnauthenticatedError
from autotune.jobs import lifecycle
from autotune.jobs.records import (
    Artifact,
    ArtifactKind,
    Scope,
    TokenRecord,
    TrialKind,
    TrialRecord,
    TrialResult,
    TrialState,
)
from autotune.jobs.spec import MAX_BYTES, JobSpec
from autotune.jobs.timestamps import now
from autotune.store.in_memory import MemoryStore
from workers.recovered import digest

ROOT = Path(__file__).parents[3]
JOB = {
    "schema": "autotune.job/v1",
    "name": "job",
    "task": {"name": "digits-cnn", "parameters": {"seed": 1}},
    "objectives": ["latency_p50_ms", "divergence"],
    "constraints": {"accuracy_drop": {"max": 0.01}},
    "search": {"choices": ["fp32", "int8_static"], "layers": [{"pattern": "*", "pin": "fp32"}], "trials": 9},
}

#: Every route, and the scope it needs; None is open.
SCOPES = {
    "GET /healthz": None,
    "GET /readyz": None,
    "GET /metrics": Scope.VIEWER,
    "GET /docs": None,
    "GET /v1/openapi.json": None,
    "GET /v1/schema": Scope.VIEWER,
    "GET /v1/tasks": Scope.VIEWER,
    "GET /v1/jobs": Scope.VIEWER,
    "POST /v1/jobs": Scope.SUBMITTER,
    "GET /v1/find-job": Scope.VIEWER,
    "GET /v1/tallies": Scope.VIEWER,
    "GET /v1/jobs/{job_id}": Scope.VIEWER,
    "PATCH /v1/jobs/{job_id}": Scope.SUBMITTER,
    "POST /v1/jobs/{job_id}/pause": Scope.SUBMITTER,
    "POST /v1/jobs/{job_id}/resume": Scope.SUBMITTER,
    "POST /v1/jobs/{job_id}/cancel": Scope.SUBMITTER,
    "POST /v1/jobs/{job_id}/clone": Scope.SUBMITTER,
    "GET /v1/jobs/{job_id}/progress": Scope.VIEWER,
    "GET /v1/jobs/{job_id}/events": Scope.VIEWER,
    "GET /v1/jobs/{job_id}/trials": Scope.VIEWER,
    "GET /v1/jobs/{job_id}/trials/{number}": Scope.VIEWER,
    "GET /v1/jobs/{job_id}/trials/{number}/latency": Scope.VIEWER,
    "GET /v1/jobs/{job_id}/fronts": Scope.VIEWER,
    "GET /v1/jobs/{job_id}/probes": Scope.VIEWER,
    "GET /v1/jobs/{job_id}/map": Scope.VIEWER,
    "GET /v1/probes/{key}": Scope.VIEWER,
    "GET /v1/artifacts/{sha256}": Scope.VIEWER,
    "GET /v1/tokens": Scope.ADMIN,
    "POST /v1/tokens": Scope.ADMIN,
    "DELETE /v1/tokens/{token_id}": Scope.ADMIN,
}
PROTECTED = {route: scope for route, scope in SCOPES.items() if scope}


class Service:
    """An API on a store in memory, and how it is called."""

    def __init__(self, **changes: Any) -> None:
        self.store = MemoryStore()
        self.app = create_app(self.store, ApiSettings(**changes), self._check)
        self.http = TestClient(self.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        self.tokens = {scope: tokens.add_token(self.store, scope.value, scope=scope).text for scope in Scope}
        self.is_down = False

    def _check(self) -> None:
        if self.is_down:
            raise StoreUnavailableError("the database postgresql://secret-host failed")

    def call(self, route: str, scope: Scope | None = Scope.ADMIN, **request: Any) -> Any:
        method, _, path = route.partition(" ")
        headers = {"Authorization": f"Bearer {self.tokens[scope]}"} if scope else {}
        headers |= request.pop("headers", {})
        return self.http.request(method, path, headers=headers, **request)

    def forgive(self) -> None:
        """Forget wrong tokens."""
        layer = self.app.middleware_stack
        while not isinstance(layer, Guard):
            layer = layer.app
        layer._failures = _Failures()

    def problem(self, code: int, route: str, scope: Scope | None = Scope.ADMIN, **request: Any) -> str:
        """Return the message of an error, after checking its form."""
        response = self.call(route, scope, **request)
        assert response.status_code == code, response.text
        assert "Traceback" not in response.text
        assert set(response.json()) == {"error"}
        assert set(response.json()["error"]) == {"kind", "message", "errors"}
        return str(response.json()["error"]["message"])


@pytest.fixture
def service() -> Iterator[Service]:
    built = Service()
    with built.http:
        yield built


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    """One for all tests that change nothing."""
    built = Service()
    with built.http:
        yield built


def routes_of(app: Any) -> set[str]:
    """Every route of the application, wherever it was included from."""
    found: set[str] = set()
    for route in app.routes:
        for leaf in [route] if isinstance(route, APIRoute) else route.original_router.routes:
            assert isinstance(leaf, APIRoute), f"{leaf} is no route that the guard knows"
            found |= {f"{method} {leaf.path}" for method in leaf.methods or ()}
    return found


def filled(route: str) -> str:
    return re.sub(r"\{\w+\}", "0", route)


def test_every_route_is_known(service: Service) -> None:
    assert routes_of(service.app) == set(SCOPES)


def test_every_route_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    listed = dict(re.findall(r"^\| `([A-Z]+ \S+)` \| (\w+) \|", page, re.MULTILINE))
    assert listed == {route: scope.value if scope else "none" for route, scope in SCOPES.items()}


def test_every_route_says_what_it_does(service: Service) -> None:
    document = describe(service.app)
    described = {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert described.keys() == SCOPES.keys()
    for route, operation in described.items():
        assert operation["summary"]
        assert operation.get("x-scope") == (SCOPES[route] and SCOPES[route].value), route
        assert "ErrorAnswer" in json.dumps(operation["responses"]["422"])


@pytest.mark.parametrize("route", PROTECTED)
def test_no_route_answers_without_a_token(shared: Service, route: str) -> None:
    shared.forgive()
    wrong = "autotune_0_" + "x" * 43
    for authorization in ("", "Bearer", f"Bearer {wrong}", f"Basic {shared.tokens[Scope.ADMIN]}"):
        shared.problem(401, filled(route), None, headers={"Authorization": authorization})
    assert shared.call(filled(route), None).headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("route", PROTECTED)
def test_no_route_answers_to_a_narrower_scope(shared: Service, route: str) -> None:
    for scope in Scope:
        response = shared.call(filled(route), scope)
        assert (response.status_code == 403) == (not scope.includes(PROTECTED[route])), (scope, response.text)


@pytest.mark.parametrize("path", ["/", "/docs/", "/openapi.json", "/v1", "/v1/nothing", "//healthz", "/healthz/"])
def test_other_paths_need_a_token_too(shared: Service, path: str) -> None:
    assert shared.call(f"GET {path}", None, follow_redirects=False).status_code == 401
    assert shared.call(f"GET {path}", follow_redirects=False).status_code in (307, 404)


def test_open_routes_say_whether_the_service_is_well(service: Service) -> None:
    assert service.call("GET /healthz", None).json() == {"status": "ok"}
    assert service.call("GET /readyz", None).json() == {"status": "ok"}
    service.is_down = True
    assert "secret-host" not in service.problem(503, "GET /readyz", None)


def test_answers_carry_the_headers_that_keep_browsers_out(service: Service) -> None:
    for response in (service.call("GET /v1/jobs"), service.call("GET /v1/jobs", None)):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert response.headers["Cache-Control"] == "no-store"


def test_an_artifact_is_sent_once_as_it_is(service: Service) -> None:
    job = submit(service.store, JobSpec.parse(JOB))
    data = bytes(5000)  # would be compressed
    kept = Artifact(sha256=digest(data), kind=ArtifactKind.LEARNED_WEIGHTS, data=data)
    trial = TrialRecord(
        job_id=job.id, number=0, kind=TrialKind.SEARCH, label=None, state=TrialState.COMPLETE, choices={}, key="k",
        finished_at=now(),
    )  # fmt: skip
    service.store.record([TrialResult(trial=trial, artifacts=(kept,))], epoch=job.epoch)
    route, tag = f"GET /v1/artifacts/{kept.sha256}", f'"{kept.sha256}"'
    response = service.call(route, Scope.VIEWER)
    assert response.content == data
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["Content-Length"] == "5000"
    assert (response.headers["ETag"], response.headers["Cache-Control"]) == (
        tag,
        "private, max-age=31536000, immutable",
    )
    again = service.call(route, Scope.VIEWER, headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert service.call(route, headers={"If-None-Match": '"other"'}).content == data
    assert "no artifact 'abc'" in service.problem(404, "GET /v1/artifacts/abc", Scope.VIEWER)


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Host": "[oops"}, {"Origin": "http://evil.example"}, {"Origin": "null"}]
)
def test_strangers_names_are_refused(shared: Service, headers: dict[str, str]) -> None:
    assert "--host-name" in shared.problem(403, "GET /v1/jobs", headers=headers)


def test_a_host_name_is_answered_to() -> None:
    service = Service(address="0.0.0.0", host_names=("Tuning.example",))
    assert service.call("GET /v1/jobs", headers={"Host": "tuning.example:80"}).status_code == 200
    service.problem(403, "GET /v1/jobs", headers={"Host": "other.example"})


def test_without_authentication_only_loopback_is_listened_on() -> None:
    with pytest.raises(JobSpecError, match=r"loopback only, but got address '0\.0\.0\.0'"):
        ApiSettings(address="0.0.0.0", authentication=False)
    service = Service(authentication=False)
    assert service.call("POST /v1/jobs", None, json=JOB).json()["owner"] == "local"
    service.problem(403, "POST /v1/jobs", None, json=JOB, headers={"Origin": "http://evil.example"})


@pytest.mark.parametrize("text", ["8123", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", ":1"])
def test_wrong_address_to_listen_on(text: str) -> None:
    with pytest.raises(JobSpecError, match="ADDRESS:PORT"):
        parse_listen(text)
    assert parse_listen("[::1]:80") == ("::1", 80)


def test_tokens_expire_and_are_revoked(service: Service) -> None:
    made = service.call("POST /v1/tokens", json={"name": "ann", "scope": "viewer", "days": 1}).json()
    headers = {"Authorization": f"Bearer {made['text']}"}
    assert service.call("GET /v1/jobs", None, headers=headers).status_code == 200
    assert made["text"] not in service.call("GET /v1/tokens").text
    assert "hash" not in service.call("GET /v1/tokens").text
    assert service.call(f"DELETE /v1/tokens/{made['token']['id']}").json()["revoked_at"]
    service.problem(401, "GET /v1/jobs", None, headers=headers)


def test_an_expired_token_is_refused() -> None:
    store, at = MemoryStore(), now()
    text = tokens.add_token(store, "ann", days=1).text
    (token,) = store.tokens()
    assert token.expires_at is not None
    assert token.is_valid(at)
    assert not token.is_valid(token.expires_at)
    assert tokens.holder(store, text) == token
    old = TokenRecord(id="old", name="x", scope=Scope.ADMIN, created_at=at, expires_at=at - timedelta(seconds=1))
    store.add_token(old, tokens._hash("autotune_old_secret"))
    with pytest.raises(UnauthenticatedError):
        tokens.holder(store, "autotune_old_secret")


def test_only_the_hash_of_a_token_is_kept(service: Service) -> None:
    for text in service.tokens.values():
        token, kept = service.store.token(text.split("_")[1]) or (None, "")
        assert token is not None
        assert len(text.split("_", 2)[2]) >= 43  # 256 bits in base 64
        assert re.fullmatch("[0-9a-f]{64}", kept)


def test_wrong_tokens_are_slowed_down_and_right_ones_are_not(service: Service) -> None:
    codes = [service.call("GET /v1/jobs", None).status_code for _ in range(25)]
    assert codes == [401] * 20 + [429] * 5
    assert service.call("GET /v1/jobs").status_code == 200


def test_jobs_are_changed_by_their_owner_and_admins_only(service: Service) -> None:
    job = service.call("POST /v1/jobs", Scope.SUBMITTER, json=JOB).json()
    assert job["owner"] == "submitter"
    foreign = submit(service.store, JobSpec.parse(JOB), owner="ann").id
    for action in ("POST {}/pause", "POST {}/resume", "POST {}/cancel", "PATCH {}"):
        route = action.format(f"/v1/jobs/{foreign}")
        message = service.problem(403, route, Scope.SUBMITTER, content='{"trials": 3}')
        assert message == f"job {foreign} belongs to ann; only ann and admins may change it"
        assert service.call(route, Scope.ADMIN, content='{"trials": 3}').status_code == 200
    assert service.call(f"POST /v1/jobs/{foreign}/clone", Scope.SUBMITTER).json()["owner"] == "submitter"


def test_the_job_file_may_be_yaml(service: Service) -> None:
    response = service.call(
        "POST /v1/jobs", content=yaml.safe_dump(JOB), headers={"Content-Type": "application/yaml; charset=utf-8"}
    )
    assert (response.status_code, response.json()["name"]) == (201, "job")


def test_a_key_stands_for_one_job_of_one_user(service: Service) -> None:
    key = {"Idempotency-Key": "nightly"}
    first = service.call("POST /v1/jobs", json=JOB, headers=key).json()
    assert service.call("POST /v1/jobs", json=JOB, headers=key).json() == first
    other = service.problem(409, "POST /v1/jobs", json=JOB | {"name": "other"}, headers=key)
    assert "the key 'nightly' was already used" in other
    assert service.call("POST /v1/jobs", Scope.SUBMITTER, json=JOB, headers=key).json()["id"] != first["id"]


def test_users_have_limits() -> None:
    service = Service(limits=Limits(live_jobs=2, trials=9))
    for _ in range(2):
        service.call("POST /v1/jobs", json=JOB)
    assert "a user may have 2 queued or running jobs" in service.problem(409, "POST /v1/jobs", json=JOB)
    assert service.call("POST /v1/jobs", Scope.SUBMITTER, json=JOB).status_code == 201
    many = JOB | {"search": {"trials": 10}}
    assert "search.trials: must be at most 9" in service.problem(422, "POST /v1/jobs", json=many)
    job_id = service.store.jobs()[0].id
    assert "at most 9" in service.problem(422, f"PATCH /v1/jobs/{job_id}", json={"trials": 10})
    newest = service.store.jobs()[1].id
    service.call(f"POST /v1/jobs/{newest}/pause")
    service.call("POST /v1/jobs", json=JOB)
    assert "a user may have 2 queued or running jobs" in service.problem(409, f"POST /v1/jobs/{newest}/resume")


def test_tasks_that_a_service_does_not_know_are_refused_where_no_other_may() -> None:
    strange = JOB | {"task": {"name": "digits-cmm"}}
    trusting, knowing = Service(), Service(limits=Limits(unknown_tasks=False))
    cloned = submit(knowing.store, JobSpec.parse(strange)).id
    assert trusting.call("POST /v1/jobs", json=strange).status_code == 201
    assert knowing.call("POST /v1/jobs", json=JOB).status_code == 201
    for route, body in (("POST /v1/jobs", strange), (f"POST /v1/jobs/{cloned}/clone", None)):
        refused = knowing.problem(422, route, json=body)
        assert refused.startswith("task.name: unknown task 'digits-cmm'; did you mean 'digits-cnn'? Known: causal-lm, ")


def test_bodies_are_cut_off_while_they_are_read(service: Service) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 10_000

    assert "at most" in service.problem(413, "POST /v1/jobs", content=b"x" * (MAX_BYTES + 1))
    assert "at most" in service.problem(413, "POST /v1/jobs", content=endless())
    assert service.store.jobs() == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"", "must be a mapping|not valid JSON", id="empty"),
        pytest.param(b"\xff\xfe\xfa", "not valid JSON", id="no text"),
        pytest.param(b"[" * 60_000, "levels", id="deep"),
        pytest.param(b'{"name": "a", "name": "b"}', "'name' is repeated", id="twice"),
        pytest.param(b'{"name": NaN}', "finite", id="nan"),
        pytest.param(b'{"search": {"trials": 1e999}}', "search.trials", id="infinite"),
        pytest.param(b"[]", "mapping", id="list"),
    ],
)
def test_broken_json_is_refused(service: Service, content: bytes, says: str) -> None:
    started = time.process_time()
    message = service.problem(422, "POST /v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert re.search(says, message)
    assert time.process_time() - started < 2.0
    assert service.store.jobs() == []


def paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a job file."""
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(path for key, child in children for path in paths(child, (*at, key)))]


def mutated(path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    data = json.loads(json.dumps(JOB))
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return data


TEXTS = ["../../etc/passwd", "os:system", "'; DROP TABLE jobs; --", "${secret:", "\0", "\ud800", "x" * 5000]
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(max_value=-1),
    st.floats(max_value=-0.5),
    st.just(1e400),
    st.text(max_size=20),
    st.sampled_from(TEXTS),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5) | st.sampled_from(TEXTS), st.none(), min_size=1, max_size=3),
)


def test_mutated_job_files_never_break_it(shared: Service) -> None:
    seconds = []

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(path=st.sampled_from([path for path in paths(JOB) if path]), value=WRONG)
    def check(path: tuple[Any, ...], value: Any) -> None:
        before = len(shared.store.jobs())
        content = json.dumps(mutated(path, value))
        started = time.process_time()
        response = shared.call("POST /v1/jobs", content=content, headers={"Content-Type": "application/json"})
        seconds.append(time.process_time() - started)
        assert response.status_code in (201, 409, 422), response.text
        assert "Traceback" not in response.text
        if response.status_code == 422:
            assert len(shared.store.jobs()) == before
            message = response.json()["error"]["message"]
            assert any(word in message for word in (str(path[0]), "objectives", "JSON"))

    check()
    assert sorted(seconds)[-10] < 0.2  # the slowest were held up by other processes


@pytest.mark.parametrize(
    "route",
    [
        "GET /v1/jobs?state=nothing",
        "GET /v1/jobs?limit=0",
        "GET /v1/jobs?limit=1000",
        "GET /v1/jobs/0/trials?after=99999999999",
        "GET /v1/jobs/0/trials/-1",
        "GET /v1/jobs/%00",
        "GET /v1/find-job?reference=%00",
        "GET /v1/find-job",
        "GET /v1/tallies",
        "POST /v1/jobs?priority=x",
    ],
)
def test_wrong_parameters_are_refused(shared: Service, route: str) -> None:
    shared.problem(422, route)


def test_wrong_methods_and_paths_are_told_alike(service: Service) -> None:
    assert service.problem(405, "PUT /v1/jobs") == "/v1/jobs takes GET, POST, but got PUT"
    response = service.call("DELETE /v1/jobs/a")
    assert response.headers["Allow"] == "GET, PATCH"
    assert response.json()["error"]["kind"] == "MethodNotAllowedError"
    assert "/docs" in service.problem(404, "GET /v1/nothing")
    assert "no job 'gone'" in service.problem(404, "GET /v1/jobs/gone")


def test_errors_of_a_job_file_are_a_list_with_paths(service: Service) -> None:
    wrong = JOB | {"objective": ["x"], "search": {"trials": 0, "choices": ["int8_statik"]}}
    found = {one["path"]: one for one in service.call("POST /v1/jobs", json=wrong).json()["error"]["errors"]}
    assert found.keys() == {"objective", "search.trials", "search.choices.0"}
    assert found["objective"]["suggestion"] == "objectives"
    assert found["search.choices.0"]["suggestion"] == "int8_static"
    assert found["search.trials"]["suggestion"] is None
    assert found["search.trials"]["message"] == "must be greater than or equal to 1, but got 0"
    (parameter,) = service.call("GET /v1/jobs?limit=0").json()["error"]["errors"]
    assert parameter["path"] == "query.limit"


def test_limits_of_a_service_name_the_field() -> None:
    service = Service(limits=Limits(trials=9, unknown_tasks=False))
    for wrong, path, suggestion in (
        (JOB | {"task": {"name": "digits-cmm"}}, "task.name", "digits-cnn"),
        (JOB | {"search": {"trials": 10}}, "search.trials", None),
    ):
        (error,) = service.call("POST /v1/jobs", json=wrong).json()["error"]["errors"]
        assert (error["path"], error["suggestion"]) == (path, suggestion)
    (error,) = service.call("POST /v1/jobs?priority=5000", json=JOB).json()["error"]["errors"]
    assert error["path"] == "priority"


def test_the_api_is_described_without_a_token(service: Service) -> None:
    response = service.call("GET /docs", None)
    assert response.headers["Content-Type"].startswith("text/html")
    assert "<script" not in response.text
    assert "style-src 'unsafe-inline'" in response.headers["Content-Security-Policy"]
    for route, scope in SCOPES.items():
        assert f"<code>{route}</code>" in response.text
        assert not scope or f"Needs a token of scope {scope}." in response.text
    document = service.call("GET /v1/openapi.json", None).json()
    assert document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["example"]["name"]
    assert document["paths"]["/docs"]["get"]["security"] == []
    assert "/docs" in service.problem(401, "GET /v1/jobs", None)


def test_limits_that_are_not_set_are_left_out(service: Service) -> None:
    job = service.call("POST /v1/jobs", json=JOB).json()
    assert job["spec"]["constraints"] == {"accuracy_drop": {"max": 0.01}}


def test_inner_errors_are_not_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(service.store, "jobs", fail)
    assert service.problem(500, "GET /v1/jobs") == "the service failed; see its log for the cause"


def test_a_database_that_is_away_is_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise StoreUnavailableError("the database is away")

    monkeypatch.setattr(service.store, "jobs", fail)
    assert service.problem(503, "GET /v1/jobs") == "the database is away"
    assert service.call("GET /v1/jobs").headers["Retry-After"] == "1"


def test_progress_is_told_as_events(service: Service) -> None:
    job_id = service.call("POST /v1/jobs", json=JOB).json()["id"]
    service.store.change_job(job_id, lifecycle.claimed("d"))
    service.store.change_job(job_id, lifecycle.settled(1, lifecycle.JobState.FINISHED, "Search finished"))
    response = service.call(f"GET /v1/jobs/{job_id}/progress")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    (event,) = response.text.strip().split("\n\n")
    name, number, data = event.split("\n")
    assert (name, number) == ("event: state", "id: 2")
    update = json.loads(data.removeprefix("data: "))
    assert (update["state"], [e["kind"] for e in update["events"]]) == ("finished", ["started", "finished"])
    response = service.call(f"GET /v1/jobs/{job_id}/progress", headers={"Last-Event-ID": "1"})
    assert [e["kind"] for e in json.loads(response.text.split("data: ")[1])["events"]] == ["finished"]
    service.problem(422, f"GET /v1/jobs/{job_id}/progress", headers={"Last-Event-ID": "x"})
    service.problem(404, "GET /v1/jobs/gone/progress")


@pytest.mark.parametrize("authentication", [True, False])
def test_a_stream_ends_with_its_token(authentication: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    service, looks = Service(authentication=authentication), 0
    job_id, look = submit(service.store, JobSpec.parse(JOB)).id, Watcher.look

    def revoke_and_look(watcher: Watcher) -> Update | None:
        nonlocal looks
        looks += 1
        if looks == 2:
            service.store.revoke_token(service.tokens[Scope.VIEWER].split("_")[1])
        if looks == 5:
            service.app.state.stopping.set()
        return look(watcher)

    monkeypatch.setattr(Watcher, "look", revoke_and_look)
    monkeypatch.setattr(event_stream, "LOOK_S", 0.0)
    assert service.call(f"GET /v1/jobs/{job_id}/progress", Scope.VIEWER).status_code == 200
    assert looks == (2 if authentication else 5)


def test_metrics_count_jobs_and_requests(service: Service) -> None:
    service.call("POST /v1/jobs", json=JOB)
    for method in ("AAA", "AAB"):
        service.call(f"{method} /v1/jobs")
    text = service.call("GET /metrics").text
    assert 'autotune_requests_total{method="other",route="/v1/jobs",status="405"} 2.0' in text
    assert "AA" not in text
    assert 'autotune_jobs{state="queued"} 1.0' in text
    assert 'autotune_trials_total{outcome="complete"} 0.0' in text
    assert 'autotune_requests_total{method="POST",route="/v1/jobs",status="201"} 1.0' in text
    assert "autotune_queue_age_seconds" in text
    assert "autotune_lease_takeovers_total 0.0" in text
