"""The documentation page: every route of the OpenAPI document, as one static page without scripts."""

from collections.abc import Iterator, Mapping
from typing import Any

from autotune.markup import Html, html, join, table, tag

_STYLE = Html(
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}code{background:#f0f0f0;padding:0 .25em}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;vertical-align:top;padding:.25rem .5rem;border-top:1px solid #ccc}.wide{overflow-x:auto}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#161616}code{background:#333}a{color:#9cf}}"
)
#: What the page needs beyond the policy of all other answers: its own style.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def documentation(document: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI document."""
    title = f"{document['info']['title']} {document['info']['version']}: HTTP API"
    head = tag("head", Html('<meta charset="utf-8">'), tag("title", title), tag("style", _STYLE))
    groups: dict[str, list[Html]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_route(method.upper(), path, operation))
    body = tag(
        "body",
        tag("h1", title),
        tag(
            "p",
            "Send a token with every request that needs one: ",
            tag("code", "Authorization: Bearer TOKEN"),
            ". ",
            tag("code", "autotune token add NAME"),
            " creates one. For programs, the same description is the ",
            tag("a", "OpenAPI document", href="v1/openapi.json"),
            ".",
        ),
        *(join([tag("h2", name), *routes]) for name, routes in groups.items()),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _route(method: str, path: str, operation: Mapping[str, Any]) -> Html:
    scope = operation.get("x-scope")
    access = f"Needs a token of scope {scope}." if scope else "Needs no token."
    rows = list(_parameters(operation))
    return join(
        [
            tag("h3", tag("code", f"{method} {path}"), html(f" {operation['summary']}")),
            tag("p", f"{operation.get('description', '')} {access}"),
            table(("parameter", "in", "meaning"), rows) if rows else Html(""),
        ]
    )


def _parameters(operation: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, place and meaning of each parameter, then of the body."""
    for parameter in operation.get("parameters", ()):
        needed = "required" if parameter.get("required") else "optional"
        yield tag("code", parameter["name"]), parameter["in"], f"{parameter.get('description', '')} ({needed})".strip()
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        example = content.get("example")
        yield tag("code", kind), "body", tag("code", str(example)) if example else ""
