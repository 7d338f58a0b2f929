"""Trunks between the switches of one process: they come up, carry frames, are refused, and come back."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.errors import PlatformError
from gpasst.link import stream
from gpasst.link.switch import Data
from gpasst.linux import AF_INET, AF_UNIX
from gpasst.proxy import trunk_end, trunk_sides
from gpasst.proxy.lan import Lan
from gpasst.proxy.timers import Timers
from gpasst.proxy.trunk_end import Trunks
from gpasst.proxy.trunk_sides import Place, TrunkConnector, TrunkListener
from gpasst.switch.framing import framed_message
from gpasst.switch.handshake import Handshake, Refusal
from gpasst.switch.membership import COOKIE_BYTES, MEMBERS_LIMIT
from gpasst.switch.roster import Roster, packed_roster
from gpasst.wire import VIRTIO_NET_BLANK

PATIENCE = 10.0  # seconds; for what takes milliseconds
BROADCAST = b"\xff" * 6
SECRET = b"of both"
PREFIX = "10.0.0.0/24"
COMMON = "10.0.0.99"  # an address that each part has


def local(path: Path) -> Place:
    return Place(((AF_UNIX, str(path)),), path.name)


def tcp(host: str, port: int) -> Place:
    return Place(((AF_INET, (host, port)),), f"{host}:{port}")


def path_of(place: Place) -> str:
    return str(place.addresses[0][1])


class Part:
    """A network with one host, which is part of this process."""

    def __init__(self, number: int) -> None:
        self.lan = Lan(f"lan{number}")
        self.hosts: Roster = ((f"host{number}", (f"10.0.0.{number}", COMMON)),)
        self.renamed = 0
        self.trunks = Trunks(self.lan, lambda: self.hosts, (PREFIX,), frozenset((COMMON,)), self._count)
        self.mac = b"\x02\0\0\0\0" + bytes((number,))
        self.got: list[bytes] = []
        self.host = self.lan.add_inner("host", self.mac, self._take)

    def send(self, payload: bytes, to: bytes = BROADCAST) -> None:
        """Let the host send a frame."""
        self.lan.switch.forward(self.host, VIRTIO_NET_BLANK + to + self.mac + b"\x88\xb5" + payload.ljust(46, b"\0"))

    def claim(self, mac: bytes) -> None:
        """Let the host send a frame from another address."""
        self.lan.switch.forward(self.host, VIRTIO_NET_BLANK + BROADCAST + mac + b"\x88\xb5" + bytes(46))

    def payloads(self) -> list[bytes]:
        return [data[24:].rstrip(b"\0") for data in self.got]

    def listen(self, place: Place, secret: bytes = b"") -> TrunkListener:
        return TrunkListener(self.trunks, self.trunks.name_side(), place, secret)

    def connect(self, place: Place, secret: bytes = b"") -> TrunkConnector:
        return TrunkConnector(self.trunks, self.trunks.name_side(), place, secret)

    def rename(self, *hosts: tuple[str, tuple[str, ...]]) -> None:
        self.hosts = hosts
        self.trunks.announce_hosts()

    def found(self) -> set[str]:
        """Return the names of hosts of other parts."""
        return {name for name, _ in self.trunks.beyond()}

    def members(self) -> int:
        """Return how many switches this one knows to be joined with it, itself among them."""
        return len(self.trunks.membership.announced(cast(Any, None)))

    def _count(self) -> None:
        self.renamed += 1

    def _take(self, data: Data) -> None:
        self.got.append(bytes(data))


@pytest.fixture
def parts() -> Iterator[list[Part]]:
    parts = [Part(number) for number in range(4)]
    yield parts
    for part in parts:
        part.lan.close()
    gevent.sleep(0)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return local(tmp_path / "trunk")


@contextmanager
def closing(*sides: TrunkListener | TrunkConnector) -> Iterator[None]:
    try:
        yield
    finally:
        for side in sides:
            side.close()
            side.close()


def until(condition: Callable[[], object]) -> None:
    """Let the hub run until something is so."""
    with gevent.Timeout(PATIENCE):
        while not condition():
            gevent.sleep(0.001)


def peers(sides: Iterable[TrunkConnector]) -> int:
    return sum(side.peers for side in sides)


def refused(side: TrunkConnector) -> Refusal | None:
    side.changed.wait(PATIENCE)
    assert not side.peers
    return side.refusal


def test_frames_cross_a_trunk(parts: list[Part], place: Place) -> None:
    one, two, *_ = parts
    with closing(one.listen(place), side := two.connect(place)):
        assert side.joined.wait(PATIENCE)
        one.send(b"to all")
        until(lambda: two.got)
        two.send(b"to one", one.mac)
        until(lambda: one.got)
    assert (one.payloads(), two.payloads()) == ([b"to one"], [b"to all"])


@pytest.mark.parametrize(("user", "secret", "joins"), [(4711, b"", False), (0, b"", True), (4711, SECRET, True)])
def test_a_stranger_who_listens_needs_the_secret(
    parts: list[Part], place: Place, monkeypatch: pytest.MonkeyPatch, user: int, secret: bytes, joins: bool
) -> None:
    monkeypatch.setattr(trunk_sides, "peer_user", lambda sock: user)
    one, two, *_ = parts
    with closing(one.listen(place, secret), side := two.connect(place, secret)):
        until(lambda: side.peers or side.failure)
        assert (side.peers, side.failure) == ((1, "") if joins else (0, trunk_sides.STRANGER))


def test_the_side_that_listens_is_up_when_the_other_is(parts: list[Part], place: Place) -> None:
    one, two, *_ = parts
    with closing(listener := one.listen(place), side := two.connect(place)):
        side.joined.wait(PATIENCE)
        assert (listener.peers, side.peers) == (1, 1)
        assert (set(one.lan.switch.named), set(two.lan.switch.named)) == ({"host", "trunk#1-1"}, {"host", "trunk#1"})


def test_a_host_here_cannot_claim_the_address_of_one_in_another_part(parts: list[Part], place: Place) -> None:
    one, two, *_ = parts
    announced, later = (b"\x02\x67\x0a\0\0" + bytes((number,)) for number in (1, 9))
    with closing(one.listen(place), side := two.connect(place)):
        assert side.joined.wait(PATIENCE)
        for mac in (announced, later):
            if mac == later:
                two.rename(("host1", ("10.0.0.1", COMMON)), ("gateway", (COMMON,)), ("host9", ("10.0.0.9",)))
                until(lambda: "host9" in one.found())
            before = one.lan.counters.drops[Drop.SOURCE_ADDRESS]
            one.claim(mac)
            assert one.lan.counters.drops[Drop.SOURCE_ADDRESS] == before + 1
        two.rename(("host1", ("10.0.0.1", COMMON)))
        until(lambda: "host9" not in one.found())
        one.claim(later)
        assert one.lan.switch.table.find(later) is one.host
        one.claim(announced)
        assert one.lan.switch.table.find(announced) is not one.host
    one.claim(announced)
    assert one.lan.switch.table.find(announced) is one.host


def test_several_parts_join_the_middle_of_a_star(parts: list[Part], place: Place) -> None:
    listener = parts[0].listen(place)
    sides = [part.connect(place) for part in parts[1:]]
    with closing(listener, *sides):
        for side in sides:
            assert side.joined.wait(PATIENCE)
        assert listener.peers == len(sides)
        parts[1].send(b"to all")
        until(lambda: all(part.got for part in parts if part is not parts[1]))
        parts[2].send(b"to one", parts[1].mac)
        until(lambda: parts[1].got)
    assert [len(part.got) for part in parts] == [1, 1, 1, 1]


def test_a_trunk_that_closes_a_loop_is_refused(parts: list[Part], tmp_path: Path) -> None:
    places = [local(tmp_path / str(number)) for number in range(3)]
    listeners = [part.listen(place) for part, place in zip(parts, places, strict=False)]
    with closing(*listeners):
        first, second = parts[1].connect(places[0]), parts[2].connect(places[1])
        with closing(first, second):
            assert first.joined.wait(PATIENCE)
            assert second.joined.wait(PATIENCE)
            until(lambda: parts[0].members() == 3)
            # Between two that are joined by a third; twice between the same two; with itself.
            for part, place in (
                (parts[0], places[2]),
                (parts[2], places[0]),
                (parts[1], places[0]),
                (parts[1], places[1]),
            ):
                with closing(side := part.connect(place)):
                    assert refused(side) == Refusal.LOOP
            parts[0].send(b"once")
            until(lambda: parts[1].got and parts[2].got)
            assert parts[1].payloads() == parts[2].payloads() == [b"once"]
            assert parts[0].got == []


def test_trunks_that_close_loops_all_at_once_leave_a_tree(parts: list[Part], tmp_path: Path) -> None:
    """Each part connects to all others in the same moment, when nobody knows of a loop."""
    places = [local(tmp_path / str(number)) for number in range(len(parts))]
    listeners = [part.listen(place) for part, place in zip(parts, places, strict=True)]
    sides = [part.connect(place) for part in parts for place in places]
    with closing(*listeners, *sides):
        until(lambda: all(part.members() == len(parts) for part in parts) and peers(sides) == len(parts) - 1)
        for part in parts:
            part.got.clear()
        parts[0].send(b"once")
        until(lambda: all(part.got for part in parts[1:]))
        parts[0].send(b"again")
        until(lambda: all(len(part.got) > 1 for part in parts[1:]))
        assert [part.payloads() for part in parts] == [[], *[[b"once", b"again"]] * 3]


def test_a_way_that_is_gone_makes_room_for_another(parts: list[Part], tmp_path: Path) -> None:
    places = [local(tmp_path / str(number)) for number in range(2)]
    listeners = [part.listen(place) for part, place in zip(parts, places, strict=False)]
    with closing(*listeners):
        first, second = parts[1].connect(places[0]), parts[2].connect(places[1])
        with closing(first, second):
            assert first.joined.wait(PATIENCE)
            assert second.joined.wait(PATIENCE)
            with closing(third := parts[2].connect(places[0])):
                assert refused(third) == Refusal.LOOP
                first.close()
                assert third.joined.wait(PATIENCE), "which it tries again"


@pytest.mark.parametrize(("one", "other"), [(SECRET, b"of one"), (b"", SECRET), (SECRET, b"")])
def test_two_secrets_do_not_join(parts: list[Part], place: Place, one: bytes, other: bytes) -> None:
    with closing(listener := parts[0].listen(place, one), side := parts[1].connect(place, other)):
        assert refused(side) == Refusal.SECRET
        assert not listener.peers


def test_a_trunk_over_tcp(parts: list[Part]) -> None:
    listener = parts[0].listen(tcp("127.0.0.1", 0), SECRET)
    host, _, port = listener.text.rpartition(":")
    with closing(listener, side := parts[1].connect(tcp(host, int(port)), SECRET)):
        assert side.joined.wait(PATIENCE)
        parts[0].send(b"to all")
        until(lambda: parts[1].got)


def test_a_name_that_stands_for_several_addresses(parts: list[Part], place: Place, tmp_path: Path) -> None:
    nobody = local(tmp_path / "nobody")
    both = Place((*nobody.addresses, *place.addresses), "both")
    with closing(parts[0].listen(place), side := parts[1].connect(both)):
        assert side.joined.wait(PATIENCE)


def test_a_connection_that_is_lost_is_made_again(parts: list[Part], place: Place) -> None:
    with closing(side := parts[1].connect(place)):
        assert side.failure == "No such file or directory"
        first = parts[0].listen(place)
        with closing(first):
            assert side.joined.wait(PATIENCE)
        until(lambda: not side.peers)
        with closing(parts[2].listen(place)):
            assert side.joined.wait(PATIENCE)
            parts[1].send(b"to all")
            until(lambda: parts[2].got)
    assert parts[0].got == []


def test_hosts_behind_a_trunk_that_has_gone_are_unknown(parts: list[Part], place: Place) -> None:
    one, two, *_ = parts
    with closing(one.listen(place)):
        with closing(side := two.connect(place)):
            side.joined.wait(PATIENCE)
            two.send(b"to all")
            until(lambda: one.got)
            assert one.lan.switch.table.find(two.mac) is not None
        until(lambda: one.lan.switch.table.find(two.mac) is None)
    assert one.lan.switch.ports == [one.host]


def test_parts_know_each_others_hosts(parts: list[Part], place: Place) -> None:
    """The first part is the middle; the last comes when the others are joined, and goes again."""
    middle, one, two, late = parts
    with closing(middle.listen(place), first := one.connect(place), second := two.connect(place)):
        assert first.joined.wait(PATIENCE)
        assert second.joined.wait(PATIENCE)
        until(lambda: one.found() == {"host0", "host2"} and two.found() == {"host0", "host1"})
        with closing(third := late.connect(place)):
            assert third.joined.wait(PATIENCE)
            assert late.found() == {"host0", "host1", "host2"}, "from the beginning"
            until(lambda: "host3" in one.found() & two.found() & middle.found())
            late.rename(("other", ("10.0.0.3",)), ("another", ("10.0.0.4",)))
            until(lambda: one.found() == {"host0", "host2", "other", "another"})
            before = one.renamed
            late.trunks.announce_hosts()
        until(lambda: one.found() == {"host0", "host2"} and middle.found() == {"host1", "host2"})
        assert one.renamed == before + 1, "nothing is announced that is no news"
    assert late.found() == set()


def test_parts_with_the_same_addresses_are_not_joined(parts: list[Part], place: Place) -> None:
    parts[1].rename(("twin", ("10.0.0.0",)))
    with closing(parts[0].listen(place), side := parts[1].connect(place)):
        assert refused(side) == Refusal.ADDRESSES


def test_an_address_that_comes_to_be_the_same_ends_the_trunk(parts: list[Part], place: Place) -> None:
    with closing(parts[0].listen(place), side := parts[1].connect(place)):
        assert side.joined.wait(PATIENCE)
        parts[1].rename(("twin", ("10.0.0.0",)))
        until(lambda: side.refusal)
        assert side.refusal == Refusal.ADDRESSES


@contextmanager
def connected(listener: TrunkListener, place: Place) -> Iterator[socket.socket]:
    """A stranger's connection, which has read the greeting."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path_of(place))
        sock.setblocking(False)
        until(lambda: _peeked(sock))
        sock.recv(1 << 16)
        yield sock


