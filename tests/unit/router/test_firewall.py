"""Firewall rules: their text, and what routers do with flows by them."""

from __future__ import annotations

import pytest

from gpasst.counters import Drop
from gpasst.errors import ConfigurationError
from gpasst.packet.build import ip_packet
from gpasst.packet.icmp_error import CLOSED_PORT
from gpasst.router.behaviour import CORPORATE, HOME, MOBILE, Behaviour, Preset
from gpasst.router.firewall import parse, verdict
from gpasst.router.interface import INSIDE, OUTSIDE
from gpasst.wire import PROTOCOL_UDP, TCP_ACK, TCP_SYN
from tests.support.addresses import ip
from tests.support.routing import A6, ROUTER4, S6, A, S, World, datagram


def plain(*rules: str) -> World:
    return World(Behaviour(mapping=None, firewall=tuple(map(parse, rules))))


@pytest.mark.parametrize(
    ("text", "flow", "matches"),
    [
        ("drop in", (False, 6, A, S, 80), True),
        ("drop in", (True, 6, A, S, 80), False),
        ("allow out tcp", (True, 6, A, S, 80), True),
        ("allow out tcp", (True, 17, A, S, 80), False),
        ("allow out icmp", (True, 58, A6, S6, 0), True),
        ("allow out tcp 80,443", (True, 6, A, S, 443), True),
        ("allow out tcp 80,443", (True, 6, A, S, 444), False),
        ("allow out udp 5000-5009", (True, 17, A, S, 5009), True),
        ("allow out udp 5000-5009", (True, 17, A, S, 5010), False),
        ("drop out from 10.77.1.0/24", (True, 17, A, S, 1), True),
        ("drop out from 10.77.2.0/24", (True, 17, A, S, 1), False),
        ("drop out to 198.51.100.7 from 10.77.1.2", (True, 17, A, S, 1), True),
        ("drop out to 198.51.100.7", (True, 17, A6, S6, 1), False),
        ("drop out udp to 2001:db8::/32", (True, 17, A6, S6, 1), True),
    ],
)
def test_what_a_rule_is_about(text: str, flow: tuple[bool, int, str, str, int], matches: bool) -> None:
    outward, protocol, source, destination, port = flow
    rule = parse(text)
    assert rule.matches(outward, protocol, ip(source), ip(destination), port) is matches
    assert verdict((rule,), outward, protocol, ip(source), ip(destination), port) == (
        rule.action if matches else "allow"
    )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "begins with no action"),
        ("permit out", "begins with no action"),
        ("allow tcp", "begins with no action"),
        ("allow out sctp", "'sctp'"),
        ("allow out icmp 8", "ports of icmp"),
        ("allow out tcp 0", "from 1 to 65535"),
        ("allow out tcp 9-8", "from 1 to 65535"),
        ("allow out tcp " + "9" * 5000, "where ports stand"),
        ("allow out tcp 80,", "where ports stand"),
        ("allow out tcp 8a", "where ports stand"),
        ("allow out from", "'from'"),
        ("allow out from 10.0.0.1/24", "'10.0.0.1/24'"),
        ("allow out from 10.0.0.1 from 10.0.0.2", "'from'"),
        (7, "is no text"),
    ],
)
def test_what_is_no_rule(text: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="write it like") as caught:
        parse(text)
    assert wrong in caught.value.message


@pytest.mark.parametrize(("inside", "outside"), [(A, S), (A6, S6)])
def test_answers_come_in_and_nothing_unasked(inside: str, outside: str) -> None:
    world = plain("drop in")
    assert world.udp(OUTSIDE, outside, 100, inside, 5000) is None
    assert world.udp(INSIDE, inside, 5000, outside, 100) is not None
    for _ in range(2):
        assert world.udp(OUTSIDE, outside, 100, inside, 5000) is not None
    assert world.udp(OUTSIDE, outside, 101, inside, 5000) is None
    world.passes(121)
    assert world.udp(OUTSIDE, outside, 100, inside, 5000) is None
    assert world.drops(Drop.FIREWALL) == 3


@pytest.mark.parametrize(("inside", "outside", "kind"), [(A, S, (3, 13)), (A6, S6, (1, 1))])
def test_a_rejected_flow_is_reported(inside: str, outside: str, kind: tuple[int, int]) -> None:
    world = plain("allow out tcp 80", "reject out")
    assert world.tcp(INSIDE, inside, 5000, outside, 80, TCP_SYN) is not None
    frame = world.tcp(INSIDE, inside, 5000, outside, 81, TCP_SYN)
    assert frame is not None
    assert frame.icmp is not None
    assert (frame.icmp.type, frame.icmp.code, frame.dst) == (*kind, inside)


def test_errors_about_what_was_let_through_pass() -> None:
    world = plain("drop in")
    about = ip_packet(ip(A), ip(S), PROTOCOL_UDP, datagram(A, 5000, S, 100))
    assert world.error(OUTSIDE, S, A, about) is None
    world.udp(INSIDE, A, 5000, S, 100)
    frame = world.error(OUTSIDE, S, A, about, CLOSED_PORT[4])
    assert frame is not None
    assert frame.data[42:] == about


def test_an_inbound_rule_behind_nat_sees_the_inside_port() -> None:
    world = World(Behaviour(port_preservation=False, firewall=(parse("allow in udp 5000"), parse("drop in"))))
    for inside, admitted in ((5000, True), (5001, False)):
        frame = world.udp(INSIDE, A, inside, S, 100)
        assert frame is not None
        assert (world.udp(OUTSIDE, S, 200, ROUTER4[OUTSIDE], frame.sport) is not None) is admitted
        assert world.udp(OUTSIDE, S, 100, ROUTER4[OUTSIDE], frame.sport) is not None


def test_a_corporate_network_lets_out_the_web() -> None:
    world = World(CORPORATE.behaviour)
    assert world.tcp(INSIDE, A, 5000, S, 443, TCP_SYN) is not None
    assert world.udp(INSIDE, A, 5000, S, 53) is not None
    frame = world.udp(INSIDE, A, 5000, S, 3478)
    assert frame is not None
    assert frame.icmp is not None


@pytest.mark.parametrize("preset", [HOME, MOBILE])
def test_ipv6_is_closed_to_the_outside(preset: Preset) -> None:
    world = World(preset.behaviour)
    assert world.tcp(OUTSIDE, S6, 80, A6, 5000, TCP_SYN) is None
    assert world.tcp(INSIDE, A6, 5000, S6, 80, TCP_SYN) is not None
    assert world.tcp(OUTSIDE, S6, 80, A6, 5000, TCP_SYN | TCP_ACK) is not None
