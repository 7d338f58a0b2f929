"""Three machines for tests of a network program: this process becomes a host, with a remote machine behind it.

Theory of operation: `hosts` moves the calling process into a fresh network namespace, the *host*'s, whose interface
`up0` leads to the namespace of the *remote* machine, which is the host's default gateway, and has an address of its own
behind that. *Guests* are namespaces behind the
host, opened with gpasst. None of them reaches the machine's own network, so tests may use any address and port, and
nothing that they send gets out. An ordinary user's process enters a user namespace first.

The move is the process's own, since sockets and the processes that it starts are to be the host's as well. A process
with threads cannot enter a user namespace, and a thread that runs already would stay where it is: so `hosts` is called
before anything has made a thread, in pytest from `pytest_configure` of the outermost conftest.py.

A small program (`gpasst.helper.pool`) keeps the remote machine's namespace, and makes sockets there for any thread.
"""

from __future__ import annotations

import os
import posix
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpasst.api.handle import Handle
from gpasst.errors import PlatformError
from gpasst.helper import pool
from gpasst.helper.channel import Channel, pair
from gpasst.helper.enter import CLONE_NEWNET, setns, unshare
from gpasst.linux import AF_INET, AF_INET6, IFA_F_NODAD, IN6_ADDR_GEN_MODE_NONE, SOCK_DGRAM

if TYPE_CHECKING:
    import socket
    import subprocess

    from gpasst.api.pasta import Pasta

HOST4, HOST6 = "192.0.2.2", "2001:db8::2"  # RFC 5737, RFC 3849: for documentation
GATEWAY4, GATEWAY6 = "192.0.2.1", "2001:db8::1"
FAR4, FAR6 = "198.51.100.9", "2001:db8:1::9"
UPSTREAM, DOWNSTREAM = "up0", "dn0"  # the interfaces of the host and the remote machine
MTU = 65520  # bytes; that of a guest's tap
ON_LINK, ALONE = (24, 64), (32, 128)  # prefix lengths for IPv4 and IPv6
OWN_NETWORK = "/proc/thread-self/ns/net"
REMEDY = "call hosts() before anything has made a thread, such as in pytest_configure of the outermost conftest.py"

# Configures one of both namespaces further: an `IPRoute` of pyroute2 in it, and the index of its interface.
Configure = Callable[[Any, int], object]


