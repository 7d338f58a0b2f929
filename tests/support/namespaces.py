"""Namespaces of the helper, what runs in them, and programs that use a helper of their own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpasst.helper.client import Namespace, OpenRequest, Route, enter_command

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
PATIENCE = 20.0  # seconds until a test fails that should have ended in milliseconds

CONFIGURED = OpenRequest(
    ifname="eth7",
    mac="02:00:00:00:00:07",
    mtu=9000,
    configure=True,
    addresses=(("10.1.2.3", 24), ("fd11::3", 64)),
    routes=(Route(None, 0, "10.1.2.1", metric=50), Route(None, 0, "fd11::1", family=6)),
)
BARE = OpenRequest(tap=False)


def inside(
    namespace: Namespace, *argv: str, init: bool = False, runas: tuple[int, int] | None = None
) -> subprocess.CompletedProcess[str]:
    command, inherited = enter_command(namespace, argv, init=init, runas=runas)
    return subprocess.run(command, pass_fds=inherited, capture_output=True, text=True, timeout=PATIENCE, check=False)


def script(body: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{body}"]


def run_script(body: str, **options: Any) -> Any:
    """Run a script that prints one JSON value."""
    done = subprocess.run(script(body), capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FACTS = """
import json
from gpasst.helper.client import Helper
with Helper.start() as helper:
    print(json.dumps(helper.facts()))
"""


def facts_inside(namespace: Namespace, before: str = "") -> dict[str, Any]:
    done = inside(namespace, *script(before + FACTS))
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def assert_ends(*pidfds: int) -> None:
    for descriptor in pidfds:
        assert select.select([descriptor], [], [], PATIENCE)[0], "the process is still there"
        os.close(descriptor)


def inode(descriptor: int | None) -> int:
    assert descriptor is not None
    return os.fstat(descriptor).st_ino


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
