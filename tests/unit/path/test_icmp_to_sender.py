"""Errors of the guest on their way to the senders of the datagrams that they are about."""

from __future__ import annotations

from typing import cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.host.raw import RawSockets
from gpasst.packet import icmp_error
from gpasst.packet.icmp_error import CLOSED_PORT, Problem, Reported
from gpasst.packet.parse import Packet
from gpasst.path.icmp_to_sender import IcmpToSender
from gpasst.udp.mapping import Peer
from tests.support.addresses import SERVER4, SERVER6, ip
from tests.support.families import FAMILIES, LOOPBACK
from tests.support.nat import Host
from tests.support.replies import refused

SERVER = {4: SERVER4, 6: SERVER6}
# Addressed by the sender, and not what the kernel would choose.
SECOND = {4: "192.0.2.3", 6: "2001:db8::3"}
ICMP = {4: 1, 6: 58}
LISTENING, TARGET, PORT = 5000, 7000, 40000

EXPIRED = {4: 11, 6: 3}  # time exceeded


class Raw:
    """Keeps what is sent, where anything may be sent."""

    def __init__(self, permitted: bool = True) -> None:
        self.permitted = permitted
        self.sent: list[tuple[bool, bytes, bytes, int, bytes]] = []

    def send(self, inside: bool, built: bytes, target: bytes, scope: int = 0, local: bytes = b"") -> bool:
        self.sent.append((inside, built, target, scope, local))
        return self.permitted


class Case:
    """A guest with a forwarded port, and a sender that has sent to it."""

    def __init__(self, family: int, permitted: bool = True, local: str = "", source: str = "") -> None:
        self.family = family
        self.host = Host()
        self.raw = Raw(permitted)
        self.counters = Counters()
        listener = self.host.listen(LISTENING, TARGET, family)
        self.peer: Peer = self.host.up(listener, source or SERVER[family], PORT, local or SECOND[family])
        self.icmp = IcmpToSender(cast(RawSockets, self.raw), self.host.path.tables, self.counters)

    def error(self, problem: Problem, payload: bytes = b"payload", port: int = TARGET) -> Packet:
        """The guest's error about a datagram of the sender."""
        shown, shown_port = self.peer.shown
        guest = self.peer.mapping.guest
        quoted = icmp_error.quoted_udp(shown, shown_port, guest, port, payload)
        message = icmp_error.message(self.family, problem, quoted)
        return Packet(self.family, guest, shown, ICMP[self.family], memoryview(message), 64)


@FAMILIES
@pytest.mark.parametrize("closed", [True, False])
def test_the_sender_gets_the_error_about_what_it_sent(family: int, closed: bool) -> None:
    """To the host's address and port, where the guest saw its own."""
    case = Case(family)
    problem = CLOSED_PORT[family] if closed else Problem(EXPIRED[family], 0)
    case.icmp.take(case.error(problem))
    ((inside, built, target, scope, local),) = case.raw.sent
    assert (inside, target, scope, local) == (False, ip(SERVER[family]), 0, ip(SECOND[family]))
    passed = icmp_error.parse(Packet(family, local, target, ICMP[family], memoryview(built), 64))
    assert passed is not None
    assert (passed.problem, passed.payload) == (problem, b"payload")
    assert (passed.source, passed.source_port) == (ip(SERVER[family]), PORT)
    assert (passed.destination, passed.destination_port) == (ip(SECOND[family]), LISTENING)
    assert (case.counters.errors_down, case.counters.drops) == (1, {})


@FAMILIES
def test_where_the_kernel_chose_the_address_it_is_asked_for_it(family: int) -> None:
    """A mapping's own socket is bound to every address; what its peer sees is that of the way there."""
    case = Case(family, source=LOOPBACK[family], local=LOOPBACK[family])
    case.peer.local = b""
    case.icmp.take(case.error(CLOSED_PORT[family]))
    ((_, _, target, _, local),) = case.raw.sent
    assert (target, local) == (ip(LOOPBACK[family]), ip(LOOPBACK[family]))


@FAMILIES
def test_an_error_that_lowers_the_path_mtu_is_dropped(family: int) -> None:
    """It would be that of all traffic between the host and the sender."""
    case = Case(family)
    with refused(Drop.GUEST_ERROR):
        case.icmp.take(case.error(icmp_error.too_big(family, 1280)))
    assert (case.raw.sent, case.counters.errors_down) == ([], 0)


@FAMILIES
@pytest.mark.parametrize("carried", [True, False])
def test_of_errors_about_segments_only_a_narrower_link_counts(family: int, carried: bool) -> None:
    """And it is not passed on."""
    case = Case(family)
    reports: list[Reported] = []
    icmp = IcmpToSender(
        cast(RawSockets, case.raw), case.host.path.tables, case.counters, reports.append if carried else None
    )
    guest = case.peer.mapping.guest
    inner = icmp_error.quoted_packet(ip(SERVER[family]), guest, 6, bytes(20))

    def error(problem: Problem) -> Packet:
        built = icmp_error.message(family, problem, inner)
        return Packet(family, guest, ip(SERVER[family]), ICMP[family], memoryview(built), 64)

    with refused(Drop.GUEST_ERROR):
        icmp.take(error(CLOSED_PORT[family]))
    if carried:
        icmp.take(error(icmp_error.too_big(family, 1400)))
    else:
        with refused(Drop.GUEST_ERROR):
            icmp.take(error(icmp_error.too_big(family, 1400)))
    assert [report.problem.parameter for report in reports] == [1400] * carried
    assert (case.raw.sent, case.counters.errors_down) == ([], 0)


@FAMILIES
def test_an_error_about_nobodys_datagram_is_dropped(family: int) -> None:
    case = Case(family)
    with refused(Drop.GUEST_ERROR):
        case.icmp.take(case.error(CLOSED_PORT[family], port=TARGET + 1))
    assert (case.raw.sent, case.counters.errors_down) == ([], 0)


@FAMILIES
def test_without_a_raw_socket_it_is_dropped(family: int) -> None:
    case = Case(family, permitted=False)
    with refused(Drop.GUEST_ERROR):
        case.icmp.take(case.error(CLOSED_PORT[family]))
    assert len(case.raw.sent) == 1
    assert case.counters.errors_down == 0


@FAMILIES
def test_malformed_errors_and_those_about_other_protocols(family: int) -> None:
    case = Case(family)
    good = case.error(CLOSED_PORT[family])
    for size in (0, 4, 12):
        with refused(Drop.MALFORMED_ICMP):
            case.icmp.take(Packet(family, good.source, good.destination, ICMP[family], good.payload[:size], 64))
    other = bytearray(good.payload)
    other[8 + (9 if family == 4 else 6)] = 132  # the protocol of the quoted packet: SCTP
    with refused(Drop.GUEST_ERROR):
        case.icmp.take(Packet(family, good.source, good.destination, ICMP[family], memoryview(other), 64))
    assert case.raw.sent == []
