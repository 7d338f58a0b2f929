"""The behaviours of NAT as RFC 4787, RFC 5382 and RFC 5508 name them, seen from both sides."""

from __future__ import annotations

from typing import Any

import pytest

from gpasst.counters import Drop
from gpasst.packet.build import ip_packet
from gpasst.packet.icmp_error import Problem
from gpasst.router.behaviour import (
    CARRIER_GRADE,
    DEPENDENCES,
    Behaviour,
)
from gpasst.router.interface import INSIDE, OUTSIDE
from gpasst.wire import PROTOCOL_UDP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN
from tests.support.addresses import ip
from tests.support.routing import (
    FAR,
    ROUTER4,
    A,
    B,
    S,
    T,
    World,
    datagram,
    echo_message,
    identifier_of,
)

OUT = ROUTER4[OUTSIDE]
EI, AD, APD = DEPENDENCES


def nat(mapping: str = EI, filtering: str = EI, **other: Any) -> World:
    return World(Behaviour(mapping, filtering, **other))


def outside_port(world: World, inside: str, sport: int, destination: str, dport: int) -> int:
    """Return the outside port of a datagram from inside."""
    frame = world.udp(INSIDE, inside, sport, destination, dport)
    assert frame is not None
    assert (frame.src, frame.dst, frame.dport, frame.payload) == (OUT, destination, dport, b"data")
    return frame.sport


@pytest.mark.parametrize(
    ("mapping", "same_address", "other_address"),
    [(EI, True, True), (AD, True, False), (APD, False, False)],
)
def test_mapping(mapping: str, same_address: bool, other_address: bool) -> None:
    """RFC 4787, section 4.1: when an endpoint keeps its outside port."""
    world = nat(mapping)
    first = outside_port(world, A, 5000, S, 100)
    assert outside_port(world, A, 5000, S, 100) == first
    assert (outside_port(world, A, 5000, S, 200) == first) is same_address
    assert (outside_port(world, A, 5000, T, 100) == first) is other_address


@pytest.mark.parametrize("mapping", DEPENDENCES)
@pytest.mark.parametrize(
    ("filtering", "other_port", "other_address"),
    [(EI, True, True), (AD, True, False), (APD, False, False)],
)
def test_filtering(mapping: str, filtering: str, other_port: bool, other_address: bool) -> None:
    """RFC 4787, section 5: which outside endpoints may use an outside port. It depends on no mapping behaviour."""
    world = nat(mapping, filtering)
    port = outside_port(world, A, 5000, S, 100)
    for source, sport, admitted in ((S, 100, True), (S, 200, other_port), (T, 100, other_address)):
        frame = world.udp(OUTSIDE, source, sport, OUT, port)
        assert (frame is not None) is admitted
        if frame is not None:
            assert (frame.src, frame.sport, frame.dst, frame.dport) == (source, sport, A, 5000)
    assert world.drops(Drop.NAT_FILTERED) == (not other_port) + (not other_address)


def test_nothing_is_admitted_to_a_port_without_mapping() -> None:
    world = nat()
    assert world.udp(OUTSIDE, S, 100, OUT, 5000) is None
    assert world.udp(OUTSIDE, S, 100, A, 5000) is None, "an inside address means nothing outside"
    assert world.drops(Drop.NAT_FILTERED) == 2


def test_what_came_in_is_answered_from_the_same_port() -> None:
    """An endpoint that a stranger reached answers it from the port that was reached, whatever the mapping."""
    world = nat(APD, EI)
    port = outside_port(world, A, 5000, S, 100)
    assert world.udp(OUTSIDE, T, 300, OUT, port) is not None
    assert outside_port(world, A, 5000, T, 300) == port


def test_ports_are_preserved_where_they_are_free() -> None:
    """RFC 4787, section 4.2.1 and REQ-3: no two endpoints share an outside port."""
    world = nat()
    assert outside_port(world, A, 5000, S, 100) == 5000
    other = outside_port(world, B, 5000, S, 100)
    assert other != 5000
    assert other % 2 == 0, "the parity is preserved (section 4.2.2)"
    assert other >= 1024
    assert outside_port(world, A, 500, S, 100) == 500
    assert outside_port(world, B, 500, S, 100) < 1024, "REQ-3 a: the range is preserved"


def test_ports_may_change_always() -> None:
    world = nat(port_preservation=False)
    ports = {outside_port(world, A, 5001 + 2 * number, S, 100) for number in range(50)}
    assert len(ports) == 50
    assert all(port % 2 for port in ports)
    assert 5001 not in ports


