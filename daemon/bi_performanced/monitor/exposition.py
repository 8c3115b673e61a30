"""The metrics as Prometheus and OpenMetrics text, by their naming conventions.

Base units and whole names: shares are ratios of 0 to 1, counters end in `_total`. Rates are left
to the one who asks, who has the counters. A figure that is unknown is absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from bi_performance_wire import types
from bi_performanced.monitor.figures import HOST, PROCESS, Figure

_PREFIX: Final = "bi_performance"
_LABELS: Final = ("process", "name", "pid")
_COUNTERS: Final = {
    "hits": "reads of the cache that found something",
    "misses": "reads of the cache that found nothing",
    "sets": "entries that were stored",
    "deletes": "entries that were removed on request",
    "evictions": "entries that left for others",
    "expirations": "entries that left because their time was over",
}
_GAUGES: Final = {
    "entries": "entries that can be read",
    "size_bytes": "bytes of the entries that can be read",
    "max_entries": "the limit of entries",
    "max_bytes": "the limit of bytes",
    "ring_bytes": "bytes of the shared store's rings",
    "clients": "attached processes",
}


def render(name: str, metrics: types.Metrics) -> types.Exposition:
    """The metrics as text in a format that has the name `prometheus` or `openmetrics`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))
    if name == "openmetrics":
        media = "application/openmetrics-text; version=1.0.0; charset=utf-8"
        # Untyped in the library.
        text = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
    else:
        media = "text/plain; version=0.0.4; charset=utf-8"
        text = generate_latest(registry)
    return types.Exposition(media_type=media, text=text.decode())


