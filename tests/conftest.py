"""Where the tests run: see `tests.support.lab`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest

from tests.support import lab, surroundings
from tests.support.lab import TUN

REMOTE = pytest.StashKey[lab.Remote | str]()


def pytest_configure(config: pytest.Config) -> None:
    surroundings.settle()
    # Before anything has made a thread: a process with threads cannot enter a user namespace.
    try:
        config.stash[REMOTE] = lab.become_host()
    except OSError as error:
        config.stash[REMOTE] = f"needs network namespaces: {error.strerror}"


@pytest.fixture(scope="session")
def remote(request: pytest.FixtureRequest) -> lab.Remote:
    """The remote machine; the host is this process."""
    found = request.config.stash[REMOTE]
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def tun() -> Iterator[None]:
    """/dev/net/tun, accessible to everyone for the run; see `tests.support.lab`."""
    if not os.path.exists(TUN):
        pytest.skip(f"needs {TUN}: modprobe tun")
    mode = stat.S_IMODE(os.stat(TUN).st_mode)
    if mode & 0o666 == 0o666:
        yield
        return
    try:
        os.chmod(TUN, 0o666)
    except OSError:
        if os.access(TUN, os.R_OK | os.W_OK):
            yield
            return
        pytest.skip(f"needs access to {TUN}: chmod 0666 {TUN}")
    yield
    os.chmod(TUN, mode)