def test_hosts_of_an_end_that_is_not_joined_yet_are_nobodys_news(parts: list[Part], place: Place) -> None:
    with closing(parts[0].listen(place, SECRET)), socket.socket(socket.AF_UNIX) as sock:
        greet(sock, place)
        sock.send(framed_message(b"\x04" + bytes(COOKIE_BYTES) + b"early 10.0.0.50\n"))
        with closing(side := parts[1].connect(place, SECRET)):
            assert side.joined.wait(PATIENCE)
            assert parts[1].found() == {"host0"}
            sock.send(framed_message(b"\x03" + bytes(COOKIE_BYTES)))
            until(lambda: parts[1].found() == {"host0", "early"})


def test_an_end_with_more_hosts_than_there_may_be_is_refused(
    parts: list[Part], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_end, "HOSTS_LIMIT", 3)
    cookies = [bytes([number] * COOKIE_BYTES) for number in range(2)]
    with closing(side := parts[0].listen(place, SECRET)), socket.socket(socket.AF_UNIX) as sock:
        greet(sock, place)
        for _ in range(2):
            # The same hosts anew count once.
            sock.send(framed_message(b"\x04" + cookies[0] + b"a 10.0.0.50\nb 10.0.0.51\n"))
        sock.send(framed_message(b"\x03" + b"".join(cookies)))
        until(lambda: parts[0].found() == {"a", "b"})
        sock.send(framed_message(b"\x04" + cookies[1] + b"c 10.0.0.52\nd 10.0.0.53\n"))
        assert rest(sock)
        until(lambda: not side.peers and not parts[0].found())