class _Collector:
    """What prometheus_client asks for the families of a registry."""

    def __init__(self, metrics: types.Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        """Nothing: the families are made anew for each answer."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield InfoMetricFamily(
            _PREFIX,
            "version and profile of the daemon",
            {"version": metrics.version, "profile": metrics.profile},
        )
        yield _gauge("uptime_seconds", "time since the daemon's start", metrics.uptime_seconds)
        for name, doc in _COUNTERS.items():
            family = CounterMetricFamily(f"{_PREFIX}_cache_{name}", doc)
            family.add_metric([], getattr(metrics.cache, name))
            yield family
        for name, doc in _GAUGES.items():
            yield _gauge(f"cache_{name}", doc, getattr(metrics.cache, name))
        yield from _curve(metrics.cache_curve)
        yield from _leases(metrics.cache.levels.local["leases"])
        yield from _prefixes(metrics.cache.levels.local["prefixes"])
        yield from _redis(metrics.cache.levels.redis)
        yield from _single("host", HOST, metrics.system)
        yield from _single("daemon", PROCESS, metrics.daemon)
        yield from _processes(metrics.processes)


def _curve(curve: types.CacheCurve) -> Iterator[Metric]:
    """Nine sizes at the most; those that are not known are absent."""
    rate = GaugeMetricFamily(
        f"{_PREFIX}_cache_curve_hit_ratio",
        "what the store would hit at so many times its size, by its traffic lately",
        labels=("size",),
    )
    margin = GaugeMetricFamily(
        f"{_PREFIX}_cache_curve_margin_ratio",
        "two standard errors of the sampling of that",
        labels=("size",),
    )
    for point in curve.points:
        if point.hit_rate is not None and point.margin is not None:
            rate.add_metric([f"{point.size:g}"], point.hit_rate)
            margin.add_metric([f"{point.size:g}"], point.margin)
    yield rate
    yield margin


_LEASE_COUNTERS: Final = {
    "granted": "times that a process was to load a missing key",
    "promoted": "times that a waiting process was, because the one before it came to nothing",
    "shared": "waiting processes that were given the value another one had loaded",
    "failed": "loads that failed",
    "lost": "leases that ended with their process, or for want of a heartbeat",
    "refused": "loaded values that were not stored, being older than a deletion or another value",
    "busy": "requests for a lease beyond a limit",
}
_LEASE_GAUGES: Final = {
    "held": "keys that are being loaded",
    "waiting": "processes that wait for a key which another one loads",
}


def _leases(found: dict[str, Any]) -> Iterator[Metric]:
    for name, doc in _LEASE_COUNTERS.items():
        family = CounterMetricFamily(f"{_PREFIX}_leases_{name}", doc)
        family.add_metric([], found[name])
        yield family
    for name, doc in _LEASE_GAUGES.items():
        yield _gauge(f"leases_{name}", doc, found[name])


_PREFIX_COUNTERS: Final = {
    "hits": "hits on keys of a prefix of cache.prefixes, estimated from a sample",
    "misses": "misses of keys of a prefix of cache.prefixes, estimated from a sample",
    "evicted_unread": "entries of a prefix of cache.prefixes that were evicted without a read",
}
_PREFIX_GAUGES: Final = {
    "entries": "entries of a prefix of cache.prefixes, as of the last sweep",
    "size_bytes": "bytes of these entries",
}


def _prefixes(found: list[dict[str, Any]]) -> Iterator[Metric]:
    """Of the prefixes that are configured, and of no others: keys may be private."""
    if not found:
        return
    for name, doc in _PREFIX_COUNTERS.items():
        counter = CounterMetricFamily(f"{_PREFIX}_prefix_{name}", doc, labels=["prefix"])
        for each in found:
            counter.add_metric([each["prefix"]], each[name])
        yield counter
    for name, doc in _PREFIX_GAUGES.items():
        gauge = GaugeMetricFamily(f"{_PREFIX}_prefix_{name}", doc, labels=["prefix"])
        for each in found:
            if each[name] is not None:
                gauge.add_metric([each["prefix"]], each[name])
        yield gauge


_REDIS_COUNTERS: Final = {
    "hits": "keys that Redis had and this host had not",
    "misses": "keys that Redis had not either",
    "errors": "requests that Redis refused, or whose connection was lost",
    "timeouts": "requests that Redis did not answer in time",
    "stores": "values that were put into Redis",
    "invalidated": "keys that other hosts have changed",
    "replayed": "entries of the invalidation log that were read after an outage",
    "dropped": "times that all shared entries had to go",
    "overflows": "values that became deletions because too many waited",
}
_REDIS_GAUGES: Final = {
    "queued": "changes that wait to be sent to Redis",
    "outbox": "deletions that wait for Redis to come back",
}


def _redis(found: dict[str, Any] | None) -> Iterator[Metric]:
    """The level behind the store, where there is one."""
    if found is None:
        return
    yield _gauge("redis_up", "1 while Redis answers", float(found["status"] == "ok"))
    for name, doc in _REDIS_COUNTERS.items():
        family = CounterMetricFamily(f"{_PREFIX}_redis_{name}", doc)
        family.add_metric([], found[name])
        yield family
    for name, doc in _REDIS_GAUGES.items():
        yield _gauge(f"redis_{name}", doc, found[name])


def _single(part: str, figures: tuple[Figure, ...], found: dict[str, Any]) -> Iterator[Metric]:
    for figure in filter(_is_told, figures):
        if (value := found[figure.name]) is not None:
            family = _family(part, figure)
            family.add_metric([], _base(figure, value))
            yield family


def _processes(processes: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = list(_labels(processes))
    for name in ("hits", "misses"):
        doc = f"an attached process: {_COUNTERS[name]}"
        family = CounterMetricFamily(f"{_PREFIX}_process_cache_{name}", doc, labels=_LABELS)
        for each, values in zip(processes, labels, strict=True):
            family.add_metric(values, each[name])
        yield family
    for figure in filter(_is_told, PROCESS):
        told = _family("process", figure, _LABELS)
        for each, values in zip(processes, labels, strict=True):
            if (value := each[figure.name]) is not None:
                told.add_metric(values, _base(figure, value))
        yield told


def _family(
    part: str, figure: Figure, labels: tuple[str, ...] = ()
) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if figure.counts else GaugeMetricFamily
    name, doc = _conventional(part, figure)
    return kind(f"{_PREFIX}_{name}", doc, labels=labels)


def _labels(processes: list[dict[str, Any]]) -> Iterator[list[str]]:
    seen: Counter[str] = Counter()
    for each in processes:
        instance = each["instance"]
        seen[instance] += 1
        # A process names itself: two of one name must not cost the others their scrape.
        again = f"-{seen[instance]}" if seen[instance] > 1 else ""
        yield [instance + again, each["name"], str(each["pid"] or "")]


def _is_told(figure: Figure) -> bool:
    return not figure.name.endswith("_per_second")


def _conventional(part: str, figure: Figure) -> tuple[str, str]:
    """Name and help of a figure by the conventions."""
    name = figure.name.replace("rss_bytes", "resident_memory_bytes")
    name = name.replace("pss_bytes", "proportional_memory_bytes")
    # A name that ends in _count is a histogram's.
    name = name.replace("cpu_count", "cpus")
    name = name.replace("cpu_percent", "cpu_usage_ratio").replace("_percent", "_ratio")
    for span in ("1m", "5m", "15m"):
        name = name.replace(f"load_{span}", f"load{span[:-1]}")
    what = {"host": "the host", "daemon": "the daemon", "process": "an attached process"}[part]
    doc = figure.doc.replace("0 to 100 and more with threads", "1 for each in full use")
    return f"{part}_{name}", f"{what}: {doc.replace('0 to 100', '0 to 1')}"


def _base(figure: Figure, value: float) -> float:
    return value / 100 if figure.name.endswith("_percent") else value


def _gauge(name: str, doc: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", doc, value)
