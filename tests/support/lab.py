"""The hosts that the end-to-end tests run on, made of network namespaces.

The test process itself becomes the *host* of `gpasst.testing.hosts`, with a second address (192.0.2.3). The *remote*
machine has another one, too (198.51.100.10 and 2001:db8:1::10, behind a path of MTU 1280), and is a router towards
203.0.113.0/24 and 2001:db8:2::/64, where nobody is. Of these networks, the second quarter has no route on the host (and
two addresses that it prohibits and discards), the third is unreachable for the remote machine, and the last has a next
hop of MTU 1280 there.
*Guests* are what the tests open with `gpasst.Pasta`, and the virtual machines of `tests.support.vm`.
Nothing can leave these namespaces. Mounts are private, too, with a /dev/net/tun for the run alone.

Tests run as an ordinary user inherit the host, and reach the remote machine through sockets made there for them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpasst.helper.channel import Channel
from gpasst.helper.enter import CLONE_NEWNS, unshare
from gpasst.linux import IFA_F_NODAD
from gpasst.testing import hosts, machines

TUN = "/dev/net/tun"
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2  # linux/mount.h
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h
HOST4, HOST4_SECOND, HOST6 = machines.HOST4, "192.0.2.3", machines.HOST6
REMOTE4, REMOTE6 = machines.GATEWAY4, machines.GATEWAY6
NARROW4, NARROW6, NARROW_MTU = "198.51.100.10", "2001:db8:1::10", 1280
FAR4, FAR6 = machines.FAR4, machines.FAR6
BEYOND4, BEYOND6 = "203.0.113.9", "2001:db8:2::9"
NOWHERE4, NOWHERE6 = "203.0.113.73", "2001:db8:2:0:4000::9"
UNREACHABLE4, UNREACHABLE6 = "203.0.113.137", "2001:db8:2:0:8000::9"
TIGHT4, TIGHT6 = "203.0.113.201", "2001:db8:2:0:c000::9"
HOST_LINK_LOCAL, REMOTE_LINK_LOCAL = "fe80::2", "fe80::1:1"
HOST, REMOTE, FAR = {4: HOST4, 6: HOST6}, {4: REMOTE4, 6: REMOTE6}, {4: FAR4, 6: FAR6}
PROHIBITED = {4: "203.0.113.80", 6: "2001:db8:2:0:4000::80"}
BLACKHOLE = {4: "203.0.113.81", 6: "2001:db8:2:0:4000::81"}
NARROW, BEYOND, NOWHERE = {4: NARROW4, 6: NARROW6}, {4: BEYOND4, 6: BEYOND6}, {4: NOWHERE4, 6: NOWHERE6}
UNREACHABLE, TIGHT = {4: UNREACHABLE4, 6: UNREACHABLE6}, {4: TIGHT4, 6: TIGHT6}
UPSTREAM = machines.UPSTREAM
INHERITED = "GPASST_TEST_REMOTE"  # environment variable: descriptor of the remote machine's channel
PATIENCE = 2.0  # seconds until something that should take milliseconds counts as lost

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Remote(machines.RemoteMachine):
    """The remote machine, with sockets of bounded patience."""

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, proto: int = 0) -> socket.socket:
        sock = super().socket(family, kind, proto)
        sock.settimeout(PATIENCE)
        return sock


def become_host() -> Remote:
    """Move this process into the host's namespace, and make the remote machine."""
    if INHERITED in os.environ:
        import _socket

        return Remote(Channel(_socket.socket(fileno=int(os.environ[INHERITED]))))
    if os.geteuid() == 0:
        unshare(CLONE_NEWNS)
        _open_tun()
    made = hosts(_configure_host, _configure_remote)
    if os.geteuid():
        _drop_capabilities()
    return Remote(made.remote.channel, made.remote.netns)