def greet(sock: socket.socket, place: Place) -> None:
    """Connect, and show the secret."""
    sock.connect(path_of(place))
    sock.setblocking(False)
    greeting = Handshake(True, SECRET, bytes(32), (PREFIX,))
    sock.send(greeting.begin())
    until(lambda: _peeked(sock))
    sock.send(greeting.take(sock.recv(1 << 16)[4:]))
    until(lambda: _peeked(sock))
    greeting.take(sock.recv(1 << 16)[4:])
    assert greeting.done


def _peeked(sock: socket.socket) -> bool:
    try:
        return len(sock.recv(1, socket.MSG_PEEK)) == 1
    except BlockingIOError:
        return False


def rest(sock: socket.socket) -> bytes:
    """Return what a stranger still gets before the end of the stream."""
    data = b""
    with gevent.Timeout(PATIENCE):
        while True:
            try:
                piece = sock.recv(1 << 16)
            except BlockingIOError:
                gevent.sleep(0.001)
                continue
            except ConnectionResetError:
                return data
            if not piece:
                return data
            data += piece


@given(data=st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=40)), max_size=5))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_another_end_says_is_taken_or_refused(
    parts: list[Part], place: Place, data: list[tuple[int, bytes]]
) -> None:
    """Another end that has the secret."""
    with closing(listener := parts[0].listen(place, SECRET)), socket.socket(socket.AF_UNIX) as sock:
        greet(sock, place)
        for kind, body in data:
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.send(framed_message(bytes((kind,)) + body))
        sock.shutdown(socket.SHUT_WR)
        rest(sock)
        until(lambda: not listener.peers)
    assert Drop.INTERNAL not in parts[0].lan.counters.drops


