"""The service under a real systemd, as docs/systemd.md has it done, in a small Debian.

One machine for all tests of this file: the first one's installation is what the others meet, and
the last one removes it. What is run is taken from the page itself where it can be.
"""

from __future__ import annotations

import configparser
import re
import signal
from collections.abc import Iterator

import pytest

from bi_performanced.config import load
from support.daemon import wait_until
from support.debian import debian_tree, wheels
from support.machine import Machine, missing
from support.service import CHECKOUT, CONFIG, CRAWL, LOG, ROOT, SOCKET, UNIT, Service
from support.wheelhouse import pinned


@pytest.fixture(scope="module")
def installed() -> Iterator[Service]:
    absent = missing()
    if absent:
        pytest.skip(f"not here: {', '.join(absent)}")
    folders = {ROOT: CHECKOUT, wheels(pinned(ROOT, "performance")): "/wheels"}
    with Machine(debian_tree(), folders) as machine:
        service = Service(machine)
        machine.shell("useradd --create-home scraper; useradd --create-home outsider")
        service.follow("Install")
        service.follow("Let a scraper in")
        yield service


@pytest.fixture
def service(installed: Service) -> Service:
    installed.again()
    return installed


def test_the_shipped_configuration_agrees_with_the_units() -> None:
    settings = load(["--config", str(ROOT / "systemd" / "performance.toml")], {}, ROOT).settings
    units = configparser.RawConfigParser(strict=False)
    units.optionxform = str  # type: ignore[method-assign,assignment]  # names as they are
    unit = (ROOT / "systemd" / UNIT).read_text()
    units.read_string(unit)
    folders = units["Service"]
    assert str(settings.state_dir) == f"/var/lib/{folders['StateDirectory']}"
    assert settings.log.file == f"/var/log/{folders['LogsDirectory']}/performance.log"
    runtime = f"/run/{folders['RuntimeDirectory']}"
    assert str(settings.cache.store_dir) == runtime
    assert settings.http.post == "owner"
    assert float(folders["TimeoutStopSec"]) > settings.shutdown_timeout + 1.5
    listeners = re.findall(r"(?m)^ListenStream=(.*)$", (ROOT / "systemd" / SOCKET).read_text())
    assert listeners == [str(settings.socket.path), settings.http.listen]
    assert str(settings.socket.path) == f"{runtime}/control.sock"
    assert "PrivateUsers=yes" not in unit, "it would make every peer uid 65534"


@pytest.mark.root
def test_the_installation_of_the_page_runs_with_narrow_modes(installed: Service) -> None:
    assert (
        installed.show("ActiveState") == "active" and installed.show("UnitFileState") == "enabled"
    )
    assert installed.command("status")[0] == 0
    found = installed.machine.shell(
        f"cd /; stat -c '%n %a %U:%G' run/bi-performance run/bi-performance/* {CONFIG}"
        f" var/lib/bi-performance var/log/bi-performance {LOG}"
    )
    own = "bi-performance:bi-performance"
    assert set(found.splitlines()) == {
        f"run/bi-performance 750 {own}",
        f"run/bi-performance/control.sock 660 {own}",
        f"run/bi-performance/control.sock.lock 600 {own}",
        f"run/bi-performance/store 600 {own}",
        f"run/bi-performance/store.lock 600 {own}",
        f"var/lib/bi-performance 700 {own}",
        f"var/log/bi-performance 750 {own}",
        f"{LOG} 640 {own}",
        f"{CONFIG} 600 {own}",
    }
    installed.follow("Watch")
    installed.follow("Configure")


@pytest.mark.root
def test_the_units_are_without_a_complaint_of_systemd_analyze(installed: Service) -> None:
    for unit in (UNIT, SOCKET):
        done = installed.machine.run("systemd-analyze", "verify", f"/etc/systemd/system/{unit}")
        assert (done.stdout, done.stderr) == ("", ""), "it exits 0 on unknown keys"


@pytest.mark.root
@pytest.mark.parametrize(
    ("drop_in", "most"),
    [("", 11), ("process-figures.conf", 13), ("private-network.conf", 4)],
)
def test_the_exposure_is_what_the_page_says(installed: Service, drop_in: str, most: int) -> None:
    folder = f"/tmp/exposure{most}"
    script = f"mkdir -p {folder}/{UNIT}.d; cp systemd/bi-performance.s* {folder}"
    if drop_in:
        script += f"; cp systemd/{drop_in} {folder}/{UNIT}.d"
    installed.machine.shell(script, cwd=CHECKOUT)
    analyze = ("systemd-analyze", "security", "--offline=true", "--no-pager")
    installed.machine.run(*analyze, f"--threshold={most}", f"{folder}/{UNIT}")
    done = installed.machine.run(
        *analyze, f"--threshold={most - 1}", f"{folder}/{UNIT}", check=False
    )
    assert done.returncode != 0, "the page and the units' comments name a larger one"


