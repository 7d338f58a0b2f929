"""Echo flows over the host's ping sockets, on loopback; the guest's gateway stands for it."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

import pytest

from gpasst.counters import Drop
from gpasst.formats import ECHO_CODEC
from gpasst.host.descriptors import Descriptors
from gpasst.packet.parse import Packet, parse_ip
from gpasst.packet.refusal import refusal
from gpasst.path import ping_sockets
from gpasst.path.ping_sockets import IDLE_SECONDS, EchoFlow, PingSockets
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.bench import GATEWAY, GUEST, NOW, Bench
from tests.support.families import FAMILIES, FAMILY
from tests.support.replies import refused

ICMP = {4: 1, 6: 58}
REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
IDENTIFIER = 4321
NOWHERE = {4: "203.0.113.73", 6: "2001:db8:2:0:4000::9"}  # the lab's host has no route there


class Case:
    """Echo flows, with what they wrote and watch."""

    def __init__(self) -> None:
        bench = Bench()
        self.link, self.counters, self.guest = bench.link, bench.counters, bench.guest
        self.watched: list[EchoFlow] = []
        self.now = NOW
        self.pings = PingSockets(
            self.link,
            self.guest,
            bench.icmp,
            self.counters,
            self.watched.append,
            self.watched.remove,
            lambda: self.now,
            Descriptors(),
        )

    def ask(
        self, family: int, sequence: int = 1, data: bytes = b"data", to: str = "", identifier: int = IDENTIFIER
    ) -> None:
        message = ECHO_CODEC.pack(type=REQUEST[family], identifier=identifier, sequence=sequence) + data
        target = ip(to or GATEWAY[family])
        self.pings.request(Packet(family, ip(GUEST[family]), target, ICMP[family], memoryview(message), 64))

    def move(self) -> None:
        """Wait for the sockets, and move what they have."""
        ready, _, _ = select.select([flow.socket for flow in self.watched], [], [], 2)
        assert ready, "nothing has come"
        for flow in list(self.watched):
            if flow.socket in ready:
                self.pings.step(flow)

    def replies(self, family: int) -> list[tuple[int, int, bytes]]:
        """Return identifier, sequence number and data of the replies that were written."""
        found = []
        for frame in self.link.frames:
            assert frame[:12] == GUEST_MAC + HOST_MAC
            packet = parse_ip(memoryview(frame))
            assert (packet.source, packet.destination) == (ip(GATEWAY[family]), ip(GUEST[family]))
            fields = ECHO_CODEC.unpack_from(packet.payload)
            assert fields["type"] == REPLY[family]
            found.append((fields["identifier"], fields["sequence"], bytes(packet.payload[ECHO_CODEC.size :])))
        return found


@pytest.fixture
def case(remote: object) -> Iterator[Case]:
    """The lab's host admits everybody to ping sockets."""
    del remote
    made = Case()
    yield made
    made.pings.close()
    assert made.watched == []


@FAMILIES
def test_a_request_is_answered_from_the_address_that_was_asked(case: Case, family: int) -> None:
    case.ask(family, 7, b"payload")
    case.move()
    assert case.replies(family) == [(IDENTIFIER, 7, b"payload")]
    assert case.counters.icmp.down.datagrams == 1


@FAMILIES
def test_one_flow_has_one_socket(case: Case, family: int) -> None:
    for sequence in (1, 2, 3):
        case.ask(family, sequence)
        case.move()
    assert len(case.watched) == 1
    assert [sequence for _, sequence, _ in case.replies(family)] == [1, 2, 3]


@FAMILIES
def test_flows_differ_by_identifier_and_target(case: Case, family: int) -> None:
    case.ask(family, identifier=1)
    case.ask(family, identifier=2)
    assert len({flow.socket.fileno() for flow in case.watched}) == 2
    case.move()
    while len(case.link.frames) < 2:
        case.move()
    assert sorted(identifier for identifier, _, _ in case.replies(family)) == [1, 2]


