"""Requests made up from the API's own description."""

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation.case import Case
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from autotune.api.app import create_app
from autotune.api.settings import ApiSettings
from autotune.client.tokens import add_token
from autotune.jobs.records import Scope
from autotune.store.in_memory import MemoryStore

store = MemoryStore()
app = create_app(store, ApiSettings(host_names=("testserver",)), lambda: None)
HEADERS = {"Authorization": f"Bearer {add_token(store, 'fuzz', scope=Scope.ADMIN).text}"}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app, headers=HEADERS)


@schema.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_answers_are_the_described_ones(case: Case) -> None:
    if case.operation.path.endswith("/progress") and store.jobs():
        return  # a stream that would last as long as the job
    response = case.call(headers=HEADERS)
    case.validate_response(response, checks=CHECKS)
    assert "Traceback" not in response.text
