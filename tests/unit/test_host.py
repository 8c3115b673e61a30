"""The host's figures, from files that may be missing, malformed or of another machine."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_performanced.host import Unknown, cgroups, procfs
from bi_performanced.host.processes import PAGE, Folder
from bi_performanced.monitor.figures import HOST, PROCESS, Reading
from bi_performanced.monitor.host import (
    LIMITS_EVERY,
    SLOW_EVERY,
    HostReader,
    ProcfsSource,
    best_source,
)
from bi_performanced.monitor.process import ProcessReader
from support.kernel import FakeKernel

MIB = 1 << 20


class Clock:
    """A clock that goes as it is told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def check(reading: Reading, names: set[str]) -> None:
    """A number that can be, or null with a reason; nothing else."""
    assert set(reading.sample) == names
    for name, value in reading.sample.items():
        if value is None:
            assert reading.reasons[name], name
        else:
            assert name not in reading.reasons
            assert not isinstance(value, bool) and math.isfinite(value), (name, value)
            assert 0 <= value < 1e24, (name, value)
            if name.endswith("_percent"):
                assert value <= 100, (name, value)


HOST_NAMES = {figure.name for figure in HOST}


def reader(kernel: FakeKernel, clock: Clock) -> HostReader:
    return HostReader(kernel.root, clock=clock)


def test_every_figure_is_read_as_the_kernel_means_it(kernel: FakeKernel, clock: Clock) -> None:
    kernel.cgroup2(
        "/a/b",
        **{
            "a/b:memory.max": str(64 * MIB),
            "a/b:memory.current": str(10 * MIB),
            "a/b:memory.stat": f"anon 1\ninactive_file {MIB}\nactive_file {3 * MIB}",
            "a/b:cpu.max": "max 100000",
            "a:cpu.max": "150000 100000",
        },
    )
    host = reader(kernel, clock)
    first = host.read()
    check(first, HOST_NAMES)
    rates = {name for name in HOST_NAMES if name.endswith("_per_second")}
    assert set(first.reasons) == {"cpu_percent", *rates}
    assert set(first.reasons.values()) == {"needs two samples"}
    kernel.cpu(user=150, idle=1000, iowait=50)
    kernel.disk(read=30, written=25)
    kernel.network(eth0=(3000, 2100), wlan0=(9000, 9000))
    clock.now += 2
    found = host.read()
    check(found, HOST_NAMES)
    assert found.reasons == {}
    sample = found.sample
    assert sample["cpu_percent"] == pytest.approx(25.0), "waiting for a disk is no use"
    assert (sample["load_1m"], sample["load_5m"], sample["load_15m"]) == (0.5, 1.25, 2.0)
    assert sample["memory_total_bytes"] == 16000 * 1024
    assert sample["memory_used_percent"] == 75.0
    assert (sample["swap_total_bytes"], sample["swap_used_bytes"]) == (2000 * 1024, 500 * 1024)
    assert sample["disk_read_bytes_per_second"] == 20 * 512 / 2, "sda alone, and once"
    assert sample["disk_write_bytes_per_second"] == 5 * 512 / 2
    assert sample["disk_read_bytes"] == 20 * 512
    assert sample["network_receive_bytes_per_second"] == 1000, "wlan0 has only just come"
    assert sample["network_send_bytes"] == 100
    assert sample["pressure_cpu_some_percent"] == 1.5
    assert sample["pressure_io_full_percent"] == 0.25
    assert (sample["open_files"], sample["open_files_max"]) == (1000, (1 << 63) - 1)
    assert sample["cgroup_memory_bytes"] == 6 * MIB
    assert sample["cgroup_memory_limit_bytes"] == 64 * MIB
    assert sample["cgroup_cpu_limit"] == 1.5


# ── time and devices


def test_a_clock_that_jumps_back_gives_null_and_then_goes_on(
    kernel: FakeKernel, clock: Clock
) -> None:
    host = reader(kernel, clock)
    host.read()
    clock.now -= 500
    kernel.disk(read=20)
    found = host.read()
    assert found.sample["disk_read_bytes_per_second"] is None
    assert found.reasons["disk_read_bytes_per_second"] == "needs two samples"
    clock.now += 1
    kernel.disk(read=30)
    assert host.read().sample["disk_read_bytes_per_second"] == 5120


def test_a_clock_that_jumps_forward_makes_no_rate_that_was_not(
    kernel: FakeKernel, clock: Clock
) -> None:
    host = reader(kernel, clock)
    host.read()
    clock.now += 1e9
    kernel.disk(read=20)
    rate = host.read().sample["disk_read_bytes_per_second"]
    assert rate is not None and 0 <= rate < 1


