"""Which mappings are watched how, and what becomes of datagrams that reach many of them at once."""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.features import ALL, Feature
from gpasst.host import ring as ring_module
from gpasst.host.receive import SLOTS
from gpasst.link.tap import Tap
from gpasst.packet.parse import parse_ip, parse_udp
from gpasst.packet.segmentation import split
from gpasst.path.udp_ready import ALONE, FEW_READY
from gpasst.testing import free_port
from gpasst.udp.mapping import UdpSocket
from gpasst.wire import PROTOCOL_UDP
from tests.support.bench import Bench, bench, far_end, frames_of, ringed, server
from tests.support.families import FAMILIES
from tests.support.loopback import send_joined

RINGS = pytest.mark.parametrize("ring", [True, False], ids=["ring", "no ring"])
MANY = 3 * FEW_READY


class Ground:
    """Mappings of the guest, each known to a server on the host, and the guest's end of the tap."""

    def __init__(self, it: Bench, far: socket.socket) -> None:
        self.it, self.far = it, far
        assert isinstance(it.end, Tap)
        self.tap = it.end

    def map(self, host: socket.socket, family: int = 4, count: int = MANY) -> dict[int, tuple[Any, ...]]:
        """Let the guest send from new ports; return by each where its answer goes."""
        found = {}
        for _ in range(count):
            port = free_port("udp")
            self.it.send(family, host.getsockname(), b"?", port)
            found[port] = host.recvfrom(9)[1]
        return found

    def payloads(self) -> dict[int, list[bytes]]:
        """Return the datagrams that the guest receives, by its port."""
        found: dict[int, list[bytes]] = {}
        for frame in frames_of(self.far):
            for whole in split(frame):
                packet = parse_ip(memoryview(whole))
                if packet.protocol == PROTOCOL_UDP:
                    _, port, payload = parse_udp(packet.payload)
                    found.setdefault(port, []).append(bytes(payload))
        return found


@contextmanager
def ground(ring: bool = True, features: frozenset[Feature] = ALL) -> Iterator[Ground]:
    with ExitStack() as stack:
        near, far = stack.enter_context(far_end())

        def tap(counters: Counters) -> Tap:
            return Tap(near.fileno(), counters, {"udp": frozenset((4, 6))})

        it = stack.enter_context(bench(features, end=tap, ring=stack.enter_context(ringed(ring))))
        yield Ground(it, far)


def test_a_few_mappings_have_a_watcher_each_and_more_have_one() -> None:
    with ground() as it, server(4) as host:
        it.map(host, count=ALONE)
        assert len(it.it.alone) == ALONE
        it.map(host, count=1)
        assert not it.it.alone
        assert len(it.it.watched) == ALONE + 1
        for udp_socket in list(it.it.watched):
            assert udp_socket.mapping is not None
            for peer in list(udp_socket.peers()):
                for closing in it.it.nat.tables[4].remove(peer):
                    it.it.nat._opener.close(closing)  # noqa: SLF001  # as a scan does
        it.map(host, count=1)
        assert len(it.it.alone) == 1, "a set that is empty starts anew"


@RINGS
def test_answers_of_both_families_at_once(ring: bool) -> None:
    with ground(ring) as it, server(4) as host4, server(6) as host6:
        expected = {}
        for family, host in ((4, host4), (6, host6)):
            for number, (port, to) in enumerate(it.map(host, family, 2 * SLOTS).items()):
                host.sendto(b"%d" % number, to)
                expected[port] = [b"%d" % number]
        while it.it.ready.step():
            pass
        assert it.payloads() == expected
        assert it.it.counters.udp.up.datagrams == 4 * SLOTS
        assert it.it.counters.udp.up.bytes == sum(len(data) for (data,) in expected.values())
        table = it.it.nat.tables[4]
        assert all(table.active(peer) for peer in table)


@RINGS
@pytest.mark.parametrize("ready", [1, FEW_READY, FEW_READY + 1])
def test_each_number_of_ready_sockets(ring: bool, ready: int) -> None:
    with ground(ring) as it, server(4) as host:
        to = dict(list(it.map(host).items())[:ready])
        for turn in range(3):
            for port, address in to.items():
                host.sendto(b"%d %d" % (port, turn), address)
            assert it.it.ready.step() == ready
            assert it.payloads() == {port: [b"%d %d" % (port, turn)] for port in to}
        assert it.it.ready.step() == 0


