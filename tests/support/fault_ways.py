"""What a proxy does, one exchange at a time: the ways on which `tests.e2e.faults` lets system calls fail.

An attempt ends early where what it waits for was lost, which it asks its caller about.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gpasst
from gpasst.linux import SOL_UDP, UDP_SEGMENT
from gpasst.path.udp_ready import ALONE
from tests.support.lab import FAR, HOST, Remote, bound, host_socket
from tests.support.ready import PATIENCE, STEP
from tests.support.scripted import Guest
from tests.support.streams import listening, noise, patient, received

DATAGRAM_PORT, STREAM_PORT = 5000, 5001  # forwarded to the guest
NAME_PORT, NAME_NS, WEB_PORT, WEB_NS = 8053, 5300, 8080, 8081  # each leads to a port of the other side's loopback
NAME, WEB, DISCARD = 53, 80, 9
LONG = 200_000  # bytes that cross in superframes, and in pipes
SEGMENT, BURST = 1000, 20  # bytes of a datagram, and datagrams of a run
GUEST_PORT = 4000
CAPTURE = "frames.pcap"
PORTS: dict[str, Any] = {
    "udp_ports": f"{DATAGRAM_PORT},{NAME_PORT}:{NAME}",
    "tcp_ports": f"{STREAM_PORT},{WEB_PORT}:{WEB}",
    "udp_ns": f"{NAME_NS}:{NAME}",
    "tcp_ns": f"{WEB_NS}:{WEB}",
}

Found = TypeVar("Found")


class LostError(Exception):
    """What was awaited will not come."""


class Attempt(NamedTuple):
    """One exchange.

    :ivar net: what serves the guest.
    :ivar remote: the remote machine.
    :ivar lost: returns whether what is awaited was lost.
    """

    net: Any
    remote: Remote
    lost: Callable[[], bool]

    def awaited(self, look: Callable[[], Found]) -> Found:
        """Return what `look` returns when it does not block any more.

        :raises LostError: if that is lost.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(BlockingIOError):
                return look()
            if self.lost():
                raise LostError
            assert time.monotonic() < deadline, "neither arrived nor lost"
            time.sleep(STEP)

    def datagram(self, sock: socket.socket) -> tuple[bytes, Any]:
        """Return the next datagram of a socket, and its sender."""
        sock.setblocking(False)  # one with a limit of time would await it
        return self.awaited(lambda: sock.recvfrom(1 << 16))

    def exchange(self, client: socket.socket, address: Any, server: socket.socket) -> None:
        """Let a client ask, and a server answer."""
        client.sendto(b"question", address)
        question, sender = self.datagram(server)
        server.sendto(b"answer", sender)
        answer, _ = self.datagram(client)
        assert (question, answer) == (b"question", b"answer")

    def conversation(self, client: socket.socket, address: Any, server: socket.socket) -> None:
        """Connect, let the client ask and the server answer at length, and end the stream in order."""
        client.setblocking(False)
        client.connect_ex(address)
        server.setblocking(False)

        def served() -> socket.socket:
            client.send(b"")  # not before it is connected
            with suppress(BlockingIOError):
                client.recv(1, socket.MSG_PEEK)  # unless it has an error
            return server.accept()[0]

        with patient(self.awaited(served)) as other, patient(client):
            client.sendall(b"question")
            assert received(other, 8) == b"question"
            other.sendall(noise(LONG))
            assert received(client, LONG) == noise(LONG)
            client.shutdown(socket.SHUT_WR)
            assert received(other) == b""

    def inside(self, kind: int) -> socket.socket:
        """Return a socket of the guest."""
        sock: socket.socket = self.net.socket(socket.AF_INET, kind)
        return sock

    def outside(self, kind: int) -> socket.socket:
        """Return a socket of the host."""
        return host_socket(socket.AF_INET, kind)

    def far(self, kind: int) -> socket.socket:
        """Return a socket of the remote machine."""
        return self.remote.socket(socket.AF_INET, kind)


Way = Callable[[Attempt], None]


def datagrams_out(attempt: Attempt) -> None:
    with bound(attempt.inside(socket.SOCK_DGRAM), "0.0.0.0") as guest:
        with bound(attempt.far(socket.SOCK_DGRAM), FAR[4]) as far:
            attempt.exchange(guest, far.getsockname(), far)


def ports_out(attempt: Attempt) -> None:
    """Datagrams of more ports than have a watcher each."""
    with ExitStack() as stack:
        far = stack.enter_context(bound(attempt.far(socket.SOCK_DGRAM), FAR[4]))
        for _ in range(ALONE + 2):
            guest = stack.enter_context(bound(attempt.inside(socket.SOCK_DGRAM), "0.0.0.0"))
            attempt.exchange(guest, far.getsockname(), far)


def datagrams_in(attempt: Attempt) -> None:
    with bound(attempt.inside(socket.SOCK_DGRAM), "0.0.0.0", DATAGRAM_PORT) as guest:
        with bound(attempt.far(socket.SOCK_DGRAM), FAR[4]) as far:
            attempt.exchange(far, (HOST[4], DATAGRAM_PORT), guest)


def runs(attempt: Attempt) -> None:
    """A run each way, behind a first datagram."""
    with bound(attempt.inside(socket.SOCK_DGRAM), "0.0.0.0") as guest:
        with bound(attempt.far(socket.SOCK_DGRAM), FAR[4]) as far:
            guest.sendto(b"first", far.getsockname())
            _, sender = attempt.datagram(far)
            for one, other, address in ((guest, far, far.getsockname()), (far, guest, sender)):
                one.setsockopt(SOL_UDP, UDP_SEGMENT, SEGMENT)
                one.sendto(noise(SEGMENT * BURST), address)
                assert b"".join(attempt.datagram(other)[0] for _ in range(BURST)) == noise(SEGMENT * BURST)


