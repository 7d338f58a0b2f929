"""The errors that answer frames which rules of weather have lost."""

from __future__ import annotations

from gpasst.impair.action import Answer
from gpasst.impair.facts import ICMP, Flow
from gpasst.packet.address import V4
from gpasst.packet.icmp_error import CLOSED_PORT, Problem, too_big
from gpasst.packet.parse import Packet
from gpasst.packet.refusal import NO_HOST, NO_ROUTE, PROHIBITED
from gpasst.wire import ICMP_ECHO_REQUEST, ICMPV6_ECHO_REQUEST

_REFUSALS = {Answer.HOST: NO_HOST, Answer.NET: NO_ROUTE, Answer.ADMIN: PROHIBITED}
_ECHO_REQUESTS = {4: ICMP_ECHO_REQUEST, 6: ICMPV6_ECHO_REQUEST}


def answerable(flow: Flow, packet: Packet) -> bool:
    """Return whether there may be an error about a packet: not about an error (RFC 1122, section 3.2.2; RFC 4443,
    section 2.4).
    """
    return flow.protocol != ICMP or packet.payload[:1] == bytes((_ECHO_REQUESTS[flow.family],))


def problem_of(kind: Answer, family: int, mtu: int) -> Problem:
    """Return the problem that an answer reports, but for a reset.

    :param mtu: bytes of an IP packet, of `Answer.TOO_BIG`.
    """
    if kind is Answer.TOO_BIG:
        return too_big(family, mtu)
    if kind is Answer.PORT:
        return CLOSED_PORT[family]
    refusal = _REFUSALS[kind]
    problem = refusal.ipv4 if family == V4 else refusal.ipv6
    assert problem is not None
    return problem