@RINGS
def test_several_datagrams_of_each_keep_their_order_and_are_joined(ring: bool) -> None:
    with ground(ring) as it, server(4) as host:
        to = it.map(host)
        for port, address in to.items():
            for number in range(20):
                host.sendto(b"%6d %2d" % (port, number), address)
        while it.it.ready.step():
            pass
        assert it.payloads() == {port: [b"%6d %2d" % (port, number) for number in range(20)] for port in to}
        assert it.it.counters.udp.up.superframes == len(to) - 1, "what follows the first; one tells the size"


@RINGS
@FAMILIES
def test_what_the_kernel_has_joined_crosses_as_a_superframe(family: int, ring: bool) -> None:
    with ground(ring) as it, server(family) as host:
        to = it.map(host, family)
        for number, address in enumerate(to.values()):
            host.connect(address)
            send_joined(host, bytes([number]) * 1000, 300)
        it.it.ready.step()
        assert it.it.counters.udp.up.superframes == len(to)
        assert it.payloads() == {
            port: [bytes([number]) * size for size in (300, 300, 300, 100)] for number, port in enumerate(to)
        }


@RINGS
def test_marks_that_differ_within_a_batch(ring: bool) -> None:
    with ground(ring) as it, server(4) as host:
        to = it.map(host)
        for turn in range(2):
            for number, address in enumerate(to.values()):
                host.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 4 * (number + turn))
                host.sendto(b"x", address)
            it.it.ready.step()
            marks = {}
            for frame in frames_of(it.far):
                packet = parse_ip(memoryview(frame[10:]))
                marks[parse_udp(packet.payload)[1]] = packet.tos_ttl >> 8
            assert marks == {port: 4 * (number + turn) for number, port in enumerate(to)}


@RINGS
def test_an_error_of_one_socket_costs_nothing_of_the_others(ring: bool) -> None:
    with ground(ring) as it, server(4) as host:
        to = it.map(host)
        with server(4) as gone:
            (closed,) = it.map(gone, count=1)
        it.it.send(4, gone.getsockname() if gone.fileno() >= 0 else ("127.0.0.1", free_port("udp")), b"!", closed)
        for address in to.values():
            host.sendto(b"x", address)
        while it.it.ready.step():
            pass
        assert it.it.counters.errors_up == 1
        assert it.it.counters.udp.up.datagrams == len(to)


