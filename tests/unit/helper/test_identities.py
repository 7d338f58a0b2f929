"""Which user a namespace belongs to, and joining those of others."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpasst.helper.client import Helper, Namespace, OpenRequest, enter_command
from tests.support.namespaces import (
    NOBODY,
    PATIENCE,
    facts_inside,
    inode,
    inside,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_root_keeps_every_id(bare: Namespace) -> None:
    outside = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    mapped = [line.split() for line in inside(bare, "cat", "/proc/self/uid_map").stdout.splitlines()]
    if os.geteuid() == 0:
        assert [(a, b, c) for a, b, c in mapped] == [(a, a, c) for a, _, c in outside]
    else:
        assert mapped == [["0", str(os.geteuid()), "1"]]


USER_PROGRAM = """
import json, os, subprocess
from gpasst.helper.client import *
with Helper.start() as helper:
    request = OpenRequest(configure=True, addresses=(("10.1.2.3", 24),), routes=(Route(None, 0, "10.1.2.1"),))
    with helper.open(request) as namespace:
        argv, inherited = enter_command(namespace, ["id", "-u"])
        said = subprocess.run(argv, pass_fds=inherited, capture_output=True, text=True).stdout
        argv, inherited = enter_command(namespace, ["cat", "/proc/sys/net/ipv4/ping_group_range"])
        ping = subprocess.run(argv, pass_fds=inherited, capture_output=True, text=True).stdout
        count = len(namespace.sockets(2, 2, 0, 3))
        netns, userns = (f"/proc/{os.getpid()}/fd/{fd}" for fd in (namespace.netns, namespace.userns))
        with helper.open(OpenRequest(netns=netns, userns=userns, ifname="second")) as joined:
            same = os.fstat(joined.netns).st_ino == os.fstat(namespace.netns).st_ino
print(json.dumps([os.getuid(), said.strip(), ping.split(), count, same]))
"""


def test_ordinary_user(as_nobody: Callable[[str], Any], tun_mode: Callable[[int], None]) -> None:
    tun_mode(0o666)
    assert as_nobody(USER_PROGRAM) == [NOBODY, "0", ["0", "0"], 3, True]


def test_ordinary_user_without_access_to_tun(as_nobody: Callable[[str], Any], tun_mode: Callable[[int], None]) -> None:
    tun_mode(0o600)
    message = as_nobody(
        """
import json
from gpasst.errors import PlatformError
from gpasst.helper.client import *
with Helper.start() as helper:
    try:
        helper.open(OpenRequest())
    except PlatformError as error:
        print(json.dumps(str(error)))
"""
    )
    assert message == "/dev/net/tun cannot be opened: Permission denied; make it accessible: chmod 0666 /dev/net/tun"


def test_root_can_run_as_somebody_else(helper: Helper, tun_mode: Callable[[int], None]) -> None:
    tun_mode(0o600)
    with helper.open(OpenRequest(runas=(NOBODY, NOBODY))) as namespace:
        assert namespace.tap >= 0
        assert os.stat(f"/proc/{namespace.pid}").st_uid == NOBODY
        assert inside(namespace, "id", "-u", runas=(NOBODY, NOBODY)).stdout == "0\n"
        mapped = inside(namespace, "cat", "/proc/self/uid_map", runas=(NOBODY, NOBODY)).stdout.split()
        assert mapped == ["0", str(NOBODY), "1"]
        assert len(namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 2)) == 2


@needs_root
def test_network_namespace_alone(helper: Helper) -> None:
    request = OpenRequest(tap=False, netns_only=True, runas=(NOBODY, NOBODY))
    with helper.open(request) as namespace:
        assert namespace.userns is None
        assert inode(namespace.netns) != os.stat("/proc/self/ns/net").st_ino
        # The program of the pool runs as the new user by the time it answers.
        assert len(namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)) == 1
        assert f"Uid:\t{NOBODY}" in Path(f"/proc/{namespace.pid}/status").read_text()
        assert inside(namespace, "id", "-u", runas=(NOBODY, NOBODY)).stdout == f"{NOBODY}\n"


def test_join_by_process(helper: Helper, configured: Namespace) -> None:
    command, inherited = enter_command(configured, ["sh", "-c", "echo up; exec cat"])
    with subprocess.Popen(
        command, pass_fds=inherited, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        path = f"/proc/{process.pid}/ns"
        with helper.open(OpenRequest(netns=f"{path}/net", userns=f"{path}/user", ifname="eth8")) as joined:
            assert inode(joined.netns) == inode(configured.netns)
            assert inode(joined.userns) == inode(configured.userns)
            assert (joined.uts, joined.ipc) == (None, None)
            names = {link["name"] for link in facts_inside(joined)["links"]}
            assert names == {"lo", "eth7", "eth8"}
            assert joined.pid not in (configured.pid, helper.pid), "its user namespace may be another"
        # The same name can be used again at once.
        helper.open(OpenRequest(netns=f"{path}/net", userns=f"{path}/user", ifname="eth8")).close()
        process.communicate(timeout=PATIENCE)


def test_join_by_file(helper: Helper, bare: Namespace) -> None:
    path = f"/proc/{os.getpid()}/fd"
    request = OpenRequest(netns=f"{path}/{bare.netns}", userns=f"{path}/{bare.userns}", tap=False)
    with helper.open(request) as joined:
        assert inode(joined.netns) == inode(bare.netns)


def test_own_user_namespace_is_not_entered(helper: Helper, bare: Namespace) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to join a network namespace without its user namespace")
    request = OpenRequest(netns=f"/proc/{os.getpid()}/fd/{bare.netns}", userns="/proc/self/ns/user", tap=False)
    with helper.open(request) as joined:
        assert joined.userns is None