def _open_tun() -> None:
    """Make /dev/net/tun accessible to everyone, as distributions have it, for this run and no other.

    In a mount namespace of the run's own a node of its own covers the machine's. Where a container may make none, the
    `tun` fixture changes the mode of the machine's.
    """
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    if not os.path.exists(TUN):
        return
    with tempfile.TemporaryDirectory(prefix="gpasst-") as folder:
        node = os.path.join(folder, "tun")
        _check(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, None))
        try:
            os.mknod(node, stat.S_IFCHR | 0o666, os.stat(TUN).st_rdev)
            os.chmod(node, 0o666)
            _check(_libc.mount(os.fsencode(node), os.fsencode(TUN), None, MS_BIND, None))
        except PermissionError:
            pass
        finally:
            _check(_libc.umount2(os.fsencode(folder), MNT_DETACH))


def _drop_capabilities() -> None:
    """Become an ordinary user again, as the one is who runs `tests.e2e.test_ordinary_user`."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()))


def _configure_remote(route: Any, index: int) -> None:
    route.addr("add", index=index, address=NARROW4, prefixlen=32)
    for address, prefix in ((NARROW6, 128), (REMOTE_LINK_LOCAL, 64)):
        route.addr("add", index=index, address=address, prefixlen=prefix, flags=IFA_F_NODAD)
    # Only whose TTL is used up is told so; all else would come back to the host, which is no router.
    route.route("add", dst="203.0.113.0/24", gateway=HOST4)
    route.route("add", dst="2001:db8:2::/64", gateway=HOST6, family=socket.AF_INET6)
    route.route("add", dst="203.0.113.128/26", type="unreachable")
    route.route("add", dst="2001:db8:2:0:8000::/66", type="unreachable", family=socket.AF_INET6)
    narrow = {"mtu": NARROW_MTU}
    route.route("add", dst="203.0.113.192/26", gateway=HOST4, metrics=narrow)
    route.route("add", dst="2001:db8:2:0:c000::/66", gateway=HOST6, family=socket.AF_INET6, metrics=narrow)
    # Tests want every error: no type is limited but one that nobody sends.
    for name, value in (
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/icmp_ratemask", "0"),
        ("ipv6/icmp/ratemask", "127"),
    ):
        Path(f"/proc/sys/net/{name}").write_text(value, encoding="ascii")


def _configure_host(route: Any, index: int) -> None:
    route.addr("add", index=index, address=HOST4_SECOND, prefixlen=24)
    route.addr("add", index=index, address=HOST_LINK_LOCAL, prefixlen=64, flags=IFA_F_NODAD)
    # Where the search for a route ends without one.
    route.route("add", dst="203.0.113.64/26", type="throw")
    route.route("add", dst="2001:db8:2:0:4000::/66", type="throw", family=socket.AF_INET6)
    for kind, targets in (("prohibit", PROHIBITED), ("blackhole", BLACKHOLE)):
        route.route("add", dst=f"{targets[4]}/32", type=kind)
        route.route("add", dst=f"{targets[6]}/128", type=kind, family=socket.AF_INET6)
    narrow = {"mtu": NARROW_MTU}
    route.route("add", dst=f"{NARROW4}/32", gateway=REMOTE4, metrics=narrow)
    route.route("add", dst=f"{NARROW6}/128", gateway=REMOTE6, family=socket.AF_INET6, metrics=narrow)
    for name, value in (("ping_group_range", "0 65535"), ("ip_unprivileged_port_start", "0")):
        try:
            Path(f"/proc/sys/net/ipv4/{name}").write_text(value, encoding="ascii")
        except OSError:
            # An ordinary user's namespace admits only its own group.
            Path(f"/proc/sys/net/ipv4/{name}").write_text(f"{os.getgid()} {os.getgid()}", encoding="ascii")


@contextmanager
def bound(sock: socket.socket, address: str, port: int = 0) -> Iterator[socket.socket]:
    """Bind a socket, bound its patience, and close it in the end."""
    with sock:
        sock.settimeout(PATIENCE)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sock.bind((address, port))
        yield sock


def host_socket(family: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    """Make a socket on the host."""
    sock = socket.socket(family, kind)
    sock.settimeout(PATIENCE)
    return sock