def spliced_datagrams_out(attempt: Attempt) -> None:
    with bound(attempt.inside(socket.SOCK_DGRAM), "127.0.0.1") as client:
        with bound(attempt.outside(socket.SOCK_DGRAM), "0.0.0.0", NAME) as server:
            attempt.exchange(client, ("127.0.0.1", NAME_NS), server)


def spliced_datagrams_in(attempt: Attempt) -> None:
    with bound(attempt.outside(socket.SOCK_DGRAM), "127.0.0.1") as client:
        with bound(attempt.inside(socket.SOCK_DGRAM), "0.0.0.0", NAME) as server:
            attempt.exchange(client, ("127.0.0.1", NAME_PORT), server)


def streams_out(attempt: Attempt) -> None:
    with listening(attempt.far(socket.SOCK_STREAM), FAR[4]) as (server, address):
        with attempt.inside(socket.SOCK_STREAM) as client:
            attempt.conversation(client, address, server)


def streams_in(attempt: Attempt) -> None:
    with listening(attempt.inside(socket.SOCK_STREAM), "0.0.0.0", STREAM_PORT) as (server, _):
        with attempt.far(socket.SOCK_STREAM) as client:
            attempt.conversation(client, (HOST[4], STREAM_PORT), server)


def spliced_streams_out(attempt: Attempt) -> None:
    with listening(attempt.outside(socket.SOCK_STREAM), "0.0.0.0", WEB) as (server, _):
        with attempt.inside(socket.SOCK_STREAM) as client:
            attempt.conversation(client, ("127.0.0.1", WEB_NS), server)


def spliced_streams_in(attempt: Attempt) -> None:
    with listening(attempt.inside(socket.SOCK_STREAM), "0.0.0.0", WEB) as (server, _):
        with attempt.outside(socket.SOCK_STREAM) as client:
            attempt.conversation(client, ("127.0.0.1", WEB_PORT), server)


def echo(attempt: Attempt) -> None:
    with attempt.net.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as guest:
        guest.sendto(struct.pack(">BBHHH", 8, 0, 0, 0, 1), (FAR[4], 0))
        assert attempt.datagram(guest)[0][:1] == b"\0", "a reply"


def closed_port(attempt: Attempt) -> None:
    """A datagram to a port that nobody has, whose sender gets the error."""
    with bound(attempt.inside(socket.SOCK_DGRAM), "0.0.0.0") as guest:
        guest.connect((FAR[4], DISCARD))
        guest.send(b"question")
        with suppress(ConnectionRefusedError):
            attempt.datagram(guest)
            raise AssertionError("an answer of nobody")


def spliced_closed_port(attempt: Attempt) -> None:
    with bound(attempt.inside(socket.SOCK_DGRAM), "127.0.0.1") as client:
        client.connect(("127.0.0.1", NAME_NS))
        client.send(b"question")
        with suppress(ConnectionRefusedError):
            attempt.datagram(client)
            raise AssertionError("an answer of nobody")


def stream_guest(attempt: Attempt) -> None:
    """An exchange of a guest that connects for it, behind a stream."""
    with ExitStack() as stack:
        guest = stack.enter_context(Guest(socket.socket(socket.AF_UNIX)))
        guest.socket.connect(str(attempt.net.path))
        far = stack.enter_context(bound(attempt.far(socket.SOCK_DGRAM), FAR[4]))
        guest.sendto(GUEST_PORT, far.getsockname(), b"question")

        events = select.poll()
        events.register(guest.socket, select.POLLRDHUP)  # it may have been sent something before

        def readable() -> None:
            if not select.select([guest.socket], [], [], 0)[0]:
                raise BlockingIOError

        def arrived() -> tuple[bytes, Any]:
            if events.poll(0):
                raise ConnectionResetError(errno.ECONNRESET, "the stream has ended")
            return far.recvfrom(100)

        far.setblocking(False)
        question, sender = attempt.awaited(arrived)
        far.sendto(b"answer", sender)
        attempt.awaited(readable)
        assert (question, guest.recv().payload) == (b"question", b"answer")


WAYS: dict[str, Way] = {
    "datagrams out": datagrams_out,
    "datagrams of many ports out": ports_out,
    "datagrams in": datagrams_in,
    "runs of datagrams": runs,
    "spliced datagrams out": spliced_datagrams_out,
    "spliced datagrams in": spliced_datagrams_in,
    "a datagram to a closed port": closed_port,
    "a spliced datagram to a closed port": spliced_closed_port,
    "connections out": streams_out,
    "connections in": streams_in,
    "spliced connections out": spliced_streams_out,
    "spliced connections in": spliced_streams_in,
    "echo": echo,
    "a guest behind a stream": stream_guest,
    "a captured datagram": datagrams_out,
}


@contextmanager
def guests(folder: Path) -> Iterator[Callable[[str], Any]]:
    """Open a guest of each kind; yields what returns the one of a way."""
    with ExitStack() as stack:
        net = stack.enter_context(gpasst.Pasta(config_net=True, **PORTS))
        others = {
            "a guest behind a stream": stack.enter_context(gpasst.Passt(socket=str(folder / "socket"))),
            "a captured datagram": stack.enter_context(gpasst.Pasta(config_net=True, pcap=str(folder / CAPTURE))),
        }
        yield lambda way: others.get(way, net)