@RINGS
def test_an_error_without_an_event_of_its_own(ring: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes between the look at the set and the receive."""
    with ground(ring) as it, server(4) as host:
        to = it.map(host)
        for address in to.values():
            host.sendto(b"x", address)
        refusing: Any = it.it.watched[0].socket
        refusing.connect(("127.0.0.1", free_port("udp")))
        refusing.send(b"?")
        poll = it.it.epoll.poll

        class Epoll:
            def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
                return [(fd, event & ~8) for fd, event in poll(timeout, most)]

        monkeypatch.setattr(it.it.ready, "_epoll", Epoll())
        it.it.ready.step()
        assert it.it.counters.socket_errors == 1
        assert it.it.counters.udp.up.datagrams >= len(to) - 1
        monkeypatch.undo()


@RINGS
def test_a_mapping_that_ends_while_it_is_ready(ring: bool) -> None:
    """A new sender makes room for its peer, at the price of a mapping whose own new sender waits in the same batch."""
    with ground(ring) as it, server(4) as host, server(4) as stranger:
        to = it.map(host)
        table = it.it.nat.tables[4]
        table.limit = len(table)
        sockets = list(it.it.watched)
        for address in reversed(to.values()):
            stranger.sendto(b"new", address)
        it.it.ready.step()
        ended = [udp_socket for udp_socket in sockets if udp_socket.socket is None]
        assert ended
        dropped = it.it.counters.drops[Drop.NO_SOCKET]
        assert dropped + sum(map(len, it.payloads().values())) == len(to)
        assert len(table) <= table.limit
        # Their descriptors serve other mappings from now on.
        again = it.map(host, count=len(ended))
        for address in again.values():
            host.sendto(b"x", address)
        while it.it.ready.step():
            pass
        assert {port: data[-1] for port, data in it.payloads().items() if port in again} == dict.fromkeys(again, b"x")


def test_a_socket_that_ends_before_its_turn() -> None:
    with ground() as it, server(4) as host:
        to = it.map(host)
        for address in to.values():
            host.sendto(b"x", address)
        step, sockets = it.it.udp.step, list(it.it.watched)

        def ending(udp_socket: UdpSocket, batches: int) -> int:
            it.it.nat.close()
            return step(udp_socket, batches)

        it.tap.recorder = cast(Any, Record())
        it.it.ready._step = ending  # noqa: SLF001  # what any step may do
        assert it.it.ready.step() == 0
        assert [udp_socket.socket for udp_socket in sockets] == [None] * len(to)


class Record:
    """A recorder's stand-in."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, to_guest: bool, *parts: bytes, comment: str = "") -> None:
        assert to_guest
        assert not comment
        self.count += 1


def test_a_ring_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        ctypes.set_errno(errno.ENOMEM)
        return -1

    with ground() as it, server(4) as host:
        to = it.map(host)
        for turn in range(2):
            for port, address in to.items():
                host.sendto(b"%d %d" % (port, turn), address)
            it.it.ready.step()
            assert it.payloads() == {port: [b"%d %d" % (port, turn)] for port in to}
            monkeypatch.setattr(ring_module, "_enter", fail)
        monkeypatch.undo()
        for address in to.values():
            host.sendto(b"x", address)
        real = ring_module._enter  # noqa: SLF001  # the one that makes the calls
        calls = iter((real, fail))
        monkeypatch.setattr(ring_module, "_enter", lambda *words: next(calls, fail)(*words))
        it.it.ready.step()
        assert it.payloads() == {port: [b"x"] for port in to}, "received by the ring, and written without it"


def test_while_the_link_is_recorded_each_goes_by_itself() -> None:
    with ground() as it, server(4) as host:
        record = Record()
        it.tap.recorder = cast(Any, record)
        to = it.map(host)
        for address in to.values():
            host.sendto(b"x", address)
        assert it.it.ready.step() == len(to)
        assert record.count == len(to)


def test_a_step_ends_when_its_time_is_over() -> None:
    with ground() as it, server(4) as host:
        to = it.map(host, count=3 * SLOTS)
        for address in to.values():
            host.sendto(b"x", address)
        clock = iter(range(100))
        it.it.ready._clock = lambda: float(next(clock))  # noqa: SLF001  # the bench's stands still
        assert [it.it.ready.step() for _ in range(4)] == [SLOTS, SLOTS, SLOTS, 0]


def test_a_socket_that_the_kernel_does_not_watch_is_closed() -> None:
    with ground() as it, server(4) as host:
        it.map(host)
        count = len(it.it.watched)

        class Full:
            def register(self, fd: int, events: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

        epoll, it.it.ready._epoll = it.it.ready._epoll, cast(Any, Full())  # noqa: SLF001  # a limit of the whole machine
        with pytest.raises(PacketError) as caught:
            it.it.send(4, host.getsockname())
        assert caught.value.reason is Drop.NO_SOCKET
        assert len(it.it.watched) == count
        it.it.ready._epoll = epoll  # noqa: SLF001


def test_those_that_the_set_does_not_take_keep_their_watchers() -> None:
    with ground() as it, server(4) as host:
        it.map(host, count=ALONE)
        epoll = it.it.epoll
        room = iter((True, True))

        class Full:
            unregister = epoll.unregister

            def register(self, fd: int, events: int) -> None:
                if not next(room, False):
                    raise OSError(errno.ENOSPC, "No space left on device")
                epoll.register(fd, events)

        it.it.ready._epoll = cast(Any, Full())  # noqa: SLF001  # a limit of the whole machine
        it.map(host, count=1)
        assert len(it.it.alone) == ALONE - 1
        it.it.ready._epoll = epoll  # noqa: SLF001
        it.map(host, count=1)
        assert not it.it.alone
