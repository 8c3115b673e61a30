"""Where values come from: files, environment, command line; and the nearest known name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bi_performance_wire import near
from bi_performanced.config.parse import TOO_MANY_DIGITS, Problem

MAX_FILE_BYTES = 256 << 10


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean …?)`, or nothing when no known name is near."""
    found = near.nearest(name, known)
    return f" (did you mean {found}?)" if found else ""


def find_file(given: Path | None, folder: Path) -> Path | None:
    """The configuration file that applies; raises Problem when two do, or the given one cannot."""
    if given is not None:
        return given
    found = [
        path
        for name in ("performance.toml", "performance.yaml")
        if (path := folder / "config" / name).is_file()
    ]
    if len(found) == 2:
        raise Problem(
            f"both {found[0]} and {found[1]} exist: keep one of them, or name one with --config"
        )
    return found[0] if found else None


def read_text(path: Path) -> str:
    """The text of a file that is no larger than a configuration is; raises Problem."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Problem(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise Problem(f"{path}: a configuration file has at most {MAX_FILE_BYTES} bytes")
    try:
        # With or without the mark that some editors begin a file with.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: is not UTF-8 text (byte {error.start})") from None


def read_file(path: Path) -> dict[str, Any]:
    """The map under `performance` of a TOML or YAML file; raises Problem."""
    text = read_text(path)
    found = parse_toml(path, text) if path.suffix == ".toml" else _yaml(path, text)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Problem(f"{path}: must hold a map with the key performance, not a {_name(found)}")
    unknown = [str(key) for key in found if key != "performance"]
    if unknown:
        raise Problem(
            f"{path}: unknown key {unknown[0]}{nearest(unknown[0], ['performance'])}:"
            " everything stands under performance"
        )
    inner = found.get("performance")
    if inner is None:
        return {}
    if not isinstance(inner, dict):
        raise Problem(f"{path}: performance must be a map, not a {_name(inner)}")
    return inner


def parse_toml(path: Path, text: str) -> Any:
    """What a TOML text says; raises Problem."""
    import tomli

    try:
        return tomli.loads(text)
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise Problem(f"{path}: is not TOML: {error}") from None
    except ValueError:
        # int() takes so many digits of decimal text and no more.
        raise Problem(f"{path}: is not TOML: {TOO_MANY_DIGITS}") from None


def _yaml(path: Path, text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses what a person did not mean: a key given twice, and aliases."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases (*name) are not taken")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value} is given twice", problem_mark=key.start_mark
                    )
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        # The loader is SafeLoader's: it makes plain data and nothing else.
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        if "integer string conversion" in problem:
            problem = TOO_MANY_DIGITS
        raise Problem(f"{path}:{where} is not YAML: {problem}") from None


def flatten(path: Path, found: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Dotted keys of a file's map; raises Problem for one that is not known."""
    sections = {key.split(".")[0] for key in known if "." in key}
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if name in sections:
            if value is None:
                continue
            if not isinstance(value, dict):
                raise Problem(f"{path}: {name} must be a map, not a {_name(value)}")
            for inner, item in value.items():
                key = f"{name}.{inner}"
                if key not in known:
                    raise Problem(f"{path}: unknown key {key}{nearest(key, known)}")
                flat[key] = item
        elif name in known:
            flat[str(name)] = value
        else:
            raise Problem(f"{path}: unknown key {name}{nearest(str(name), known | sections)}")
    return {key: value for key, value in flat.items() if value is not None}


def _name(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(
        type(value), type(value).__name__
    )