@pytest.mark.parametrize(
    "data",
    [
        (60).to_bytes(4, "big") + BROADCAST + b"\x02\0\0\0\0\x09" + bytes(48),
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\x80\0\0\x01\x03",
    ],
    ids=["a frame", "something else", "a message that is not due"],
)
def test_a_stranger_reaches_nothing(parts: list[Part], place: Place, data: bytes) -> None:
    with closing(listener := parts[0].listen(place, SECRET)), connected(listener, place) as sock:
        sock.send(data)
        assert rest(sock) == b"\x80\0\0\x02\x05\0"
        assert parts[0].got == []
        assert parts[0].lan.switch.ports == [parts[0].host]
        assert len(parts[0].lan.switch.table) == 1


def test_a_stranger_who_is_silent_is_sent_away(
    parts: list[Part], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_end, "HANDSHAKE_SECONDS", 0.01)
    with closing(listener := parts[0].listen(place)), connected(listener, place) as sock:
        assert rest(sock) == b""


def test_strangers_are_limited(parts: list[Part], place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk_sides, "GREETING_LIMIT", 1)
    with closing(listener := parts[0].listen(place)), connected(listener, place), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path_of(place))
        sock.setblocking(False)
        assert rest(sock) == b""


def test_a_listener_without_descriptors_goes_on_later(
    parts: list[Part], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_sides, "PAUSE_SECONDS", 0.001)
    listener = parts[0].listen(place)
    accept, failures = listener._listener.accept, [OSError(24, "Too many open files")]  # noqa: SLF001

    def scarce() -> Any:
        if failures:
            raise failures.pop()
        return accept()

    monkeypatch.setattr(listener._listener, "accept", scarce)  # noqa: SLF001
    with closing(listener, side := parts[1].connect(place)):
        assert side.joined.wait(PATIENCE)
    assert not failures


