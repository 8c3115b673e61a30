"""The OpenAPI 3.1 document, made from the command table."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from bi_performance_wire import __version__
from bi_performance_wire.commands import Command
from bi_performance_wire.types import Result
from bi_performanced.events import TOPICS
from bi_performanced.fronts.problem import MEDIA_TYPE

TEXT_FORMATS: Final = (
    "text/plain; version=0.0.4; charset=utf-8",
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
)
"""What `metrics` answers in besides JSON."""


class Problem(Result, frozen=True, kw_only=True):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str | None = None
    field: str | None = None
    hint: str | None = None


def document(rows: tuple[Command, ...]) -> dict[str, Any]:
    """OpenAPI for every row that has a route."""
    served = [row for row in rows if row.http is not None]
    types: list[Any] = [Problem]
    types += [row.result_type() for row in served if row.result]
    types += [row.args_type() for row in served if row.args]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    by_type = dict(zip((each.__name__ for each in types), schemas, strict=True))
    problem = {"content": {MEDIA_TYPE: {"schema": by_type["Problem"]}}}
    paths: dict[str, dict[str, Any]] = {}
    for row in served:
        assert row.http is not None
        verb, path = row.http
        answer = by_type[row.result] if row.result else {}
        content = {"application/json": {"schema": answer}}
        if row.name == "metrics":
            content |= {media: {"schema": {"type": "string"}} for media in TEXT_FORMATS}
        operation: dict[str, Any] = {
            "operationId": row.name.replace(".", "_"),
            "summary": row.summary,
            "parameters": _parameters(row, components),
            "responses": {
                "200": {"description": "done", "content": content},
                "default": {"description": "a problem (RFC 9457)", **problem},
            },
        }
        paths.setdefault(path, {})[verb.lower()] = operation
    paths["/performance/events"] = {"get": {**_events(), "responses": _stream(problem)}}
    for path, summary in (
        ("/performance/livez", "200 while the daemon's loop turns."),
        ("/performance/readyz", "200 when everything is bound, 503 with the reasons else."),
    ):
        paths[path] = {
            "get": {
                "operationId": path.rpartition("/")[2],
                "summary": summary,
                "responses": {
                    "200": {"description": "yes"},
                    "default": {"description": "no", **problem},
                },
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bi-performance",
            "version": __version__,
            "description": "The performance sidecar of the Business Intelligence Scraper.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _events() -> dict[str, Any]:
    return {
        "operationId": "events",
        "summary": "Events as they happen, as server-sent events, until either side ends it.",
        "parameters": [
            {
                "name": "topics",
                "in": "query",
                "required": False,
                "description": "only these; else all",
                "schema": {"type": "array", "items": {"enum": list(TOPICS)}},
                "style": "form",
                "explode": False,
            },
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "description": "go on after this one, as far as it is kept",
                "schema": {"type": "string"},
            },
        ],
    }


def _stream(problem: dict[str, Any]) -> dict[str, Any]:
    return {
        "200": {
            "description": "a stream of events, each with id, event and data (JSON)",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        "default": {"description": "a problem (RFC 9457)", **problem},
    }


def _parameters(row: Command, components: dict[str, Any]) -> list[dict[str, Any]]:
    if row.args is None:
        return []
    schema = components[row.args]
    required = set(schema.get("required", ()))
    return [
        {
            "name": name,
            "in": "path" if row.http and f"{{{name}}}" in row.http[1] else "query",
            "required": name in required,
            "schema": part,
        }
        for name, part in schema["properties"].items()
    ]
