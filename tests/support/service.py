"""The service that docs/systemd.md has installed in a machine."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

from support.daemon import wait_until
from support.machine import Machine

ROOT = Path(__file__).parents[2]
CHECKOUT = "/usr/src/bi-performance"
UNIT = "bi-performance.service"
SOCKET = "bi-performance.socket"
DROP_INS = f"/etc/systemd/system/{UNIT}.d"
CONFIG = "/etc/bi-performance/performance.toml"
LOG = "/var/log/bi-performance/performance.log"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}

ASK = """
import sys, urllib.error, urllib.request
url = "http://127.0.0.1:8000/performance/" + sys.argv[2]
request = urllib.request.Request(url, method=sys.argv[1])
try:
    with urllib.request.urlopen(request, timeout=20) as answer:
        print(answer.status)
except urllib.error.HTTPError as error:
    print(error.code)
"""

CRAWL = """
import time
from bi_performance import get_performance_optimizer
cache = get_performance_optimizer().sync.cache
while True:
    cache.get("page")
    time.sleep(0.05)
"""
"""A scraper that never ends."""


def documented(heading: str) -> str:
    """The commands under a heading of docs/systemd.md."""
    page = (ROOT / "docs" / "systemd.md").read_text()
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))


class Service:
    """The installed service, and the ways in which a test looks at it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def follow(self, heading: str) -> str:
        """Run what the page says under a heading, in the checkout, as root."""
        return self.machine.shell(documented(heading), cwd=CHECKOUT, env=OFFLINE)

    def show(self, name: str) -> str:
        return self.machine.show(UNIT, name)

    def drop_in(self, lines: str) -> None:
        """Change the unit for one test."""
        self.machine.write(f"{DROP_INS}/test.conf", f"[Service]\n{lines}\n")
        self.machine.run("systemctl", "daemon-reload")

    def again(self) -> None:
        """As installed, whatever the test before left, and running."""
        self.machine.shell(
            f"systemctl disable --now {SOCKET} 2>/dev/null; systemctl stop {UNIT};"
            f" rm -rf {DROP_INS}; systemctl daemon-reload; systemctl reset-failed;"
            f" systemctl start {UNIT}"
        )

    def wait_for_another(self, pid: str, within: float = 20.0) -> None:
        """Wait until another process than `pid` is ready."""

        def there() -> bool:
            # In one look: between two the old one may end.
            words = ("--property=ActiveState", "--property=MainPID", UNIT)
            found = self.machine.run("systemctl", "show", *words).stdout
            return "ActiveState=active" in found and f"MainPID={pid}\n" not in found

        wait_until(there, within=within, what="a new daemon")

    def command(self, *words: str, user: str = "scraper") -> tuple[int, str]:
        """`bi-performance WORDS` of a user: its exit status and all that it said."""
        done = self.machine.run("bi-performance", *words, user=user, check=False)
        return done.returncode, done.stdout + done.stderr

    def keep(self, key: str) -> None:
        assert self.command("cache", "set", key, f"value of {key}")[0] == 0

    def finds(self, key: str) -> None:
        status, said = self.command("cache", "get", key)
        log = self.machine.run("tail", "-n", "5", LOG, check=False).stdout
        assert (status, said) == (0, f"value of {key}\n"), log

    def http(self, method: str, path: str, user: str = "outsider") -> int:
        return int(self.machine.run("python3", "-c", ASK, method, path, user=user).stdout)

    def figures(self, *options: str) -> dict[str, Any] | None:
        """What `metrics` says, when rates are known and an attached process was sampled."""
        words = (*options, "metrics", "--json-output")
        found: dict[str, Any] = json.loads(self.machine.run("bi-performance", *words).stdout)
        processes = found["processes"]
        reasons = [found[part]["unknown"].values() for part in ("system", "daemon")]
        # The other reasons do not go away by themselves.
        if "needs two samples" in chain(*reasons) or not processes:
            return None
        if "no sample has been taken yet" in processes[0]["unknown"].values():
            return None
        return found

    def journal(self) -> str:
        return self.machine.run("journalctl", "--unit", UNIT, "--no-pager", "-o", "cat").stdout

    def events(self) -> list[str]:
        """The names of the events in the log."""
        done = self.machine.run("cat", LOG, check=False)
        return [json.loads(line)["event"] for line in done.stdout.splitlines()]