def test_a_connection_that_nobody_answers_is_given_up(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trunk_sides, "CONNECT_SECONDS", 0.01)
    monkeypatch.setattr(trunk_sides, "RETRY_FIRST", PATIENCE)
    with socket.socket() as full:
        # Whose queue is full: the kernel drops further SYNs.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.create_connection(full.getsockname(), PATIENCE)]
        with closing(side := parts[0].connect(tcp(*full.getsockname()), SECRET)):
            until(lambda: side.failure)
            assert side.failure == "no answer"
        for sock in waiting:
            sock.close()


def test_attempts_come_at_growing_times(parts: list[Part], place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(random, "random", lambda: 1.0)
    monkeypatch.setattr(parts[0].lan.clock, "source", lambda: 0.0)

    def at(self: Timers, when: float, callback: Callable[[float], None]) -> None:
        pauses.append(when)
        if len(pauses) < 9:
            callback(when)

    monkeypatch.setattr(Timers, "at", at)
    with closing(parts[0].connect(place)):
        pass
    assert sorted(pauses) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_a_path_that_is_in_use_is_refused(parts: list[Part], place: Place) -> None:
    with closing(parts[0].listen(place)), pytest.raises(PlatformError, match="in use"):
        parts[1].listen(place)


def test_the_socket_is_for_its_owner_alone(parts: list[Part], place: Place) -> None:
    with closing(parts[0].listen(place)):
        assert Path(path_of(place)).stat().st_mode & 0o777 == 0o600
    assert not Path(path_of(place)).exists()


def test_a_peer_that_does_not_read_loses_frames_and_at_last_the_trunk(parts: list[Part], place: Place) -> None:
    """A switch that greets, and then reads nothing."""
    with closing(listener := parts[0].listen(place, SECRET)), socket.socket(socket.AF_UNIX) as sock:
        greet(sock, place)
        sock.send(b"\x80\0\0\x09\x03" + bytes(COOKIE_BYTES))
        until(lambda: listener.peers)
        for _ in range(200):
            parts[0].send(bytes(60_000))
        assert parts[0].lan.counters.drops[Drop.PORT_FULL] > 50
        assert listener.peers == 1
        # What it has to know waits, until that has no room either.
        many = tuple((f"host{number}.example", ("10.0.0.1",)) for number in range(2000))
        for number in range(2 * stream.QUEUE_BYTES // len(packed_roster(many))):
            parts[0].rename(*many, (f"another{number}", ("10.0.0.2",)))
            assert listener.peers == 1 or number > 10
        assert listener.peers == 0


def test_as_many_members_as_there_may_be_fit_a_message() -> None:
    assert MEMBERS_LIMIT * COOKIE_BYTES < 1 << 16
