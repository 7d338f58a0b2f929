"""Neighbour discovery, ARP and echo: messages of any bytes, and what is answered."""

from __future__ import annotations

from contextlib import suppress

from gpasst.errors import PacketError
from gpasst.packet.parse import Packet, parse_ip
from gpasst.services import arp, chatter, echo, ndp
from gpasst.wire import PROTOCOL_ICMPV6
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST6, GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, ip
from tests.support.fuzz.choices import Choices
from tests.support.networks import guest_network

ROUTERS = (ndp.Router(guest_network(), True, 1500), ndp.Router(guest_network(search=("example.org",)), False, 0))
ADDRESSES = tuple(map(ip, (GUEST6, GUEST_LINK_LOCAL, GATEWAY6, "::", "::1", "ff02::1", "ff02::2", "ff02::1:ff00:2")))
ARP_BYTES = 42
WIDTHS = {4: 4, 6: 16}


def take(data: bytes) -> None:
    """Answer a message of each kind."""
    choices = Choices(data)
    router, source, to = choices.pick(ROUTERS), choices.pick(ADDRESSES), choices.pick(ADDRESSES)
    hop_limit, kind, family = choices.pick((255, 1, 64)), choices.pick((133, 135, 134, 136)), choices.pick((4, 6))
    body = choices.rest()
    message = Packet(6, source, to, PROTOCOL_ICMPV6, memoryview(bytes((kind,)) + body), hop_limit)
    try:
        answer = ndp.answer(router, message, GUEST_MAC, lambda target: target == ip(GATEWAY6))
        assert answer is None or parse_ip(memoryview(answer)).protocol == PROTOCOL_ICMPV6
    except PacketError:
        pass
    try:
        answer = arp.answer(memoryview(body), HOST_MAC, lambda target: target == ip(GATEWAY4))
        assert answer is None or len(answer) == ARP_BYTES
    except PacketError:
        pass
    addresses = bytes(range(WIDTHS[family])), bytes(WIDTHS[family])
    asked = Packet(family, *addresses, echo.PROTOCOLS[family], memoryview(body), 64)
    try:
        request = echo.parse_request(asked)
        reply = echo.reply(body, request.identifier, addresses[1], addresses[0], GUEST_MAC, HOST_MAC)
        assert len(parse_ip(memoryview(reply)).payload) == len(body)
    except PacketError:
        pass
    with suppress(PacketError):
        chatter.membership(asked)