def test_the_last_port_is_found_and_none_is_taken_twice() -> None:
    world = nat(port_preservation=False)
    ports = [outside_port(world, A, number, S, 100) for number in range(1, 1024)]
    assert sorted(ports) == list(range(1, 1024))
    assert world.udp(INSIDE, B, 5, S, 100) is None
    assert world.drops(Drop.NAT_PORTS) == 1


def test_a_mapping_ends_when_it_was_idle() -> None:
    """RFC 4787, REQ-5: no sooner than two minutes by default."""
    world = nat(port_preservation=False)
    port = outside_port(world, A, 5000, S, 100)
    world.passes(120)
    assert world.udp(OUTSIDE, S, 100, OUT, port) is not None
    world.passes(121)
    assert world.udp(OUTSIDE, S, 100, OUT, port) is None
    assert outside_port(world, A, 5000, S, 100) != port
    world.passes(121)
    assert world.router.due is None
    assert world.router.policy.nat is not None
    assert world.router.policy.nat.mappings == {}


@pytest.mark.parametrize("refresh", [True, False])
def test_what_keeps_a_mapping(refresh: bool) -> None:
    """RFC 4787, REQ-6: packets from inside do, those from outside may."""
    world = nat(filtering=EI, inbound_refresh=refresh, timeout=30.0)
    port = outside_port(world, A, 5000, S, 100)
    for _ in range(3):
        world.passes(20)
        assert outside_port(world, A, 5000, S, 100) == port
    for source in (S, T):
        world.passes(20)
        assert (world.udp(OUTSIDE, source, 100, OUT, port) is not None) is (refresh or source == S)


@pytest.mark.parametrize("filtering", DEPENDENCES)
def test_hairpinning(filtering: str) -> None:
    """RFC 4787, REQ-9 a: the sender is seen from its outside endpoint; filtering is that of any sender."""
    world = nat(EI, filtering)
    port_a = outside_port(world, A, 5000, S, 100)
    port_b = outside_port(world, B, 5000, S, 100)
    first = world.udp(INSIDE, A, 5000, OUT, port_b)
    assert (first is not None) is (filtering == EI)
    back = world.udp(INSIDE, B, 5000, OUT, port_a)
    assert back is not None
    assert (back.src, back.sport, back.dst, back.dport) == (OUT, port_b, A, 5000)
    again = world.udp(INSIDE, A, 5000, OUT, port_b)
    assert again is not None
    assert (again.src, again.sport, again.dst, again.dport) == (OUT, port_a, B, 5000)


def test_hairpinning_can_be_absent() -> None:
    world = nat(hairpin=False)
    port = outside_port(world, B, 5000, S, 100)
    assert world.udp(INSIDE, A, 5000, OUT, port) is None
    assert world.drops(Drop.HAIRPIN_OFF) == 1


@pytest.mark.parametrize("mapping", DEPENDENCES)
def test_hole_punching(mapping: str) -> None:
    """RFC 5128, section 3.3: endpoints that know each other's outside endpoint connect if mapping is independent."""
    world = nat(mapping, APD)
    port_a = outside_port(world, A, 5000, S, 3478)
    # The peer outside sends to the port that the server saw, before and behind the datagram of A.
    assert world.udp(OUTSIDE, T, 6000, OUT, port_a) is None
    outside_port(world, A, 5000, T, 6000)
    assert (world.udp(OUTSIDE, T, 6000, OUT, port_a) is not None) is (mapping == EI)


def test_rebinding_ends_all_mappings() -> None:
    world = nat()
    port = outside_port(world, A, 5000, S, 100)
    world.router.rebind()
    assert world.udp(OUTSIDE, S, 100, OUT, port) is None
    other = outside_port(world, A, 5000, S, 100)
    assert other != port
    assert world.udp(OUTSIDE, S, 100, OUT, other) is not None
    assert outside_port(world, A, 5000, T, 100) == other


# --- TCP (RFC 5382) -----------------------------------------------------------------------------------------


def connected(world: World) -> int:
    """Open a connection of an inside host; return its outside port."""
    syn = world.tcp(INSIDE, A, 5000, S, 80, TCP_SYN)
    assert syn is not None
    assert (syn.src, syn.dst, syn.flags) == (OUT, S, "syn")
    answer = world.tcp(OUTSIDE, S, 80, OUT, syn.sport, TCP_SYN | TCP_ACK)
    assert answer is not None
    assert (answer.dst, answer.dport) == (A, 5000)
    assert world.tcp(INSIDE, A, 5000, S, 80, TCP_ACK) is not None
    return syn.sport


