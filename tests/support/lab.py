"""The hosts that the end-to-end tests run on, made of network namespaces.

The test process itself becomes the *host*: it moves into a fresh network namespace with an upstream interface `up0`
(192.0.2.2 and 192.0.2.3, 2001:db8::2) whose other end is in the *remote* machine's namespace (192.0.2.1, 2001:db8::1,
the default gateway; 198.51.100.9 and 2001:db8:1::9 behind it, and .10 and ::10 behind a path of MTU 1280; a router
towards 203.0.113.0/24 and 2001:db8:2::/64, where nobody is). Of these networks, the second quarter has no route on the
host (and two addresses that it prohibits and discards), the third is unreachable for the remote machine, and the last
has a next hop of MTU 1280 there.
*Guests* are what the tests open with `gpasst.Pasta`, and the virtual machines of `tests.support.vm`.
Nothing can leave these namespaces. Mounts are private, too, with a /dev/net/tun for the run alone.

Tests run as an ordinary user inherit the host, and reach the remote machine through sockets made there for them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpasst.helper import pool
from gpasst.helper.channel import Channel, pair

TUN = "/dev/net/tun"
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2  # linux/mount.h
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3 of linux/capability.h
HOST4, HOST4_SECOND, HOST6 = "192.0.2.2", "192.0.2.3", "2001:db8::2"
REMOTE4, REMOTE6 = "192.0.2.1", "2001:db8::1"
NARROW4, NARROW6, NARROW_MTU = "198.51.100.10", "2001:db8:1::10", 1280
FAR4, FAR6 = "198.51.100.9", "2001:db8:1::9"
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
UPSTREAM = "up0"
INHERITED = "GPASST_TEST_REMOTE"  # environment variable: descriptor of the remote machine's channel
PATIENCE = 2.0  # seconds until something that should take milliseconds counts as lost

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Remote:
    """The remote machine: gives sockets that live there."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def socket(self, family: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """Make a socket in the remote machine's namespace."""
        request = {"do": "sockets", "family": int(family), "type": int(kind), "proto": 0, "count": 1}
        _, (descriptor,) = self.channel.call(request)
        sock = socket.socket(family, kind, fileno=descriptor)
        sock.settimeout(PATIENCE)
        return sock


def become_host() -> Remote:
    """Move this process into the host's namespace, and make the remote machine."""
    if INHERITED in os.environ:
        import _socket

        return Remote(Channel(_socket.socket(fileno=int(os.environ[INHERITED]))))
    if os.geteuid() == 0:
        _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS))
        _open_tun()
    else:
        uid, gid = os.getuid(), os.getgid()
        _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNET))
        for name, text in (("uid_map", f"{uid} {uid} 1"), ("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    host = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _check(_libc.unshare(CLONE_NEWNET))
    remote = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ours, theirs = pair()
    os.set_inheritable(theirs.fileno(), True)
    # Started here and now, it stays in the remote machine's namespace.
    command = [sys.executable, "-I", "-S", pool.__file__, str(theirs.fileno())]
    os.posix_spawn(sys.executable, command, os.environ, setpgroup=0)
    theirs.close()
    _configure_remote(host)
    _check(_libc.setns(host, CLONE_NEWNET))
    _configure_host()
    os.close(host)
    os.close(remote)
    if os.geteuid():
        _drop_capabilities()
    return Remote(Channel(ours))


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


def _configure_remote(host: int) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=1, state="up")
        route.link("add", ifname="dn0", kind="veth", peer={"ifname": UPSTREAM, "net_ns_fd": host})
        (index,) = route.link_lookup(ifname="dn0")
        _no_generated_addresses(route, index)
        route.link("set", index=index, state="up", mtu=65520)
        for address, prefix in ((REMOTE4, 24), (FAR4, 32), (NARROW4, 32)):
            route.addr("add", index=index, address=address, prefixlen=prefix)
        for address, prefix in ((REMOTE6, 64), (FAR6, 128), (NARROW6, 128), (REMOTE_LINK_LOCAL, 64)):
            route.addr("add", index=index, address=address, prefixlen=prefix, flags=0x02)
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


def _configure_host() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=1, state="up")
        (index,) = route.link_lookup(ifname=UPSTREAM)
        _no_generated_addresses(route, index)
        route.link("set", index=index, state="up", mtu=65520)
        for address in (HOST4, HOST4_SECOND):
            route.addr("add", index=index, address=address, prefixlen=24)
        for address in (HOST6, HOST_LINK_LOCAL):
            route.addr("add", index=index, address=address, prefixlen=64, flags=0x02)
        route.route("add", dst="default", gateway=REMOTE4)
        route.route("add", dst="default", gateway=REMOTE6, family=socket.AF_INET6)
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


def _no_generated_addresses(route: object, index: int) -> None:
    """Keep the kernel from making link-local addresses, which duplicate address detection would delay."""
    none = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
    route.link("set", index=index, IFLA_AF_SPEC=none)  # type: ignore[attr-defined]


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
