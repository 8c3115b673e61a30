"""What a command knows of the person or script that called it, and how it says things."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from bi_performance_wire.streams import CONTROLS_IN_JSON, visible

if TYPE_CHECKING:
    from bi_performance_wire.address import Candidate

DONE, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3

MARKS = {"ok": "32", "off": "2", "info": "36", "warning": "33", "degraded": "33"}
"""The colors of states; any other is red."""


class Exit(Exception):
    """End the program with a status and, unless empty, a sentence on standard error."""

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Console(NamedTuple):
    """The global options, and where output goes."""

    socket: str | None
    json: bool
    seconds: float
    color: bool

    def say(self, text: str) -> None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def document(self, value: object) -> None:
        """Print one JSON document, as --json-output promises."""
        import json

        text = json.dumps(value, indent=2, ensure_ascii=False, default=_json_of)
        self.say(text.translate(CONTROLS_IN_JSON))

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text

    def mark(self, state: str) -> str:
        """A colored bullet with the state's name: never color alone."""
        return self.paint(f"● {visible(state)}", MARKS.get(state, "31"))

    @property
    def columns(self) -> int | None:
        """The terminal's width; None when the output is no terminal."""
        if not sys.stdout.isatty():
            return None
        given = os.environ.get("COLUMNS", "")
        try:
            found = int(given) if given.isdigit() else os.get_terminal_size(1).columns
        except OSError:
            return 80
        # A terminal that does not know says 0.
        return found or 80

    def candidates(self) -> list[Candidate]:
        from bi_performance_wire.address import candidates

        return candidates(self.socket, os.environ, os.getuid())

    def ask(self, method: str, args: dict[str, Any] | None = None) -> Any:
        """One request; raises Exit with the contract's statuses."""
        from bi_performance.protocol import Unavailable, ask
        from bi_performance_wire.errors import WireError

        path = self.find_socket()
        try:
            return ask(path, method, args, seconds=self.seconds)
        except WireError as error:
            self.refused(error)
        except Unavailable as error:
            raise Exit(UNREACHABLE, f"the daemon on {path} does not answer: {error}") from None
        except OSError as error:
            raise Exit(
                UNREACHABLE,
                f"the daemon on {path} is not reachable: {error.strerror or error}."
                " Start it with bi-performanced; bi-performance doctor looks closer",
            ) from None

    def find_socket(self) -> str:
        found = self.candidates()
        for candidate in found:
            if candidate.refused is None:
                return candidate.path
        tried = "".join(f"\n  {each.path}: {each.refused}" for each in found)
        raise Exit(
            UNREACHABLE,
            "no daemon was found. Start one with bi-performanced, or name its socket with"
            f" --socket PATH. Tried:{tried}",
        )

    def refused(self, error: Any) -> NoReturn:
        hint = f" ({error.hint})" if error.hint else ""
        raise Exit(FAILED, f"{error.code}: {error.message}{hint}")


def _json_of(value: object) -> Any:
    """JSON has no bytes: as text where they are UTF-8, else with an escape for each odd byte."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return str(value)
