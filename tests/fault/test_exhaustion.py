"""A daemon out of descriptors refuses what is new, serves what is there, and recovers."""

from __future__ import annotations

import resource
from pathlib import Path

from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until


def test_out_of_descriptors_is_a_pause_not_an_end(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        first = RawClient(daemon.socket)
        assert first.result("ping") is True
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (40, 40))
        held = [RawClient(daemon.socket) for _ in range(60)]
        wait_until(
            lambda: any(each["event"] == "socket.accept_paused" for each in daemon.log_events()),
            what="the pause",
        )
        assert first.result("cache.set", key="k", value=1) == {"stored": 1}
        assert first.result("cache.get", key="k") == 1
        for each in held:
            each.close()
        with RawClient(daemon.socket) as later:
            assert later.result("cache.get", key="k") == 1
        first.close()
        assert daemon.stop() == 0
