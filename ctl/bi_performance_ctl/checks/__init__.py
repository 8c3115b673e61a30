"""The checks of `doctor`: each yields findings, one a line."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One check: `state` is ok, warning or failed; `remedy` is empty when it is ok."""

    check: str
    state: str
    detail: str
    remedy: str = ""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def warning(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, "warning", detail, remedy)


def failed(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, "failed", detail, remedy)