@pytest.mark.root
def test_of_all_figures_the_unit_hides_other_users_processes_alone(installed: Service) -> None:
    run = ("systemd-run", "--quiet", "--collect")
    plain = "/run/plain/control.sock"
    bare = ("RuntimeDirectory=plain", "RuntimeDirectoryMode=0750", "StateDirectory=plain")
    installed.machine.run(
        *(*run, "--unit=plain", "--property=User=bi-performance", "--property=Type=notify"),
        *(f"--property={each}" for each in bare),
        *("/opt/bi-performance/bin/bi-performanced", "--http=off", "--log-file=-"),
    )
    for name, path in (("hidden", "/run/bi-performance/control.sock"), ("seen", plain)):
        installed.machine.run(
            *(*run, f"--unit={name}", "--property=User=scraper"),
            *(f"--setenv=BI_PERFORMANCE_SOCKET={path}", "/opt/bi-performance/bin/python"),
            *("-c", CRAWL),
        )
    here = wait_until(lambda: installed.figures(), what="figures under the unit")
    bare_here = wait_until(lambda: installed.figures("--socket", plain), what="figures without it")
    installed.machine.run("systemctl", "stop", "plain", "hidden", "seen")
    for part in ("system", "daemon"):
        hidden = {name for name, value in here[part].items() if value is None}
        absent = {name for name, value in bare_here[part].items() if value is None}
        assert hidden == absent, f"{part}: {here[part]['unknown']}"
    assert here["system"]["load_1m"] is not None and here["daemon"]["pss_bytes"] is not None
    other, seen = here["processes"][0], bare_here["processes"][0]
    assert seen["rss_bytes"] and seen["threads"] and other["pid"]
    told = ("rss_bytes", "threads", "cpu_seconds", "read_bytes")
    # What is hidden the process tells of itself.
    assert all(other[name] for name in told[:3]) and other["read_bytes"] is not None
    assert {other["sources"][name] for name in told} == {"own page"}
    assert [name for name in told if name in seen["sources"]] == ["read_bytes"]


@pytest.mark.root
def test_the_group_is_what_lets_a_scraper_in(installed: Service) -> None:
    installed.keep("shared")
    installed.finds("shared")
    assert installed.command("logs", "-n", "5")[0] == 0
    status, said = installed.command("cache", "get", "shared", user="outsider")
    assert status == 3 and "join the group of the daemon" in said
    for user in ("scraper", "outsider"):
        for path in ("/run/bi-performance/store", CONFIG, "/var/lib/bi-performance"):
            done = installed.machine.run("head", "-c1", path, user=user, check=False)
            assert "Permission denied" in done.stderr, f"{user} may not read {path}"
    installed.machine.shell(
        "systemd-run --quiet --wait --pipe -p User=outsider -p SupplementaryGroups=bi-performance"
        " bi-performance cache get shared"
    )


@pytest.mark.root
def test_everybody_may_read_over_http_and_root_alone_may_post(installed: Service) -> None:
    assert installed.http("GET", "status") == 200
    assert installed.http("POST", "cache/clear") == 403
    assert installed.http("POST", "cache/clear", user="scraper") == 403
    assert installed.http("POST", "cache/clear", user="root") == 200
    assert installed.http("POST", "cache/clear", user="bi-performance") == 200


@pytest.mark.root
def test_a_stop_and_a_start_keep_the_entries(service: Service) -> None:
    service.keep("stopped")
    service.machine.run("systemctl", "stop", UNIT)
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert service.command("cache", "get", "stopped")[0] == 3
    service.machine.run("systemctl", "start", UNIT)
    service.finds("stopped")


@pytest.mark.root
def test_a_reload_opens_the_log_anew_in_the_same_process(service: Service) -> None:
    assert service.machine.run("test", "-e", "/bin/kill", check=False).returncode != 0
    pid = service.show("MainPID")
    service.machine.shell(f"mv {LOG} {LOG}.1; systemctl reload {UNIT}")
    wait_until(lambda: service.events() == ["log.reopened"], what="the new log")
    wait_until(lambda: service.show("SubState") == "running", what="the end of the reload")
    assert service.show("MainPID") == pid


@pytest.mark.root
def test_a_killed_daemon_is_started_again_with_its_entries(service: Service) -> None:
    service.keep("killed")
    pid = service.show("MainPID")
    service.machine.kill(pid, signal.SIGKILL)
    service.wait_for_another(pid)
    assert service.show("NRestarts") == "1"
    service.finds("killed")


