"""DHCP: messages of any options, to the services with every setting."""

from __future__ import annotations

from gpasst.errors import PacketError
from gpasst.packet.dhcp_wire import DHCP_CODEC
from gpasst.packet.parse import parse_ip, parse_udp
from gpasst.services import dhcp
from gpasst.wire import PROTOCOL_UDP
from tests.support.addresses import GUEST_MAC, ip
from tests.support.fuzz.choices import Choices
from tests.support.networks import family_network, guest_network

COOKIE = bytes.fromhex("63825363")
NETWORKS = (
    guest_network(),
    guest_network(
        ip4=family_network(4, resolvers=(ip("198.51.100.53"), ip("198.51.100.54"))),
        search=("example.org", "b.example.org"),
        hostname="guest",
        fqdn="guest.example.org",
    ),
)


def take(data: bytes) -> None:
    """Answer a message: raw bytes, or a request of any options."""
    choices = Choices(data)
    network, form = choices.pick(NETWORKS), choices.number(3)
    if form == 0:
        message = choices.rest()
    elif form == 1:
        message = b"\1" + choices.exactly(DHCP_CODEC.size - 1) + COOKIE + choices.rest()
    else:
        fixed = bytearray(DHCP_CODEC.size)
        fixed[0], fixed[1], fixed[2] = 1, 1, 6
        fixed[28:34] = GUEST_MAC
        options = b""
        while choices.more:
            piece = choices.piece()
            options += bytes((choices.number(256), len(piece))) + piece
        message = bytes(fixed) + COOKIE + options + b"\xff"
    try:
        answer = dhcp.answer(network, message, GUEST_MAC)
    except PacketError:
        return
    if answer is not None:
        packet = parse_ip(memoryview(answer))
        assert packet.protocol == PROTOCOL_UDP
        *_, payload = parse_udp(packet.payload)
        dhcp.parse_options(payload)
