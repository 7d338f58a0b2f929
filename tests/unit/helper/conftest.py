"""A helper process for the tests of a module, and namespaces that it keeps."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyroute2
import pytest

from gpasst.helper import tap
from gpasst.helper.client import Helper, Namespace
from tests.support.namespaces import BARE, CONFIGURED, NOBODY, PATIENCE, ROOT

CLONE_NEWUSER = 0x10000000


def user_namespaces() -> bool:
    probe = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({CLONE_NEWUSER}) != 0)"
    return subprocess.run([sys.executable, "-I", "-S", "-c", probe], check=False).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    if not user_namespaces():
        pytest.skip("needs user namespaces")


@pytest.fixture(scope="module", name="tun")
def _tun() -> None:
    if not os.path.exists(tap.TUN_DEVICE):
        pytest.skip(f"needs {tap.TUN_DEVICE}")
    if not os.access(tap.TUN_DEVICE, os.R_OK | os.W_OK):
        pytest.skip(f"needs {tap.TUN_DEVICE} to be accessible")


@pytest.fixture
def tun_mode(tun: None) -> Iterator[Callable[[int], None]]:
    """Change the mode of /dev/net/tun until the end of the test."""
    if os.geteuid() != 0:
        pytest.skip("needs root to change the mode of /dev/net/tun")
    before = stat.S_IMODE(os.stat(tap.TUN_DEVICE).st_mode)
    yield lambda mode: os.chmod(tap.TUN_DEVICE, mode)
    os.chmod(tap.TUN_DEVICE, before)


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    with Helper.start() as started:
        yield started


@pytest.fixture(scope="module")
def bare(helper: Helper) -> Iterator[Namespace]:
    with helper.open(BARE) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def configured(helper: Helper, tun: None) -> Iterator[Namespace]:
    with helper.open(CONFIGURED) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def as_nobody() -> Callable[[str], Any]:
    """Run a script as an ordinary user, with an interpreter and a library that user can read."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    options: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    path = [str(ROOT), str(Path(pyroute2.__file__).parent.parent)]
    probe = "import gpasst, pyroute2; assert sys.version_info >= (3, 10)"
    for interpreter in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):

        def command(body: str, interpreter: str = interpreter) -> list[str]:
            return [interpreter, "-B", "-c", f"import sys; sys.path += {path!r}\n{body}"]

        try:
            if not subprocess.run(command(probe), stderr=subprocess.DEVNULL, check=False, **options).returncode:
                break
        except OSError:
            continue
    else:
        pytest.skip(f"needs a Python and {path} to be readable by user {NOBODY}")

    def run(body: str) -> Any:
        done = subprocess.run(command(body), capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