def test_a_counter_that_wraps_is_left_out_and_no_sum_ever_falls(
    kernel: FakeKernel, clock: Clock
) -> None:
    host = reader(kernel, clock)
    sums = []
    for eth0, eth1 in ((2**32 - 10, 100), (2**32 - 5, 200), (7, 300), (8, 400)):
        kernel.network(eth0=(eth0, eth0), eth1=(eth1, eth1))
        clock.now += 1
        found = host.read()
        check(found, HOST_NAMES)
        sums.append(found.sample["network_receive_bytes"])
    assert sums == [0, 105, 205, 306]


def test_a_device_that_goes_and_comes_again_counts_from_then_on(
    kernel: FakeKernel, clock: Clock
) -> None:
    host = reader(kernel, clock)
    sums = []
    for more in ({"eth1": (500, 0)}, {}, {"eth1": (900, 0)}, {"eth1": (910, 0)}):
        kernel.network(eth0=(1000, 0), **more)
        clock.now += 1
        sums.append(host.read().sample["network_receive_bytes"])
    assert sums == [0, 0, 0, 10]


def test_processor_time_that_goes_back_gives_null(kernel: FakeKernel, clock: Clock) -> None:
    host = reader(kernel, clock)
    host.read()
    for user, idle in ((50, 2000), (60, 1000), (60, 1000)):
        kernel.cpu(user=user, idle=idle)
        found = host.read()
        assert found.sample["cpu_percent"] is None
        assert "did not grow" in found.reasons["cpu_percent"]


# ── what is not there, or not so


@pytest.mark.parametrize(
    ("name", "content", "null"),
    [
        ("proc/stat", "", "cpu_percent"),
        ("proc/stat", "cpu 1 2", "cpu_percent"),
        ("proc/meminfo", "MemTotal: 16000 kB\n", "memory_total_bytes"),
        ("proc/meminfo", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "memory_used_percent"),
        ("proc/meminfo", "MemTotal: 5 kB\nMemAvailable: 6 kB\n", "memory_used_percent"),
        ("proc/meminfo", "SwapTotal: 5 kB\nSwapFree: 6 kB\n", "swap_used_bytes"),
        ("proc/meminfo", "MemTotal: -5 kB\nMemAvailable: 6 kB\n", "memory_total_bytes"),
        ("proc/meminfo", "MemTotal: 5 MB\nMemAvailable: 6 MB\n", "memory_total_bytes"),
        ("proc/loadavg", "nan inf 1e5", "load_1m"),
        ("proc/loadavg", "0.5 0.5", "load_5m"),
        ("proc/loadavg", "-1 0 0", "load_1m"),
        ("proc/pressure/io", "some avg10=nan avg60=0\n", "pressure_io_some_percent"),
        ("proc/pressure/io", "some avg10=250.00 avg60=0\n", "pressure_io_some_percent"),
        ("proc/pressure/io", "some avg10=1.00 avg60=0\n", "pressure_io_full_percent"),
        ("proc/sys/fs/file-nr", "5 9 100", "open_files"),
        ("proc/sys/fs/file-nr", "5 0 " + "9" * 400, "open_files_max"),
        ("proc/net/dev", "a\nb\n lo: 1 2 3 4 5 6 7 8 9\n", "network_send_bytes"),
        ("proc/net/dev", "a\nb\n eth0: 1 2 3", "network_send_bytes"),
        ("proc/diskstats", "8 0 sda 1 2 x", "disk_read_bytes"),
        ("proc/diskstats", "", "disk_read_bytes"),
        ("proc/self/cgroup", "", "cgroup_memory_limit_bytes"),
        ("proc/self/cgroup", "\0\0:\0", "cgroup_memory_limit_bytes"),
        ("sys/fs/cgroup/memory.max", "much", "cgroup_memory_limit_bytes"),
        ("sys/fs/cgroup/memory.max", "", "cgroup_memory_limit_bytes"),
        ("sys/fs/cgroup/memory.current", "9" * 30, "cgroup_memory_bytes"),
        ("sys/fs/cgroup/cpu.max", "100000 0", "cgroup_cpu_limit"),
        ("sys/fs/cgroup/cpu.max", "100000", "cgroup_cpu_limit"),
    ],
)
def test_a_malformed_file_makes_its_figures_null_and_names_itself(
    kernel: FakeKernel, clock: Clock, name: str, content: str, null: str
) -> None:
    kernel.write(name, content)
    found = reader(kernel, clock).read()
    check(found, HOST_NAMES)
    assert found.sample[null] is None
    reason = found.reasons[null]
    assert str(kernel.root) in reason or "there" in reason or "in full" in reason
    assert found.sample["cpu_count"], "the others are told as ever"


