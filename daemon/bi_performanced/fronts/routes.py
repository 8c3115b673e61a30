"""The HTTP routes: one for each row of the table that has one, and the health checks."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from bi_performance_wire.errors import INVALID_ARGUMENT, TIMEOUT, WireError
from bi_performance_wire.types import Exposition
from bi_performanced.config import HttpSettings
from bi_performanced.dispatch import Bound, Caller, Dispatcher, Pending, internal
from bi_performanced.events import Broker
from bi_performanced.fronts.events import Streams
from bi_performanced.fronts.guard import Guard, Misdirected
from bi_performanced.fronts.openapi import document
from bi_performanced.fronts.problem import MEDIA_TYPE, problem, problem_of

Endpoint = Callable[[Request], Awaitable[Response]]
MAX_PARAMETERS: Final = 32
_ESCAPED: Final = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` made of bytes that are no UTF-8."""
_FORMATS: Final = {
    "application/json": "json",
    "text/html": "json",  # a browser, which shows JSON as well as text
    "text/plain": "prometheus",
    "application/openmetrics-text": "openmetrics",
}
_QUALITY: Final = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(
    settings: HttpSettings,
    dispatcher: Dispatcher,
    bound: tuple[str, int],
    ready: Callable[[], list[str]],
    broker: Broker,
) -> Starlette:
    """The ASGI application of a listener; `ready` returns the reasons why it is not."""
    guard = Guard(settings, bound)
    streams = Streams(broker, settings.max_streams)

    def route(path: str, verb: str, endpoint: Endpoint) -> Route:
        async def guarded(request: Request) -> Response:
            try:
                _check(guard, request, changes=verb == "POST")
                with trio.fail_after(settings.request_timeout):
                    return await endpoint(request)
            except Misdirected as error:
                return _problem(421, problem(421, f"this server is not {str(error)[:100]!r}"))
            except ClientDisconnect:
                # No fault of ours, and nobody reads this.
                return _problem(400, problem(400, "the request ended within its body"))
            except trio.TooSlowError:
                return _problem(*problem_of(WireError(TIMEOUT, "the answer took too long to make")))
            except WireError as error:
                return _problem(*problem_of(error))

        return Route(path, guarded, methods=[verb])

    async def livez(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain", headers=_HEADERS)

    async def readyz(_: Request) -> Response:
        reasons = ready()
        if reasons:
            return _problem(503, problem(503, "; ".join(reasons)))
        return Response("ok\n", media_type="text/plain", headers=_HEADERS)

    async def events(request: Request) -> Any:
        return streams.open(_query(request.scope["query_string"]), request.headers)

    description = msgspec.json.encode(document(dispatcher.rows)) + b"\n"

    async def openapi(_: Request) -> Response:
        return _json(description)

    routes = [
        route(row.http[1], row.http[0], _endpoint(dispatcher, dispatcher.bound[row.name]))
        for row in dispatcher.rows
        if row.http is not None
    ]
    routes += [
        route("/performance/events", "GET", events),
        route("/performance/livez", "GET", livez),
        route("/performance/readyz", "GET", readyz),
        route("/performance/openapi.json", "GET", openapi),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _http_exception, Exception: _fault},
    )
    # A path with a slash behind it is another path, and not one to be sent elsewhere from.
    app.router.redirect_slashes = False
    return app


def _check(guard: Guard, request: Request, *, changes: bool) -> None:
    scope = request.scope
    guard.check(
        changes=changes,
        path=request.url.path,
        headers=request.headers,
        client=tuple(scope["client"][:2]),
        server=tuple(scope["server"][:2]),
    )


def _endpoint(dispatcher: Dispatcher, bound: Bound) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        query = _query(request.scope["query_string"])
        for name, value in request.path_params.items():
            if name in query:
                raise WireError(INVALID_ARGUMENT, f"{name} is in the path already", field=name)
            query[name] = value
        if "format" in bound.fields and "format" not in query:
            query["format"] = _wanted_format(request.headers.get("accept", ""))
        if await request.body():
            raise WireError(
                INVALID_ARGUMENT,
                "parameters are taken from the query, not from a body",
                field="body",
                hint=f"POST {request.url.path}?NAME=VALUE",
            )
        result = dispatcher.start_text(bound, query, Caller("http"))
        if isinstance(result, Pending):
            result = await result.run()
        if isinstance(result, Exposition):
            # With its own charset in the type, which a Response would add a second time.
            headers = _HEADERS | {"Content-Type": result.media_type, "Vary": "Accept"}
            return Response(result.text, headers=headers)
        answer = _json(msgspec.json.encode(result) + b"\n")
        if "format" in bound.fields:
            answer.headers["Vary"] = "Accept"
        return answer

    return endpoint


def _wanted_format(accept: str) -> str:
    """The format of the metrics that an Accept header prefers; JSON where it does not say."""
    best, wanted = 0.0, "json"
    for part in accept.split(","):
        media, *parameters = (word.strip().lower() for word in part.split(";"))
        name = _FORMATS.get(media)
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        value = float(quality) if _QUALITY.fullmatch(quality) else 0.0
        if name is not None and value > best:
            best, wanted = value, name
    return wanted


def _query(text: bytes) -> dict[str, str]:
    """A URL's parameters by name. Raises WireError for what is none, or given twice."""
    try:
        pairs = parse_qsl(
            text.decode("latin-1"),
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:
        raise WireError(
            INVALID_ARGUMENT, f"there are more than {MAX_PARAMETERS} parameters", field="query"
        ) from None
    query: dict[str, str] = {}
    for name, value in pairs:
        shown = name[:100].encode("utf-8", "replace").decode()
        if _ESCAPED.search(name) or _ESCAPED.search(value):
            raise WireError(INVALID_ARGUMENT, f"{shown} is not UTF-8 text", field=shown)
        if name in query:
            raise WireError(INVALID_ARGUMENT, f"{shown} is given twice", field=shown)
        query[name] = value
    return query


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers=_HEADERS)


def _problem(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, media_type=MEDIA_TYPE, headers=_HEADERS | (headers or {}))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details: dict[int, str] = {
        404: f"there is nothing at {request.url.path[:200]}; /performance/openapi.json lists all",
        405: f"{request.method} is not for {request.url.path}",
    }
    text = details.get(error.status_code, error.detail)
    headers: Any = error.headers
    return _problem(error.status_code, problem(error.status_code, text), headers)


async def _fault(request: Request, error: Exception) -> Response:
    return _problem(*problem_of(internal(f"{request.method} {request.url.path}", error)))
