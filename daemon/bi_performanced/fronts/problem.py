"""Problem details (RFC 9457): how every HTTP error is answered."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Final

from bi_performance_wire import errors
from bi_performance_wire.errors import WireError

MEDIA_TYPE: Final = "application/problem+json"

STATUS: Final = {
    errors.INVALID_REQUEST: 400,
    errors.INVALID_ARGUMENT: 400,
    errors.UNKNOWN_METHOD: 404,
    errors.NOT_FOUND: 404,
    errors.TOO_LARGE: 413,
    errors.BUSY: 503,
    errors.TIMEOUT: 504,
    errors.UNAVAILABLE: 503,
    errors.PERMISSION_DENIED: 403,
    errors.INTERNAL: 500,
}


def problem(status: int, detail: str, **members: str | None) -> bytes:
    """A problem document; members that are None are left out."""
    found: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    found.update({name: value for name, value in members.items() if value is not None})
    return json.dumps(found).encode() + b"\n"


def problem_of(error: WireError) -> tuple[int, bytes]:
    """Status and document of an error."""
    status = STATUS[error.code]
    return status, problem(
        status, error.message, code=error.code, field=error.field, hint=error.hint
    )


def raw_response(status: int, detail: str, **members: str | None) -> bytes:
    """A whole HTTP/1.1 response that ends its connection, for what never reaches the routes."""
    body = problem(status, detail, **members)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