def test_missing_files_are_named(tmp_path: Path, clock: Clock) -> None:
    found = HostReader(tmp_path, clock=clock).read()
    check(found, HOST_NAMES)
    assert [name for name, value in found.sample.items() if value is not None] == ["cpu_count"]
    assert found.reasons["load_1m"] == f"{tmp_path}/proc/loadavg: No such file or directory"


def test_disks_are_null_when_sys_is_hidden(kernel: FakeKernel, clock: Clock) -> None:
    for path in sorted((kernel.root / "sys/block").iterdir()):
        path.rmdir()
    (kernel.root / "sys/block").rmdir()
    reason = reader(kernel, clock).read().reasons["disk_read_bytes"]
    assert "sys/block: No such file" in reason


def test_a_file_without_end_is_refused(kernel: FakeKernel, clock: Clock) -> None:
    kernel.write("proc/loadavg", b"1.0 " * 1_000_000)
    found = reader(kernel, clock).read()
    assert found.sample["load_1m"] is None and "form" in found.reasons["load_1m"]


BYTES = st.binary(max_size=300) | st.text("0123456789 \n:-.kB=maxavg10", max_size=300).map(
    str.encode
)


@settings(max_examples=300)
@given(data=st.data())
def test_random_bytes_in_any_file_raise_nothing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kernel = FakeKernel(Path(folder))
        kernel.process(5)
        if data.draw(st.booleans()):
            kernel.cgroup1("/x", {"memory/x/memory.limit_in_bytes": "5"})
        clock = Clock()
        host = HostReader(kernel.root, clock=clock)
        process = ProcessReader(5, kernel.root, clock)
        host.read()
        process.read(shares=False)
        for path in kernel.files():
            kind = data.draw(st.sampled_from(["as it is", "random", "cut short", "gone"]))
            content = path.read_bytes()
            if kind == "random":
                path.write_bytes(data.draw(BYTES))
            elif kind == "cut short":
                path.write_bytes(content[: data.draw(st.integers(0, max(0, len(content))))])
            elif kind == "gone":
                path.unlink()
        for _ in range(SLOW_EVERY + 1):
            clock.now += data.draw(st.sampled_from([1.0, 0.0, -3.0, 1e7]))
            check(host.read(), HOST_NAMES)
            found = process.read(shares=True)
            found.sample.pop("cpu_percent")  # of one processor: has no limit of 100
            check(found, {figure.name for figure in PROCESS} - {"cpu_percent"})
        check(HostReader(kernel.root, clock=clock).read(), HOST_NAMES)


# ── control groups


def unknown(what: Callable[[], object]) -> str:
    with pytest.raises(Unknown) as caught:
        what()
    return str(caught.value)


def test_the_least_of_nested_limits_holds(kernel: FakeKernel) -> None:
    kernel.cgroup2(
        "/outer/middle/own",
        **{
            "outer/middle/own:memory.max": "max",
            "outer/middle:memory.max": str(300 * MIB),
            "outer:memory.max": str(200 * MIB),
            "outer/middle/own:cpu.max": "200000 100000",
            "outer:cpu.max": "50000 100000",
        },
    )
    assert cgroups.memory_limit(kernel.root) == 200 * MIB
    assert cgroups.cpu_limit(kernel.root) == 0.5


def test_no_limit_is_said_to_be_none(kernel: FakeKernel) -> None:
    assert "no control group limits" in unknown(lambda: cgroups.memory_limit(kernel.root))
    assert "no control group limits" in unknown(lambda: cgroups.cpu_limit(kernel.root))
    kernel.cgroup2("/a", **{"a:memory.max": "max", "a:cpu.max": "max 100000"})
    assert "no control group limits" in unknown(lambda: cgroups.memory_limit(kernel.root))
    assert "no control group limits" in unknown(lambda: cgroups.cpu_limit(kernel.root))