def test_an_established_connection_is_kept_for_two_hours() -> None:
    """RFC 5382, REQ-5."""
    world = nat(EI, APD)
    port = connected(world)
    world.passes(7440)
    assert world.tcp(OUTSIDE, S, 80, OUT, port, TCP_ACK) is not None
    world.passes(7441)
    assert world.tcp(OUTSIDE, S, 80, OUT, port, TCP_ACK) is None


@pytest.mark.parametrize("end", ["syn", "reset", "closed"])
def test_a_transitory_connection_is_kept_for_four_minutes(end: str) -> None:
    """RFC 5382, REQ-5: one that opens, or has closed."""
    world = nat(EI, APD)
    port = 5000
    if end == "syn":
        world.tcp(INSIDE, A, 5000, S, 80, TCP_SYN)
    else:
        port = connected(world)
        if end == "reset":
            world.tcp(OUTSIDE, S, 80, OUT, port, TCP_RST)
        else:
            world.tcp(OUTSIDE, S, 80, OUT, port, TCP_FIN | TCP_ACK)
            world.tcp(INSIDE, A, 5000, S, 80, TCP_FIN | TCP_ACK)
    world.passes(240)
    assert world.tcp(OUTSIDE, S, 80, OUT, port, TCP_ACK) is not None
    assert world.router.policy.nat is not None
    if end != "syn":
        world.passes(241)
        assert world.tcp(OUTSIDE, S, 80, OUT, port, TCP_ACK) is None
        assert not world.router.policy.nat.sessions


def test_a_half_closed_connection_is_established() -> None:
    world = nat(EI, APD)
    port = connected(world)
    world.tcp(OUTSIDE, S, 80, OUT, port, TCP_FIN | TCP_ACK)
    world.passes(1000)
    assert world.tcp(INSIDE, A, 5000, S, 80, TCP_ACK) is not None


def test_a_new_connection_on_old_ports_is_a_new_one() -> None:
    world = nat(EI, APD)
    port = connected(world)
    world.tcp(OUTSIDE, S, 80, OUT, port, TCP_RST)
    assert connected(world) == port
    world.passes(1000)
    assert world.tcp(OUTSIDE, S, 80, OUT, port, TCP_ACK) is not None


def test_an_unasked_syn_is_answered_after_six_seconds() -> None:
    """RFC 5382, REQ-4: nothing for six seconds, then "port unreachable"."""
    world = nat(EI, APD)
    assert world.tcp(OUTSIDE, T, 6000, OUT, 5000, TCP_SYN) is None
    world.passes(5.9)
    assert world.last(OUTSIDE) is None
    world.passes(0.2)
    frame = world.last(OUTSIDE)
    assert frame is not None
    assert frame.icmp is not None
    assert (frame.icmp.type, frame.icmp.code, frame.src, frame.dst) == (3, 3, OUT, T)


def test_a_simultaneous_open_crosses() -> None:
    """RFC 5382, REQ-2 and REQ-4 a: the SYN that came too early is forgotten when the inside connects, too."""
    world = nat(EI, APD)
    first = world.tcp(INSIDE, A, 5000, S, 80, TCP_SYN)
    assert first is not None
    assert world.tcp(OUTSIDE, T, 6000, OUT, first.sport, TCP_SYN) is None
    own = world.tcp(INSIDE, A, 5000, T, 6000, TCP_SYN)
    assert own is not None
    assert own.sport == first.sport
    assert world.tcp(OUTSIDE, T, 6000, OUT, first.sport, TCP_SYN) is not None, "sent again"
    assert world.tcp(INSIDE, A, 5000, T, 6000, TCP_SYN | TCP_ACK) is not None
    world.passes(10)
    assert world.last(OUTSIDE) is None


# --- ICMP (RFC 5508) ----------------------------------------------------------------------------------------


def test_an_echo_crosses_by_its_identifier() -> None:
    """RFC 5508, REQ-1 and REQ-2."""
    world = nat(EI, APD)
    assert identifier_of(world.echo(INSIDE, A, S, 77)) == 77
    other = identifier_of(world.echo(INSIDE, B, S, 77))
    assert other != 77
    back = world.echo(OUTSIDE, S, OUT, other, kind=0)
    assert identifier_of(back) == 77
    assert back is not None
    assert (back.src, back.dst) == (S, B)
    assert world.echo(OUTSIDE, T, OUT, other, kind=0) is None
    world.passes(59)
    assert world.echo(OUTSIDE, S, OUT, 77, kind=0) is not None
    world.passes(61)
    assert world.echo(OUTSIDE, S, OUT, 77, kind=0) is None