@FAMILIES
def test_an_identifier_of_the_hosts_is_restored_to_the_guests(case: Case, family: int) -> None:
    case.ask(family)
    (flow,) = case.watched
    assert flow.socket.getsockname()[1] == IDENTIFIER, "kept where it is free"
    case.move()
    assert case.replies(family)[0][0] == IDENTIFIER


@FAMILIES
def test_a_repeated_answer_is_dropped(case: Case, family: int) -> None:
    for _ in range(2):
        case.ask(family, 5)
        case.move()
    assert len(case.replies(family)) == 1
    assert case.counters.drops == {Drop.ECHO_DUPLICATE: 1}


@FAMILIES
def test_a_target_without_a_route_is_reported(case: Case, family: int) -> None:
    case.ask(family, 9, b"quoted", NOWHERE[family])
    (frame,) = case.link.frames
    packet = parse_ip(memoryview(frame))
    assert packet.source == ip(GATEWAY[family])
    problem = refusal(errno.ENETUNREACH).problem(family)
    assert problem is not None
    assert (packet.payload[0], packet.payload[1]) == (problem.type, problem.code)
    quoted = packet.payload[8 + (20 if family == 4 else 40) :]
    fields = ECHO_CODEC.unpack_from(quoted)
    assert (fields["type"], fields["identifier"], fields["sequence"]) == (REQUEST[family], IDENTIFIER, 9)
    assert bytes(quoted[ECHO_CODEC.size :]) == b"quoted"
    assert case.counters.errors_up == 1


@FAMILIES
def test_a_flow_ends_when_nothing_was_asked_for_too_long(case: Case, family: int) -> None:
    case.ask(family)
    (flow,) = case.watched
    case.now += IDLE_SECONDS
    assert list(case.pings.scan(case.now)) == []
    assert case.watched == [flow]
    case.ask(family, 2)
    case.now += IDLE_SECONDS
    assert list(case.pings.scan(case.now)) == []
    assert case.watched == [flow], "the time counts from the last request"
    assert list(case.pings.scan(case.now + 1)) == [0]
    assert case.watched == []
    assert flow.socket.fileno() == -1


def test_flows_of_one_age_end_one_by_one(case: Case) -> None:
    for identifier in range(1, 5):
        case.ask(4, identifier=identifier)
    left = [len(case.watched) for _ in case.pings.scan(case.now + IDLE_SECONDS + 1)]
    assert left == [3, 2, 1, 0]


def test_the_oldest_flow_makes_room(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping_sockets, "FLOWS_LIMIT", 3)
    for identifier in range(1, 5):
        case.ask(4, identifier=identifier)
    assert [flow.key[2] for flow in case.watched] == [2, 3, 4]


@FAMILIES
def test_without_a_socket_the_request_is_dropped_and_the_log_says_it_once(
    case: Case, family: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(*_: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ping_sockets, "ping_socket", forbidden)
    for _ in range(2):
        with refused(Drop.ECHO_FAILED):
            case.ask(family)
    assert caplog.text.count("the guest cannot ping: Permission denied") == 1
    assert case.watched == []


@FAMILIES
def test_what_is_no_request_is_refused(case: Case, family: int) -> None:
    message = ECHO_CODEC.pack(type=REPLY[family], identifier=1, sequence=1)
    with refused(Drop.ICMP_TYPE):
        case.pings.request(
            Packet(family, ip(GUEST[family]), ip(GATEWAY[family]), ICMP[family], memoryview(message), 64)
        )


@FAMILIES
def test_a_socket_without_a_reply_costs_nothing(case: Case, family: int) -> None:
    case.ask(family)
    case.move()
    (flow,) = case.watched
    case.pings.step(flow)
    assert len(case.link.frames) == 1
    assert case.counters.socket_errors == 0


def test_families_have_sockets_of_their_own(case: Case) -> None:
    case.ask(4)
    case.ask(6)
    assert [flow.socket.family for flow in case.watched] == [FAMILY[4], FAMILY[6]]