def test_version_one_has_its_own_files_and_numbers(kernel: FakeKernel) -> None:
    kernel.cgroup1(
        "/docker/1",
        {
            "memory/docker/1/memory.limit_in_bytes": str(512 * MIB),
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/docker/1/memory.usage_in_bytes": str(100 * MIB),
            "memory/docker/1/memory.stat": "cache 5\nactive_file 7\n"
            f"total_inactive_file {20 * MIB}\ntotal_active_file {10 * MIB}",
            "cpu,cpuacct/docker/1/cpu.cfs_quota_us": "25000",
            "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert cgroups.memory_limit(kernel.root) == 512 * MIB
    assert cgroups.memory_used(kernel.root) == 70 * MIB
    assert cgroups.cpu_limit(kernel.root) == 0.25


def test_a_container_s_group_is_what_is_mounted_as_the_root(kernel: FakeKernel) -> None:
    files = {"memory/memory.limit_in_bytes": str(64 * MIB)}
    files |= {
        "memory/memory.usage_in_bytes": "5000000",
        "memory/memory.stat": "total_inactive_file 0",
    }
    kernel.cgroup1("/docker/not-mounted-here", files)
    assert cgroups.memory_limit(kernel.root) == 64 * MIB
    assert cgroups.memory_used(kernel.root) == 5_000_000


def test_a_group_outside_of_its_namespace_leads_nowhere_else(kernel: FakeKernel) -> None:
    kernel.cgroup2("/../../../etc", **{":memory.max": str(MIB)})
    kernel.write("etc/memory.max", "5\n")
    assert cgroups.memory_limit(kernel.root) == MIB


def test_a_limit_that_cannot_be_read_hides_no_smaller_one(kernel: FakeKernel) -> None:
    kernel.cgroup2("/a", **{"a:memory.max": "?", ":memory.max": str(MIB)})
    assert "memory.max: is not of the form" in unknown(lambda: cgroups.memory_limit(kernel.root))


def test_limits_are_looked_at_now_and_then(kernel: FakeKernel, clock: Clock) -> None:
    host = reader(kernel, clock)
    assert host.read().sample["cgroup_memory_limit_bytes"] is None
    kernel.cgroup2(**{":memory.max": str(MIB)})
    seen = [host.read().sample["cgroup_memory_limit_bytes"] for _ in range(LIMITS_EVERY)]
    assert seen == [None] * (LIMITS_EVERY - 1) + [MIB]


def test_what_moves_slowly_is_looked_at_less_often(kernel: FakeKernel, clock: Clock) -> None:
    host = reader(kernel, clock)
    host.read()
    kernel.write("proc/loadavg", "9 9 9 x\n")
    seen = [host.read().sample["load_1m"] for _ in range(SLOW_EVERY)]
    assert seen == [0.5] * (SLOW_EVERY - 1) + [9.0]


# ── processes


def test_a_process_s_name_cannot_forge_its_figures(kernel: FakeKernel) -> None:
    kernel.process(5, started=77)
    kernel.write("proc/5/stat", "5 (x) S 9 9 (y) S " + "0 " * 18 + "77 9 3 1\n")
    with Folder(kernel.root, 5) as folder:
        assert folder.times().started == 77
        assert folder.times().rss_bytes == 3 * PAGE
        assert folder.open_files() == 3
        assert folder.swap_bytes() == 12 * 1024
        assert folder.pss_bytes() == 5 * 1024
        assert folder.disk_bytes() == (4096, 8192)


@pytest.mark.parametrize("state", ["Z", "X"])
def test_a_zombie_has_ended(kernel: FakeKernel, state: str) -> None:
    kernel.process(5)
    stat = kernel.root / "proc/5/stat"
    stat.write_text(stat.read_text().replace(") S", f") {state}"))
    with Folder(kernel.root, 5) as folder:
        assert "has ended" in unknown(folder.times)


# ── with psutil and without


def test_both_sources_say_the_same_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    ours, theirs = ProcfsSource(Path("/")), best_source()
    assert (ours.name, theirs.name) == ("procfs", "psutil")
    for one, other in zip(ours.cpu_seconds(), theirs.cpu_seconds(), strict=True):
        assert other == pytest.approx(one, rel=0.01, abs=10)
    assert ours.memory()[0] == theirs.memory()[0]
    assert theirs.memory()[1] == pytest.approx(ours.memory()[1], rel=0.2)
    assert ours.swap() == theirs.swap()
    for first, second in (
        (_or_reason(ours.disk_bytes), _or_reason(theirs.disk_bytes)),
        (_or_reason(ours.network_bytes), _or_reason(theirs.network_bytes)),
    ):
        assert set(first) == set(second)
        for name, pair in first.items():
            assert second[name] == pytest.approx(pair, rel=0.05, abs=64 * MIB)


def _or_reason(what: Callable[[], dict[str, procfs.Pair]]) -> dict[str, procfs.Pair]:
    try:
        return what()
    except Unknown:
        # A machine without disks, or without a network.
        return {}


def test_without_psutil_all_is_read_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    source = best_source()
    assert source.name == "procfs"
    found = HostReader().read()
    check(found, HOST_NAMES)
    assert found.sample["memory_total_bytes"] and found.sample["load_1m"] is not None


def test_a_psutil_that_fails_gives_null_with_what_it_said() -> None:
    class Broken:
        def __getattr__(self, name: str) -> Callable[..., object]:
            def fail(**_: object) -> object:
                raise ZeroDivisionError(f"in {name}")

            return fail

    from bi_performanced.monitor.host import PsutilSource

    found = HostReader(source=PsutilSource(Broken())).read()
    check(found, HOST_NAMES)
    assert "ZeroDivisionError('in virtual_memory')" in found.reasons["memory_total_bytes"]
    assert found.sample["load_1m"] is not None
