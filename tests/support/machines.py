"""Guests with a kernel of their own, behind either link: a namespace with its tap, or one behind passt mode's stream.

A `Machine` has sockets of the guest's kernel whichever link leads to it, so a scenario runs over both.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import gpasst
from gpasst.formats import TCP_ACK, TCP_SYN
from gpasst.helper.client import Helper, Namespace, OpenRequest, Route
from tests.support import pump
from tests.support.families import FAMILY
from tests.support.lab import FAR, HOST4, HOST6, REMOTE4, REMOTE6
from tests.support.namespaces import inside

PATIENCE = 10.0  # seconds until a call of a stream's socket counts as stuck
MAC = "52:54:00:12:34:56"
INTERFACE = "card0"
MTU = 65520  # bytes, unless an option says otherwise
DOWN, UP = 0, 1  # directions of loss: from the guest, to the guest
SYN, SYN_ACK = TCP_SYN, TCP_SYN | TCP_ACK
FLAGS = 0x3F  # of a segment, without those of ECN


class Machine(Protocol):
    """A guest with a kernel.

    :ivar net: what serves it.
    :ivar interface: the name of its network card.
    """

    net: Any
    interface: str

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Make a socket of the guest's; `family` is 4 or 6."""

    def run(self, command: Sequence[str]) -> str:
        """Run a program in the guest to its end, which must be a good one; return what it printed."""


class Tap:
    """A machine whose link is a tap."""

    def __init__(self, net: gpasst.Pasta) -> None:
        self.net = net
        self.interface = net.interface

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        sock = self.net.socket(FAMILY[family], kind)
        sock.settimeout(PATIENCE)
        return sock

    def run(self, command: Sequence[str]) -> str:
        return str(self.net.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class Stream:
    """A machine whose link is a stream."""

    def __init__(self, net: gpasst.Passt, namespace: Namespace) -> None:
        self.net = net
        self.interface = INTERFACE
        self._namespace = namespace
        self.plug()

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        (descriptor,) = self._namespace.sockets(FAMILY[family], kind)
        sock = socket.socket(FAMILY[family], kind, fileno=descriptor)
        sock.settimeout(PATIENCE)
        return sock

    def run(self, command: Sequence[str]) -> str:
        done = inside(self._namespace, *command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lose(self, direction: int, flags: int, count: int) -> None:
        """Let the next `count` segments with exactly these flags get lost.

        :param direction: `DOWN` or `UP`.
        """
        self._control.sendall(bytes((direction, FLAGS, flags, count)))
        assert self._control.recv(1) == b"!"

    def plug(self) -> None:
        """Connect the guest."""
        link, (control, inner) = socket.socket(socket.AF_UNIX), socket.socketpair()
        control.settimeout(PATIENCE)
        self._control = control
        with link, inner:
            link.connect(self.net.path)
            descriptors = self._namespace.tap, link.fileno(), inner.fileno()
            command = [sys.executable, "-I", "-S", pump.__file__, *map(str, descriptors)]
            self._program = subprocess.Popen(command, pass_fds=descriptors)

    def unplug(self) -> None:
        """Disconnect the guest; more calls do nothing."""
        self._control.close()
        self._program.wait(PATIENCE)

    def lost(self) -> None:
        """Wait until another one got lost."""
        assert self._control.recv(1) == b"x"


@contextmanager
def tap(**options: Any) -> Iterator[Tap]:
    """A machine behind a tap; `options` are those of `gpasst.Pasta`."""
    with gpasst.Pasta(config_net=True, **options) as net:
        yield Tap(net)


def card(mtu: int = MTU) -> OpenRequest:
    """Return the request for a namespace with the network card of a machine behind a stream.

    :param mtu: in bytes.
    """
    return OpenRequest(
        ifname=INTERFACE,
        mac=MAC,
        mtu=mtu,
        offload=False,
        configure=True,
        addresses=((HOST4, 24), (HOST6, 64)),
        routes=(Route(None, 0, REMOTE4), Route(None, 0, REMOTE6, family=6)),
    )


@contextmanager
def stream(**options: Any) -> Iterator[Stream]:
    """A machine behind a stream, with the addresses that it is advertised; `options` are those of `gpasst.Passt`."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpasst-")))
        folder.chmod(0o777)
        net = stack.enter_context(gpasst.Passt(socket=str(folder / "socket"), **options))
        helper = stack.enter_context(Helper.start())
        namespace = stack.enter_context(helper.open(card(options.get("mtu", MTU))))
        machine = Stream(net, namespace)
        stack.callback(machine.unplug)
        for family in net.config.families:
            # From here on the proxy knows the guest's addresses.
            with machine.socket(family) as sock:
                assert sock.connect_ex((FAR[family], 9)), "nobody serves that"
        yield machine
