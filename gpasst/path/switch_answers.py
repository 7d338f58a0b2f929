"""Answers to senders of frames that rules of weather have lost on a switch.

Theory of operation: no router stands between two hosts of one network, so an error comes from the host that the frame
was sent to, and a reset reaches both ends. Both are made of the lost frame alone; no state is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpasst.errors import PacketError
from gpasst.flow.answers import answerable, problem_of
from gpasst.impair.action import Answer
from gpasst.impair.facts import TCP, Flow
from gpasst.packet import icmp_error
from gpasst.packet.address import is_multicast
from gpasst.packet.parse import parse_ip
from gpasst.tcp.reset import reset, reset_instead
from gpasst.wire import ETHERNET_CODEC

_DESTINATION = slice(0, ETHERNET_CODEC.offset("source"))
_SOURCE = slice(ETHERNET_CODEC.offset("source"), ETHERNET_CODEC.offset("ethertype"))


def answers(kind: Answer, flow: Flow, frame: bytes, mtu: int) -> Iterator[bytes]:
    """Yield the frames that answer a lost frame; a malformed one has no answer.

    :param frame: from the destination MAC address on.
    :param mtu: bytes of an IP packet, of `Answer.TOO_BIG`.
    """
    to, sender = frame[_DESTINATION], frame[_SOURCE]
    try:
        if not flow.family or to[0] & 1:
            return
        packet = parse_ip(memoryview(frame))
        if kind is not Answer.RESET:
            if answerable(flow, packet) and not is_multicast(packet.destination):
                quoted = frame[ETHERNET_CODEC.size :]
                message = icmp_error.message(flow.family, problem_of(kind, flow.family, mtu), quoted)
                yield icmp_error.frame(sender, to, packet.destination, packet.source, message)
        elif flow.protocol == TCP:
            for made in (reset(packet, sender, to), reset_instead(packet, to, sender)):
                if made is not None:
                    yield made
    except PacketError:
        return