@pytest.mark.root
def test_a_hanging_daemon_is_ended_with_its_traceback_and_started_again(service: Service) -> None:
    service.drop_in("WatchdogSec=2")
    service.machine.run("systemctl", "restart", UNIT)
    service.keep("hung")
    pid = service.show("MainPID")
    service.machine.kill(pid, signal.SIGSTOP)
    service.wait_for_another(pid)
    service.finds("hung")
    journal = service.journal()
    assert "Watchdog timeout (limit 2s)!" in journal
    assert "Fatal Python error: Aborted" in journal and "in run" in journal


@pytest.mark.root
def test_a_daemon_that_is_never_ready_is_ended_and_tried_again(service: Service) -> None:
    service.drop_in("ExecStart=\nExecStart=/bin/sleep infinity\nTimeoutStartSec=1")
    done = service.machine.run("systemctl", "restart", UNIT, check=False)
    assert done.returncode != 0 and "timeout" in done.stderr
    wait_until(lambda: service.show("NRestarts") != "0", what="another try")


@pytest.mark.root
def test_a_daemon_that_cannot_start_is_left_alone_after_five_times(service: Service) -> None:
    service.keep("crashed")
    path = "/run/bi-performance/control.sock"
    service.drop_in("RestartSec=10ms")
    service.machine.shell(f"systemctl stop {UNIT}; systemctl reset-failed {UNIT}; mkdir {path}")
    try:
        service.machine.run("systemctl", "start", UNIT, check=False)
        wait_until(lambda: service.show("ActiveState") == "failed", what="the end of the tries")
    finally:
        service.machine.run("rmdir", path)
    journal = service.journal()
    assert "Start request repeated too quickly." in journal
    assert journal.count(f"{path} is there and is not a socket; name another") == 5
    service.machine.shell(f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")
    service.finds("crashed")


@pytest.mark.root
def test_a_mistake_in_the_configuration_is_said_once_and_not_tried_again(
    service: Service,
) -> None:
    service.machine.shell(f"cp -a {CONFIG} {CONFIG}.good; sed -i s/^listen/lisen/ {CONFIG}")
    try:
        done = service.machine.run("systemctl", "restart", UNIT, check=False)
        assert done.returncode != 0
        assert (service.show("ActiveState"), service.show("NRestarts")) == ("failed", "0")
        assert "unknown key http.lisen (did you mean http.listen?)" in service.journal()
    finally:
        service.machine.shell(f"mv {CONFIG}.good {CONFIG}")


@pytest.mark.root
def test_the_first_connection_to_either_listener_starts_the_daemon(service: Service) -> None:
    service.keep("held")
    service.follow("Let systemd hold the listeners")
    assert service.show("ActiveState") == "inactive"
    service.finds("held")  # the client waits until it is ready
    assert service.show("ActiveState") == "active"
    service.machine.run("systemctl", "stop", UNIT)
    assert service.show("ActiveState") == "inactive"
    assert service.http("GET", "status") == 200
    assert service.show("ActiveState") == "active"
    service.finds("held")
    pid = service.show("MainPID")
    service.machine.kill(pid, signal.SIGKILL)
    assert service.http("GET", "status") == 200, "no connection fails while it restarts"
    assert service.show("MainPID") != pid
    service.finds("held")
    assert service.command("cache", "get", "held", user="outsider")[0] == 3


@pytest.mark.root
def test_with_the_sockets_it_needs_no_network_of_its_own(service: Service) -> None:
    service.keep("alone")
    service.follow("Let systemd hold the listeners")
    service.follow("Harden further")
    service.finds("alone")
    assert service.http("GET", "status") == 200
    assert service.http("POST", "cache/clear", user="root") == 403, "whose it is cannot be seen"
    pid = service.show("MainPID")
    devices = service.machine.run("cat", f"/proc/{pid}/net/dev").stdout.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


@pytest.mark.root
def test_an_upgrade_keeps_configuration_and_entries(service: Service) -> None:
    service.keep("old")
    module = "/opt/bi-performance/lib/python3*/site-packages/bi_performance_wire/address.py"
    service.machine.shell(f"echo '# ours' >>{CONFIG}; echo '# old' >>{module}")
    pid = service.show("MainPID")
    service.follow("Upgrade")
    service.machine.shell(f"cmp {module} {CHECKOUT}/ctl/bi_performance_wire/address.py")
    assert service.show("MainPID") != pid
    service.finds("old")
    assert service.machine.shell(f"tail -n 1 {CONFIG}") == "# ours\n"


@pytest.mark.root
def test_after_the_removal_of_the_page_nothing_is_left(service: Service) -> None:
    service.follow("Remove")
    left = service.machine.shell(
        "find / -xdev -name '*bi-performance*' -not -path '/proc/*'"
        f" -not -path '{CHECKOUT}*' -not -path '/tmp/exposure*'; find /run -name '*bi-perf*'"
    )
    assert [line for line in left.splitlines() if "journal" not in line] == []
    assert service.machine.run("id", "bi-performance", check=False).returncode != 0
    assert service.machine.run("systemctl", "--failed", "--quiet").stdout == ""
