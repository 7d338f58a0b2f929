"""The one line that says what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.helper import tap
from gpasst.helper.client import Helper, Namespace, OpenRequest, Route
from tests.support.namespaces import (
    inside,
    open_descriptors,
    run_script,
    script,
)

FILES = "name a running process, a namespace in /run/netns, or a file like /proc/PID/ns/net or /proc/PID/ns/user"
NAMES = "use up to 15 characters without blank, slash, colon or percent sign, and neither 'all' nor 'default'"
CORRECT = "correct the option, address or route that it comes from"


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (
            OpenRequest(netns="/nonexistent/net"),
            ConfigurationError,
            f"no namespace at /nonexistent/net; {FILES}",
        ),
        (OpenRequest(netns="/dev/null"), ConfigurationError, f"/dev/null is not a network namespace; {FILES}"),
        (
            OpenRequest(netns="/proc/self/ns/net", userns="/dev/null"),
            ConfigurationError,
            f"/dev/null is not a user namespace; {FILES}",
        ),
    ],
)
def test_error_lines(helper: Helper, request_: OpenRequest, kind: type[GpasstError], message: str) -> None:
    before = open_descriptors()
    with pytest.raises(kind) as caught:
        helper.open(request_)
    assert str(caught.value) == message
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ifname": "a/b"},
            f"a/b is no interface name; {NAMES}",
        ),
        (
            {"ifname": "e:h"},
            f"e:h is no interface name; {NAMES}",
        ),
        (
            {"ifname": "a\x7f"},
            f"a\\x7f is no interface name; {NAMES}",
        ),
        (
            {"ifname": "lo"},
            "an interface named lo exists already in the namespace, and is no tap device for one owner; "
            "choose another name: --ns-ifname",
        ),
        ({"mtu": 70_000}, f"cannot set up gpasst0 with mtu 70000: Invalid argument; {CORRECT}"),
        (
            {"mac": "ff:ff:ff:ff:ff:ff"},
            "cannot set up gpasst0 with address ff:ff:ff:ff:ff:ff, mtu 65520: Cannot assign requested address; "
            f"{CORRECT}",
        ),
        ({"addresses": (("10.0.0.1", 33),)}, f"cannot add the address 10.0.0.1/33: Invalid argument; {CORRECT}"),
        (
            {"addresses": (("10.0.0.1", 8), ("10.0.0.1", 8))},
            f"cannot add the address 10.0.0.1/8: File exists; {CORRECT}",
        ),
        ({"routes": (Route("10.1.0.1", 16),)}, f"cannot add the route 10.1.0.1/16: Invalid argument; {CORRECT}"),
    ],
)
def test_error_lines_of_the_device(helper: Helper, tun: None, changes: dict[str, Any], message: str) -> None:
    before = open_descriptors()
    with pytest.raises(ConfigurationError) as caught:
        helper.open(OpenRequest(**{"configure": True, **changes}))
    assert str(caught.value) == message
    assert open_descriptors() == before


def test_unreadable_address_is_a_configuration_error(helper: Helper, tun: None) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot add the address 10\.0\.0/8"):
        helper.open(OpenRequest(configure=True, addresses=(("10.0.0", 8),)))


def test_missing_tun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap, "TUN_DEVICE", str(tmp_path / "tun"))
    with pytest.raises(PlatformError, match=r"tun is missing; load the tun module: modprobe tun$"):
        tap.open_tun()


def test_forbidden_user_namespaces(bare: Namespace) -> None:
    body = """
from gpasst.errors import PlatformError
from gpasst.helper.client import *
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
with Helper.start() as helper:
    try:
        helper.open(OpenRequest(tap=False))
    except PlatformError as error:
        print(error)
"""
    done = inside(bare, *script(body))
    assert done.stdout == (
        "cannot create a user namespace: No space left on device; raise the limits (sysctl user.max_user_namespaces, "
        "user.max_net_namespaces), or run as root with --netns-only\n"
    ), done.stderr


def test_an_ordinary_user_needs_a_user_namespace(as_nobody: Callable[[str], Any]) -> None:
    lines = as_nobody(
        """
import json
from gpasst.errors import PlatformError
from gpasst.helper.client import *
lines = []
with Helper.start() as helper:
    for request in (
        OpenRequest(netns_only=True, tap=False),
        OpenRequest(runas=(1, 1), tap=False),
        OpenRequest(netns="/proc/self/ns/net", tap=False),
        OpenRequest(netns="/proc/1/ns/net", tap=False),
    ):
        try:
            helper.open(request)
        except PlatformError as error:
            lines.append(str(error))
print(json.dumps(lines))
"""
    )
    assert lines == [
        "cannot create a network namespace: Operation not permitted; run as root, or leave --netns-only out",
        "cannot become user 1, group 1: Operation not permitted; run as root, or leave --runas out",
        "not permitted to join the network namespace /proc/self/ns/net; "
        "name the user namespace it belongs to with --userns, or run as its owner or as root",
        "not permitted to open /proc/1/ns/net; run as its owner or as root",
    ]


def test_too_many_open_files_is_one_line() -> None:
    body = """
import json, os, resource
from gpasst.errors import PlatformError
from gpasst.helper.client import *
with Helper.start() as helper, helper.open(OpenRequest(tap=False)) as namespace:
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, before + 8))
    try:
        namespace.sockets(2, 2, 0, 64)
    except PlatformError as error:
        line = str(error)
    print(json.dumps([line, len(namespace.sockets(2, 2, 0, 1)), len(os.listdir("/proc/self/fd")) - before]))
"""
    assert run_script(body) == ["too many open files; raise the limit: ulimit -n", 1, 1]


def test_helper_that_ended() -> None:
    started = Helper.start()
    os.kill(started.pid, signal.SIGKILL)
    with pytest.raises(PlatformError, match="the helper process ended unexpectedly"):
        started.facts()
    started.close()
    started.close()
    with pytest.raises(PlatformError, match="the helper process was closed"):
        started.facts()


def test_a_chroot_is_named_where_no_user_namespace_can_be_made() -> None:
    """The kernel refuses them there, whoever asks (user_namespaces(7)); in a user namespace anyone may change root."""
    code = """
import os, sys
from gpasst.errors import PlatformError
from gpasst.helper.enter import CLONE_NEWUSER, unshare
from gpasst.helper.namespace import enter_user_namespace
unshare(CLONE_NEWUSER)
os.chroot("/usr")
try:
    enter_user_namespace()
except PlatformError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("cannot create a user namespace: Operation not permitted; leave the chroot")
    assert done.stdout.count("\n") == 1
