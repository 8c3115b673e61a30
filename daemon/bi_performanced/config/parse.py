"""From text and file values to a setting's type, with an error that says how to mend it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bi_performanced.config.settings import Declared

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
TOO_MANY_DIGITS = "a number of too many digits"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_URL_SCHEMES = {
    "cache.redis_url": (
        *("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"),
        *("redis+cluster", "rediss+cluster"),
    ),
    "database.url": ("postgresql", "postgres", "sqlite"),
}


class Problem(Exception):
    """One thing that is wrong with one value: a sentence that names field and remedy."""


def convert(row: Declared, value: Any, source: str) -> Any:
    """The value of a setting in its type; raises Problem. `source` is named in the sentence."""
    try:
        found = _typed(row, value)
    except ValueError as error:
        shown = "a secret" if row.meta.secret else _shown(value)
        raise Problem(f"{source}: {row.key} must be {error}, not {shown}") from None
    return found


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except ValueError:
        return TOO_MANY_DIGITS


def _typed(row: Declared, value: Any) -> Any:
    kind = row.type
    meta = row.meta
    if isinstance(value, bool) and kind != "bool":
        value = _word(row, value)
    if kind == "bool":
        return _boolean(value)
    if meta.kind == "size":
        return _bounded(row, _size(value))
    if kind == "int":
        return _bounded(row, _integer(value))
    if kind == "float":
        return _bounded(row, _number(value))
    if kind.startswith("tuple"):
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("a list of names")
        return tuple(name.strip() for name in names if name.strip())
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("text that is not empty")
    if kind.startswith("Path"):
        return Path(value).expanduser()
    if meta.choices:
        return _choice(row, value)
    if meta.kind == "url":
        return _url(row, value)
    if row.key == "cache.on_partition" and not re.fullmatch(
        r"miss|stale\(\d{1,6}(\.\d+)?\)", value
    ):
        raise ValueError("miss or stale(SECONDS)")
    if row.key == "http.listen":
        listen(value)
    return value


def listen(value: str) -> tuple[str, int] | None:
    """Host and port of `http.listen`; None for `off`. Raises ValueError."""
    if value.lower() == "off":
        return None
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("HOST:PORT with a port up to 65535, or off")
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        raise ValueError("HOST:PORT with a host such as 127.0.0.1, or off")
    return host, int(port)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE and not isinstance(value, float):
        return True
    if text in _FALSE and not isinstance(value, float):
        return False
    raise ValueError("true or false (also yes, no, on, off, 1, 0)")


def _word(row: Declared, value: bool) -> Any:
    """The word that YAML read as a truth value, where the setting has it."""
    word = "on" if value else "off"
    return word if word in row.meta.choices or (row.key, word) == ("http.listen", "off") else value


def _integer(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    raise ValueError("a whole number")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("a number") from None
    except OverflowError:
        raise ValueError("a finite number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d{1,18})\s*([kmgt]?)(i?)(b?)\s*", str(value), re.IGNORECASE)
    if match is None or isinstance(value, float):
        raise ValueError("bytes, or a size such as 64 MiB")
    number, prefix, binary, byte = match.groups()
    # kB, MB and GB are SI's; KiB, MiB, GiB, and the letters alone, are powers of 1024.
    base = 1000 if byte and not binary else 1024
    size: int = int(number) * base ** _POWERS[prefix.lower()]
    return size


def _bounded(row: Declared, value: float) -> float:
    low, high, unit = row.meta.low, row.meta.high, row.meta.unit or ""
    if low is not None and value < low:
        raise ValueError(f"at least {low:.15g} {unit}".rstrip())
    if high is not None and value > high:
        raise ValueError(f"at most {high:.15g} {unit}".rstrip())
    return value


def _choice(row: Declared, value: str) -> str:
    for choice in row.meta.choices:
        if choice.lower() == value.strip().lower():
            return choice
    raise ValueError("one of " + ", ".join(row.meta.choices))


def _url(row: Declared, value: str) -> str:
    try:
        scheme = urlsplit(value).scheme.split("+asyncpg")[0]
    except ValueError:
        scheme = ""
    allowed = _URL_SCHEMES[row.key]
    if scheme not in allowed and scheme.split("+")[0] not in allowed:
        raise ValueError(f"a URL that begins with {'://, '.join(allowed)}://")
    return value