def quoted_datagram(source: str, sport: int, destination: str, dport: int) -> bytes:
    return ip_packet(ip(source), ip(destination), PROTOCOL_UDP, datagram(source, sport, destination, dport))


def test_an_error_from_outside_reaches_the_inside_endpoint() -> None:
    """RFC 5508, REQ-4: the quoted packet is as its sender has sent it, checksums included."""
    world = nat(EI, APD, port_preservation=False)
    port = outside_port(world, A, 5000, S, 100)
    frame = world.error(OUTSIDE, FAR, OUT, quoted_datagram(OUT, port, S, 100))
    assert frame is not None
    assert (frame.src, frame.dst) == (FAR, A), "the node that reports it may be any (RFC 4787, REQ-12)"
    assert frame.data[42:] == quoted_datagram(A, 5000, S, 100)
    assert world.udp(OUTSIDE, S, 100, OUT, port) is not None, "it ends no mapping (REQ-6)"


def test_an_error_about_no_mapping_is_dropped() -> None:
    world = nat(EI, APD)
    assert world.error(OUTSIDE, S, OUT, quoted_datagram(OUT, 5000, S, 100)) is None
    assert world.error(OUTSIDE, S, OUT, quoted_datagram(T, 5000, S, 100)) is None
    assert world.error(INSIDE, A, S, quoted_datagram(S, 100, A, 5000)) is None
    assert world.drops(Drop.GUEST_ERROR) == 3


def test_an_error_from_inside_reaches_the_remote_end() -> None:
    """RFC 5508, REQ-5: it comes from the outside address, about the outside endpoint."""
    world = nat(EI, APD, port_preservation=False)
    port = outside_port(world, A, 5000, S, 100)
    frame = world.error(INSIDE, A, S, quoted_datagram(S, 100, A, 5000))
    assert frame is not None
    assert (frame.src, frame.dst) == (OUT, S)
    assert frame.data[42:] == quoted_datagram(S, 100, OUT, port)


def test_an_error_about_a_hairpinned_packet() -> None:
    """RFC 5508, REQ-7."""
    world = nat(EI, EI, port_preservation=False)
    port_a, port_b = (outside_port(world, host, 5000, S, 100) for host in (A, B))
    assert world.udp(INSIDE, A, 5000, OUT, port_b) is not None
    frame = world.error(INSIDE, B, OUT, quoted_datagram(OUT, port_a, B, 5000))
    assert frame is not None
    assert (frame.src, frame.dst) == (OUT, A)
    assert frame.data[42:] == quoted_datagram(A, 5000, OUT, port_b)


def test_an_error_does_not_keep_a_mapping() -> None:
    """RFC 5508, REQ-6."""
    world = nat(EI, APD, timeout=30.0)
    port = outside_port(world, A, 5000, S, 100)
    world.passes(20)
    assert world.error(OUTSIDE, S, OUT, quoted_datagram(OUT, port, S, 100)) is not None
    world.passes(20)
    assert world.udp(OUTSIDE, S, 100, OUT, port) is None


def test_an_error_about_an_echo_request() -> None:
    world = nat(EI, APD)
    world.echo(INSIDE, A, S, 77)
    other = identifier_of(world.echo(INSIDE, B, S, 77))
    frame = world.error(OUTSIDE, FAR, OUT, ip_packet(ip(OUT), ip(S), 1, echo_message(8, other)), Problem(11, 0))
    assert frame is not None
    assert frame.dst == B
    assert frame.data[42:] == ip_packet(ip(B), ip(S), 1, echo_message(8, 77))


def test_the_router_answers_its_own_echo_requests() -> None:
    world = nat(EI, APD)
    for side, source, own in ((INSIDE, A, ROUTER4[0]), (INSIDE, A, OUT), (OUTSIDE, S, OUT)):
        frame = world.echo(side, source, own, 9)
        assert frame is not None
        assert frame.icmp is not None
        assert (frame.src, frame.dst, frame.icmp.type, identifier_of(frame)) == (own, source, 0, 9)


def test_other_protocols_are_not_translated() -> None:
    world = nat()
    assert world.packet(INSIDE, A, S, 132, b"sctp" * 4) is None
    assert world.drops(Drop.PROTOCOL) == 1


def test_carrier_grade_is_what_its_rfc_asks_for() -> None:
    world = World(CARRIER_GRADE.behaviour)
    port = outside_port(world, A, 5000, S, 100)
    assert port != 5000
    assert outside_port(world, A, 5000, T, 200) == port
    assert world.udp(OUTSIDE, FAR, 1, OUT, port) is not None
