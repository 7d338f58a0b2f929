"""systemd as the tree's first process, with gpasst in its units.

The units are those of docs/drivers.md. `systemctl start` returns when a unit counts as started, so each check uses the
network at once.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import ready
from tests.support.drivers.checks import (
    ANSWER,
    KINDS,
    Bench,
    Driver,
    Figures,
    answering,
    ask,
    program,
    reach,
)
from tests.support.drivers.recipes import recipes
from tests.support.lab import FAR4, bound

UNITS = "/etc/systemd/system"
TITLE = re.compile(rf"^# {UNITS}/(\S+)", re.MULTILINE)
NAMESPACE = "blue"
PORT = 5000
# Settings of the kernel are the machine's own, and nothing beyond the basics is wanted.
INIT = (
    "mkdir -p /run/systemd/system; "
    "ln -s /dev/null /run/systemd/system/systemd-sysctl.service; "
    "exec env container=tree /lib/systemd/systemd --unit=basic.target"
)
BOXED = """\
#!/bin/sh
echo "manager ${NOTIFY_SOCKET-none}"
exec sleep infinity
"""


def prepare(bench: Bench) -> None:
    ready.until(lambda: systemctl(bench, "is-active", "basic.target") == "active", "systemd started")
    for unit in recipes("systemd", "ini"):
        (name,) = TITLE.findall(unit)
        (bench.tree.root / UNITS.lstrip("/") / name).write_text(unit)
    boxed = bench.tree.root / "usr/local/bin/boxed"
    boxed.write_text(BOXED)
    boxed.chmod(0o755)
    bench.run("systemctl", "daemon-reload", root=True)


def reset(bench: Bench) -> None:
    bench.run("systemctl", "stop", "pasta*", "passt*", "boxed*", root=True)
    bench.tree.run("systemctl", "reset-failed", root=True)
    bench.tree.run("ip", "netns", "delete", NAMESPACE, root=True)


def systemctl(bench: Bench, *argv: str) -> str:
    """Return what systemctl prints, whatever its status."""
    return bench.tree.run("systemctl", *argv, root=True).stdout.strip()


def shown(bench: Bench, unit: str, name: str) -> str:
    """Return a property of a unit."""
    return systemctl(bench, "show", "--value", f"--property={name}", unit)


def inside(*command: str) -> list[str]:
    """Return the command that runs another one in the namespace."""
    return ["ip", "netns", "exec", NAMESPACE, *command]


@contextmanager
def started(bench: Bench, unit: str) -> Iterator[str]:
    """Start a unit for a namespace; stop it in the end, which has to be without a fault."""
    bench.run("ip", "netns", "add", NAMESPACE, root=True)
    bench.run("systemctl", "start", unit, root=True)
    yield shown(bench, unit, "MainPID")
    bench.run("systemctl", "stop", unit, root=True)
    state = shown(bench, unit, "ActiveState"), shown(bench, unit, "Result")
    assert state == ("inactive", "success"), state


def carried(bench: Bench) -> Figures:
    """Use the network of the namespace, each way."""
    for kind in KINDS:
        with bound(bench.remote.socket(socket.AF_INET, kind), FAR4) as server, answering(server) as port:
            assert bench.run(*inside(*ask(kind, FAR4, port)), root=True) == ANSWER
    with bench.running(*inside("python3", "-c", program("echo"), str(PORT), "attended"), root=True):
        return reach(bench, PORT)


def verify(bench: Bench) -> Figures:
    """`systemd-analyze verify` has nothing to say of the units."""
    for unit in recipes("systemd", "ini"):
        (name,) = TITLE.findall(unit)
        done = bench.tree.run("systemd-analyze", "verify", f"{UNITS}/{name}", root=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return {}


def notify(bench: Bench) -> Figures:
    """Type=notify: started means that the network is there."""
    with started(bench, f"pasta@{NAMESPACE}"):
        return carried(bench)


def forking(bench: Bench) -> Figures:
    """Type=forking: the PID file names the process that systemd takes for the service."""
    with started(bench, f"pasta-forking@{NAMESPACE}") as main:
        assert bench.run("cat", f"/run/pasta-{NAMESPACE}.pid", root=True).strip() == main
        return carried(bench)


def gone(bench: Bench) -> Figures:
    """A namespace that is deleted ends its service."""
    for name in ("pasta", "pasta-forking"):
        unit = f"{name}@{NAMESPACE}"
        bench.run("ip", "netns", "add", NAMESPACE, root=True)
        bench.run("systemctl", "start", unit, root=True)
        bench.run("ip", "netns", "delete", NAMESPACE, root=True)
        ready.until(lambda unit=unit: shown(bench, unit, "ActiveState") == "inactive", f"{unit} ended")
        assert shown(bench, unit, "Result") == "success"
    return {}


def restart(bench: Bench) -> Figures:
    """Restart=on-failure: a proxy that is killed is replaced."""
    unit = f"pasta@{NAMESPACE}"
    with started(bench, unit) as main:
        bench.run("systemctl", "kill", "--signal=KILL", unit, root=True)
        ready.until(lambda: shown(bench, unit, "MainPID") not in {main, "0"}, "restarted")
        ready.until(lambda: shown(bench, unit, "ActiveState") == "active", "active again")
        return carried(bench)


def absent(bench: Bench) -> Figures:
    """A namespace that is not there fails the start, with the reason in the journal."""
    for name in ("pasta", "pasta-forking"):
        unit = f"{name}@{NAMESPACE}"
        bench.refused("systemctl", "start", unit, root=True)
        systemctl(bench, "stop", unit)
        ready.until(
            lambda unit=unit: NAMESPACE in bench.run("journalctl", "--unit", unit, "--output=cat", root=True),
            "the reason in the journal",
        )
    return {}


def machine(bench: Bench) -> Figures:
    """passt as a service of an ordinary user's: its socket takes connections when it has started."""
    bench.run("systemctl", "start", "passt@guest", root=True)
    script = "import socket; socket.socket(socket.AF_UNIX).connect('/run/passt-guest/socket')"
    bench.run("python3", "-c", script)
    bench.run("systemctl", "stop", "passt@guest", root=True)
    assert shown(bench, "passt@guest", "Result") == "success"
    return {}


def boxed(bench: Bench) -> Figures:
    """A program in a namespace of its own, which is not taken for the service."""
    bench.run("systemctl", "start", "boxed@boxed", root=True)
    ready.until(
        lambda: "manager none" in bench.run("journalctl", "--unit=boxed@boxed", "--output=cat", root=True), "started"
    )
    bench.run("systemctl", "stop", "boxed@boxed", root=True)
    return {}


DRIVER = Driver(
    versions={"systemd": ("systemctl", "--version"), "Python": ("python3", "--version")},
    prepare=prepare,
    reset=reset,
    checks={
        "verify": verify,
        "notify": notify,
        "forking": forking,
        "gone": gone,
        "restart": restart,
        "absent": absent,
        "machine": machine,
        "boxed": boxed,
    },
    init=("sh", "-c", INIT),
)
