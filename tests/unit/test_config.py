"""The configuration: order of sources, the seed's own files, and each kind of mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_performanced.config import ConfigError, Settings, load
from bi_performanced.config.documents import DOCUMENTS
from bi_performanced.config.limits import default_max_bytes
from bi_performanced.config.load import listing
from bi_performanced.config.parse import Problem, convert
from bi_performanced.config.settings import declared
from bi_performanced.fronts.reference import commands

SEED_YAML = """\
performance:
  cache:
    enabled: true
    redis_url: "redis://localhost:6379/0"
    default_ttl: 3600
    max_size: 10000
    compression: true

  database:
    pool_size: 20
    max_overflow: 30
    pool_timeout: 30
    enable_query_cache: true

  monitoring:
    enabled: true
    metrics_interval: 60
    system_monitoring: true
"""
SEED_ENVIRONMENT = """\
REDIS_URL=redis://localhost:6379/0
REDIS_ENABLED=true
PERFORMANCE_CACHE_TTL=3600
PERFORMANCE_CACHE_MAX_SIZE=10000
PERFORMANCE_MONITORING_ENABLED=true
DB_POOL_SIZE=20
DB_MAX_OVERFLOW=30
DB_POOL_TIMEOUT=30
"""


def write(folder: Path, text: str, name: str = "performance.yaml") -> Path:
    (folder / "config").mkdir(exist_ok=True)
    path = folder / "config" / name
    path.write_text(text)
    return path


def loaded(folder: Path, *argv: str, **environ: str) -> Settings:
    return load(argv, {"XDG_RUNTIME_DIR": str(folder), **environ}, folder).settings


def problems(folder: Path, *argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, *argv, **environ)
    assert all("\n" not in problem for problem in caught.value.problems)
    return "\n".join(caught.value.problems)


def test_the_defaults_are_the_contract_s(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert (found.cache.enabled, found.cache.redis_url) == (True, None)
    assert (found.cache.default_ttl, found.cache.max_size) == (3600, 10000)
    assert found.cache.compression is True
    database = found.database
    assert (database.pool_size, database.max_overflow, database.pool_timeout) == (20, 30, 30)
    assert (found.monitoring.enabled, found.monitoring.metrics_interval) == (True, 60)
    assert (found.tasks.engine, found.spool.retain, found.memory.apply) == ("embedded", 3600, False)
    assert (found.mode, found.log.level) == ("on", "INFO")
    assert (found.http.listen, found.http.post) == ("127.0.0.1:8000", "local")
    assert found.cache.redis_prefix == "bi:perf:" and found.cache.on_partition == "stale(5)"
    assert set(found.origins) == {row.key for row in declared()}


def test_the_seed_s_file_works_as_written(tmp_path: Path) -> None:
    path = write(tmp_path, SEED_YAML)
    found = loaded(tmp_path)
    assert found.cache.redis_url == "redis://localhost:6379/0"
    assert found.cache.default_ttl == 3600 and found.database.pool_timeout == 30
    assert found.origins["cache.max_size"] == f"file {path}"
    assert found.origins["tasks.engine"].startswith("default")
    assert found.file == path


def test_the_seed_s_environment_works_as_written(tmp_path: Path) -> None:
    environ = dict(line.split("=", 1) for line in SEED_ENVIRONMENT.splitlines())
    found = loaded(tmp_path, **environ)
    assert found.cache.redis_url == "redis://localhost:6379/0"
    assert found.origins["database.pool_size"] == "env DB_POOL_SIZE"
    assert found.origins["monitoring.enabled"] == "env PERFORMANCE_MONITORING_ENABLED"


def test_toml_carries_the_same_keys(tmp_path: Path) -> None:
    write(
        tmp_path,
        '[performance.cache]\nmax_size = 500\nmax_bytes = "64 MiB"\n[performance]\n'
        'mode = "observe"\n'.replace("[performance]\n", ""),
        "performance.toml",
    )
    with pytest.raises(ConfigError, match=r"cache\.mode"):
        loaded(tmp_path)
    write(
        tmp_path,
        '[performance]\nmode = "observe"\n[performance.cache]\nmax_size = 500\n'
        'max_bytes = "64 MiB"\n',
        "performance.toml",
    )
    found = loaded(tmp_path)
    assert (found.cache.max_size, found.cache.max_bytes) == (500, 64 << 20)
    assert found.mode == "observe"


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        "performance: {cache: {max_size: 1, default_ttl: 1}, log: {level: ERROR},"
        " socket: {path: /run/of-file}}",
    )
    found = loaded(
        tmp_path,
        "--log-level",
        "debug",
        PERFORMANCE_CACHE_MAX_SIZE="2",
        LOG_LEVEL="WARNING",
        BI_PERFORMANCE_SOCKET="/run/of-env",
    )
    assert (found.cache.default_ttl, found.cache.max_size) == (1, 2)
    assert found.log.level == "DEBUG"
    assert found.socket.path == Path("/run/of-env")
    assert found.origins["cache.default_ttl"].startswith("file ")
    assert found.origins["cache.max_size"] == "env PERFORMANCE_CACHE_MAX_SIZE"
    assert found.origins["log.level"] == "flag --log-level"


def test_yaml_s_own_truth_values_are_the_words_they_were_written_as(tmp_path: Path) -> None:
    """`on` and `off` without quotes are booleans to YAML."""
    for word in ("on", "off"):
        write(tmp_path, f"performance: {{mode: {word}, http: {{listen: off}}}}")
        found = loaded(tmp_path)
        assert found.mode == word
        assert found.http.listen == "off"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2000000", 2_000_000),
        ("64 MiB", 64 << 20),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("5 GB", 5_000_000_000),
        ("1500 kB", 1_500_000),
        ("2048 KiB", 2 << 20),
        ("2000000 B", 2_000_000),
    ],
)
def test_sizes_have_the_units_of_iec_and_si(tmp_path: Path, text: str, count: int) -> None:
    write(tmp_path, f"performance: {{cache: {{max_bytes: {text}}}}}")
    assert loaded(tmp_path).cache.max_bytes == count


def test_an_empty_variable_counts_as_absent(tmp_path: Path) -> None:
    found = loaded(tmp_path, PERFORMANCE_CACHE_TTL="", REDIS_URL="", REDIS_ENABLED="")
    assert found.cache.default_ttl == 3600 and found.cache.redis_url is None


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"REDIS_ENABLED": "true"}, "redis://localhost:6379/0"),
        ({"REDIS_ENABLED": "1", "REDIS_URL": "redis://other:1/2"}, "redis://other:1/2"),
        ({"REDIS_ENABLED": "false", "REDIS_URL": "redis://other:1/2"}, None),
        ({"REDIS_URL": "rediss://other:1/2"}, "rediss://other:1/2"),
        ({}, None),
    ],
)
def test_redis_enabled_and_redis_url(
    tmp_path: Path, environ: dict[str, str], url: str | None
) -> None:
    assert loaded(tmp_path, **environ).cache.redis_url == url


def test_both_files_at_once_are_an_error_that_says_so(tmp_path: Path) -> None:
    write(tmp_path, SEED_YAML)
    path = write(tmp_path, "", "performance.toml")
    said = problems(tmp_path)
    assert "both" in said and "--config" in said
    assert loaded(tmp_path, "--config", str(path)).cache.redis_url is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("performance: {cache: {max_sise: 5}}", ["cache.max_sise", "cache.max_size"]),
        ("performance: {chache: {max_size: 5}}", ["chache", "cache"]),
        ("performence: {}", ["performence", "performance"]),
        ("performance: [1, 2]", ["map", "list"]),
        ("performance: {cache: 5}", ["cache", "map"]),
        ("[1, 2]", ["map"]),
        ("performance: {cache: {max_size: many}}", ["cache.max_size", "whole number", "many"]),
        ("performance: {cache: {max_size: 1.5}}", ["cache.max_size", "whole number"]),
        ("performance: {cache: {max_size: true}}", ["cache.max_size", "whole number"]),
        ("performance: {cache: {max_size: 0}}", ["cache.max_size", "at least 1"]),
        ("performance: {cache: {max_size: 99999999999}}", ["cache.max_size", "at most"]),
        ("performance: {cache: {default_ttl: -1}}", ["cache.default_ttl", "at least"]),
        ("performance: {cache: {default_ttl: .nan}}", ["cache.default_ttl", "finite"]),
        ("performance: {cache: {default_ttl: .inf}}", ["cache.default_ttl", "finite"]),
        ("performance: {cache: {default_ttl: [1]}}", ["cache.default_ttl", "number"]),
        ("performance: {cache: {enabled: maybe}}", ["cache.enabled", "true or false"]),
        ("performance: {cache: {max_bytes: 5 parsecs}}", ["cache.max_bytes", "64 MiB"]),
        ("performance: {cache: {max_bytes: 10}}", ["cache.max_bytes", "at least"]),
        ("performance: {cache: {redis_url: 'http://x'}}", ["cache.redis_url", "redis://"]),
        ("performance: {cache: {on_partition: later}}", ["cache.on_partition", "stale(SECONDS)"]),
        (f"performance: {{cache: {{prefixes: [{'x' * 65}]}}}}", ["cache.prefixes", "64 bytes"]),
        ("performance: {tasks: {engine: celery}}", ["tasks.engine", "procrastinate"]),
        ("performance: {mode: perhaps}", ["mode", "observe"]),
        ("performance: {log: {level: LOUD}}", ["log.level", "WARNING"]),
        ("performance: {http: {listen: '8000'}}", ["http.listen", "HOST:PORT"]),
        ("performance: {http: {listen: 'localhost:99999'}}", ["http.listen", "65535"]),
        ("performance: {http: {listen: '127.0.0.1:²'}}", ["http.listen", "HOST:PORT"]),
        ("performance: {socket: {path: ''}}", ["socket.path", "not empty"]),
        ("performance:\n  cache:\n max_size: 5", ["line", "is not YAML"]),
        ("performance: {cache: {max_size: 1, max_size: 2}}", ["max_size", "twice"]),
        ("performance: &a {cache: *a}", ["aliases"]),
        ("performance: !!python/object/apply:os.system ['true']", ["is not YAML"]),
        ("performance: {cache: {max_size: 5}", ["is not YAML"]),
        ("performance: {http: {post: token}}", ["http.post", "http.token_file"]),
        (
            "performance: {socket: {max_buffered_bytes: 16 MiB}}",
            ["socket.max_buffered_bytes", "socket.max_frame_bytes", "32 MiB"],
        ),
    ],
)
def test_each_mistake_in_a_file_is_named_with_its_remedy(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = write(tmp_path, text)
    said = problems(tmp_path)
    assert str(path) in said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("performance.toml", b"[performance\n", "is not TOML"),
        ("performance.toml", b"[performance.cache]\nmax_size = 1\nmax_size = 2\n", "is not TOML"),
        ("performance.toml", b"[cache]\nmax_size = 1\n", "everything stands under performance"),
        ("performance.yaml", b"performance: \xff\xfe", "UTF-8"),
        ("performance.yaml", b"#" * (300 << 10), "at most"),
        ("performance.yaml", b"[" * 5000, "is not YAML"),
        ("performance.toml", b"a = " + b"[" * 5000, "is not TOML"),
        ("performance.toml", b"a = " + b"1" * 5000, "a number of too many digits"),
        ("performance.yaml", b"a: " + b"1" * 5000, "a number of too many digits"),
        (
            "performance.toml",
            b"[performance.cache]\ndefault_ttl = 0x" + b"f" * 5000,
            "cache.default_ttl must be a finite number, not a number of too many digits",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    said = problems(tmp_path, "--config", str(path))
    assert words in said and str(path) in said


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("REDIS_ENABLED", "maybe", "true or false"),
        ("REDIS_URL", "localhost:6379", "redis://"),
        ("PERFORMANCE_CACHE_TTL", "soon", "a number"),
        ("PERFORMANCE_CACHE_TTL", "0", "at least"),
        ("PERFORMANCE_CACHE_TTL", "nan", "finite"),
        ("PERFORMANCE_CACHE_MAX_SIZE", "ten", "whole number"),
        ("PERFORMANCE_MONITORING_ENABLED", "5", "true or false"),
        ("DB_POOL_SIZE", "0", "at least 1"),
        ("DB_MAX_OVERFLOW", "-1", "at least 0"),
        ("DB_POOL_TIMEOUT", "1e999", "finite"),
        ("DATABASE_URL", "mysql://x", "postgresql://"),
        ("BI_PERFORMANCE_MODE", "maybe", "observe"),
        ("LOG_LEVEL", "chatty", "DEBUG"),
    ],
)
def test_each_wrong_variable_is_named(tmp_path: Path, name: str, value: str, words: str) -> None:
    said = problems(tmp_path, **{name: value})
    assert f"environment variable {name}" in said and words in said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("performance.toml", "[performance.cache]\nmax_size = 77\n"),
        ("performance.yaml", "performance: {cache: {max_size: 77}}\n"),
    ],
)
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, "\ufeff" + text, name)
    assert loaded(tmp_path).cache.max_size == 77


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "performance: {cache: {max_size: many}}")
    said = problems(tmp_path, "--http", "x", DB_POOL_SIZE="no", LOG_LEVEL="no")
    for word in ("cache.max_size", "--http", "DB_POOL_SIZE", "LOG_LEVEL"):
        assert word in said


def test_secrets_are_told_nowhere(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        REDIS_URL="redis://user:hunter2@host:6379/0?password=hunter2",
        DATABASE_URL="postgresql+asyncpg://user:hunter2@host/db",
    )
    shown = {row.key: row.value for row in listing(found)}
    assert "hunter2" not in str(shown)
    assert shown["cache.redis_url"] == "redis://********@host:6379/0"
    assert "hunter2" not in problems(tmp_path, DATABASE_URL="mysql://user:hunter2@host")


@given(
    row=st.sampled_from(declared()),
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=50),
        st.lists(st.integers(), max_size=3),
        st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
        st.binary(max_size=10),
    ),
)
def test_any_value_is_taken_within_bounds_or_is_one_sentence(row: Any, value: object) -> None:
    try:
        found = convert(row, value, "somewhere")
    except Problem as problem:
        assert row.key in str(problem) and "\n" not in str(problem)
        return
    if row.meta.low is not None:
        assert row.meta.low <= found
    if row.meta.high is not None:
        assert found <= row.meta.high


def test_the_store_s_default_size_is_the_least_of_three(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup"
    (group / "a" / "b").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    (group / "cgroup.controllers").write_text("cpu memory\n")
    folder = tmp_path / "not-there-yet"
    assert "cgroup" not in default_max_bytes(folder, root=tmp_path)[1]
    (group / "a" / "memory.max").write_text("268435456\n")
    (group / "a" / "b" / "memory.max").write_text("max\n")
    size, reason = default_max_bytes(folder, root=tmp_path)
    assert size == 64 << 20 and "cgroup" in reason


def test_the_generated_files_are_current_and_taken_as_they_are(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for name, make in {**DOCUMENTS, "docs/commands.md": commands}.items():
        assert (root / name).read_text() == make(), f"run scripts/generate.py: {name}"
    for name in ("performance.example.toml", "performance.example.yaml"):
        assert loaded(tmp_path, "--config", str(root / "config" / name)) is not None


@pytest.mark.parametrize("suffix", ["toml", "yaml"])
def test_every_example_line_works_without_its_comment_sign(tmp_path: Path, suffix: str) -> None:
    root = Path(__file__).parents[2]
    text = (root / "config" / f"performance.example.{suffix}").read_text()
    key = r"(?m)^(\s*)# ([a-z_]+)( = |: )(?=[\"\[\d]|true|false)"
    opened, count = re.subn(key, r"\1\2\3", text)
    assert count == len(declared())
    path = tmp_path / f"performance.{suffix}"
    path.write_text(opened)
    found = loaded(tmp_path, "--config", str(path))
    assert all(origin.startswith("file ") for origin in found.origins.values())
    assert found.cache.max_size == 10_000 and found.http.listen == "127.0.0.1:8000"


def test_quotas_of_namespaces_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "performance.toml").write_text(
        '[performance.cache]\ntenants = ["shop=64 MiB", "news=lots"]\n'
    )
    text = problems(tmp_path, "--config", str(tmp_path / "performance.toml"))
    assert "cache.tenants must have NAME=BYTES" in text and "'news=lots'" in text