class RemoteMachine:
    """The machine behind the host.

    :param channel: leads to the program that keeps its namespace.
    :param netns: descriptor of its namespace, None where this process may not enter it: then it runs no programs there.
    :ivar netns: as above.
    :ivar ip4: its IPv4 address, which is not the one that is the gateway: for a guest that stands for the host.
    :ivar ip6: its IPv6 address, likewise.
    """

    ip4, ip6 = FAR4, FAR6

    def __init__(self, channel: Channel, netns: int | None = None) -> None:
        self.channel = channel
        self.netns = netns

    def socket(self, family: int = AF_INET, type: int = SOCK_DGRAM, proto: int = 0) -> socket.socket:
        """Make a socket in the machine's namespace; any thread may use it.

        :param family: address family, as of `socket.socket`.
        :param type: socket type, likewise.
        :param proto: protocol number, likewise.
        :raises PlatformError: if the namespace does not make it.
        """
        import socket

        request = {"do": "sockets", "family": int(family), "type": int(type), "proto": proto, "count": 1}
        _, (descriptor,) = self.channel.call(request)
        return socket.socket(family, type, proto, descriptor)

    def run(self, args: Sequence[str] | str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program on the machine and wait for it, as `subprocess.run` does."""
        import subprocess

        with self.popen(args, **_piped(options)) as program:
            try:
                output, errors = program.communicate(options.get("input"), options.get("timeout"))
            except BaseException:
                program.kill()
                raise
        done = subprocess.CompletedProcess(program.args, program.returncode, output, errors)
        if options.get("check"):
            done.check_returncode()
        return done

    def popen(self, args: Sequence[str] | str, **options: Any) -> subprocess.Popen[Any]:
        """Start a program on the machine, as `subprocess.Popen` does; its end is the caller's business."""
        import subprocess

        with self._entered():
            return subprocess.Popen(args, **options)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Have the calling thread in the machine's namespace."""
        assert self.netns is not None
        here = os.open(OWN_NETWORK, os.O_RDONLY)
        try:
            setns(self.netns, CLONE_NEWNET)
            try:
                yield
            finally:
                setns(here, CLONE_NEWNET)
        finally:
            os.close(here)


class Hosts(Handle):
    """The host, the remote machine, and the guests that are opened; closing it ends the latter two.

    Root's process returns to the namespace that it came from. An ordinary user's may not, and stays on the host.

    :ivar remote: the remote machine.
    :ivar ip4: the host's IPv4 address.
    :ivar ip6: the host's IPv6 address.
    :raises PlatformError: if a permission is in the way, or the process has threads.
    """

    ip4, ip6 = HOST4, HOST6

    def __init__(self, host: Configure | None = None, remote: Configure | None = None) -> None:
        self._home: int | None = None
        self._guests: list[Pasta] = []
        if threading.active_count() > 1:
            raise PlatformError("a process with threads cannot become a host", REMEDY)
        if os.geteuid():
            _enter_user_namespace()
        else:
            self._home = os.open(OWN_NETWORK, os.O_RDONLY)
        try:
            unshare(CLONE_NEWNET)
            self._here = os.open(OWN_NETWORK, os.O_RDONLY)
            unshare(CLONE_NEWNET)
        except OSError as error:
            raise PlatformError(
                f"cannot make a network namespace: {error.strerror}", "allow user namespaces, or run as root"
            ) from None
        there = os.open(OWN_NETWORK, os.O_RDONLY)
        self._keeper, channel = _keep()
        self.remote = RemoteMachine(channel, there)
        self._there = there
        _configure_remote(self._here, remote)
        setns(self._here, CLONE_NEWNET)
        _configure_host(host)

    def guest(self, **fields: Any) -> Pasta:
        """Open a namespace behind the host, configured unless `fields` say otherwise; it is closed with the others.

        :param fields: the keywords of `gpasst.Pasta`.
        :raises GpasstError: as `gpasst.Pasta.open` does.
        """
        from gpasst.api.pasta import Pasta

        fields.setdefault("config_net", True)
        net = Pasta(**fields)
        net.open()
        self._guests.append(net)
        return net

    def close(self) -> None:
        """Close the guests and the remote machine. More calls do nothing."""
        while self._guests:
            self._guests.pop().close()
        if self.remote.channel.fileno() < 0:
            return
        self.remote.channel.close()
        posix.waitpid(self._keeper, 0)
        if self._home is not None:
            setns(self._home, CLONE_NEWNET)
            os.close(self._home)
        os.close(self._here)
        os.close(self._there)


def hosts(host: Configure | None = None, remote: Configure | None = None) -> Hosts:
    """Make this process a host with a remote machine behind it, until the block ends.

    ::

        with gpasst.testing.hosts() as machines:
            server = machines.remote.popen(["./server", "--listen", machines.remote.ip4])
            guest = machines.guest(udp_ports="5000")
            guest.run(["./client", machines.remote.ip4], check=True)

    :param host: configures the host's namespace further.
    :param remote: configures the remote machine's namespace further.
    :raises PlatformError: if a permission is in the way, or the process has threads.
    """
    return Hosts(host, remote)


def _piped(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of `subprocess.run` as those of `subprocess.Popen`."""
    from subprocess import PIPE

    given = {name: value for name, value in options.items() if name not in ("input", "timeout", "check")}
    if given.pop("capture_output", False):
        given |= {"stdout": PIPE, "stderr": PIPE}
    if options.get("input") is not None:
        given["stdin"] = PIPE
    return given


def _enter_user_namespace() -> None:
    # Imported late: it reaches for netlink.
    from gpasst.helper.namespace import enter_user_namespace

    enter_user_namespace()


def _keep() -> tuple[int, Channel]:
    """Start the program that keeps the namespace of the calling thread; return its process and its channel."""
    ours, theirs = pair()
    try:
        os.set_inheritable(theirs.fileno(), True)
        command = [sys.executable, "-I", "-S", pool.__file__, str(theirs.fileno())]
        # A group of its own, so that the terminal's signals spare it.
        process = os.posix_spawn(sys.executable, command, os.environ, setpgroup=0, setsigdef=[signal.SIGCHLD])
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, Channel(ours)


def _configure_remote(host: int, further: Configure | None) -> None:
    """Configure the namespace of the calling thread, and let a link lead to another one.

    :param host: descriptor of the other one.
    """
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=1, state="up")
        route.link("add", ifname=DOWNSTREAM, kind="veth", peer={"ifname": UPSTREAM, "net_ns_fd": host})
        index = _up(route, DOWNSTREAM)
        _add_addresses(route, index, (GATEWAY4, GATEWAY6), ON_LINK)
        _add_addresses(route, index, (FAR4, FAR6), ALONE)
        if further is not None:
            further(route, index)


def _configure_host(further: Configure | None) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=1, state="up")
        index = _up(route, UPSTREAM)
        _add_addresses(route, index, (HOST4, HOST6), ON_LINK)
        route.route("add", dst="default", gateway=GATEWAY4)
        route.route("add", dst="default", gateway=GATEWAY6, family=AF_INET6)
        if further is not None:
            further(route, index)


def _up(route: Any, name: str) -> int:
    """Let a link be up without addresses of the kernel's own, which duplicate address detection would delay."""
    (index,) = route.link_lookup(ifname=name)
    none = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]})]}
    route.link("set", index=index, IFLA_AF_SPEC=none)
    route.link("set", index=index, state="up", mtu=MTU)
    return int(index)


def _add_addresses(route: Any, index: int, addresses: tuple[str, str], prefixes: tuple[int, int]) -> None:
    """Give a link an IPv4 and an IPv6 address, at once."""
    for address, prefix, flags in zip(addresses, prefixes, (0, IFA_F_NODAD), strict=True):
        route.addr("add", index=index, address=address, prefixlen=prefix, flags=flags)
