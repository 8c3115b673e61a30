"""The one error that crosses the socket, and its codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

INVALID_REQUEST: Final = "invalid_request"
UNKNOWN_METHOD: Final = "unknown_method"
INVALID_ARGUMENT: Final = "invalid_argument"
NOT_FOUND: Final = "not_found"
TOO_LARGE: Final = "too_large"
BUSY: Final = "busy"
TIMEOUT: Final = "timeout"
UNAVAILABLE: Final = "unavailable"
PERMISSION_DENIED: Final = "permission_denied"
INTERNAL: Final = "internal"

CODES: Final = frozenset(
    {
        INVALID_REQUEST,
        UNKNOWN_METHOD,
        INVALID_ARGUMENT,
        NOT_FOUND,
        TOO_LARGE,
        BUSY,
        TIMEOUT,
        UNAVAILABLE,
        PERMISSION_DENIED,
        INTERNAL,
    }
)


class WireError(Exception):
    """An answer that is an error: a code of CODES, one sentence, the field and the remedy.

    Raised where the fault is found, turned into a map (socket), a problem document (HTTP) or a
    line on standard error (CLI) at the edge, and nowhere else.
    """

    def __init__(
        self, code: str, message: str, *, field: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint

    def to_map(self) -> dict[str, str]:
        """The error as it stands in a MessagePack-RPC response."""
        found = {"code": self.code, "message": self.message}
        if self.field is not None:
            found["field"] = self.field
        if self.hint is not None:
            found["hint"] = self.hint
        return found

    @classmethod
    def from_map(cls, error: object) -> WireError:
        """Read an error map of a peer; anything malformed becomes `internal`."""
        if not isinstance(error, Mapping):
            return cls(INTERNAL, f"the peer answered with an error of another form: {error!r:.200}")
        code = error.get("code")
        field, hint = error.get("field"), error.get("hint")
        return cls(
            code if isinstance(code, str) and code in CODES else INTERNAL,
            str(error.get("message", "no message was given")),
            field=field if isinstance(field, str) else None,
            hint=hint if isinstance(hint, str) else None,
        )
