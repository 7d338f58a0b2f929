"""DHCPv6: messages of any options within options, to any address."""

from __future__ import annotations

from gpasst.errors import PacketError
from gpasst.packet.dhcp_wire import DHCPV6_CODEC, DHCPV6_OPTIONS
from gpasst.packet.parse import Packet, parse_ip, parse_udp
from gpasst.services import dhcpv6
from gpasst.wire import PROTOCOL_UDP
from tests.support.addresses import GUEST6, GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, ip
from tests.support.fuzz.choices import Choices
from tests.support.networks import guest_network

OURS = dhcpv6.duid(HOST_MAC, 700_000_000)
SERVERS = (
    dhcpv6.Server(guest_network(), OURS),
    dhcpv6.Server(guest_network(search=("example.org",), fqdn="guest.example.org"), OURS),
)
CLIENT_ID, SERVER_ID = 1, 2
CODES = (1, 2, 3, 4, 5, 6, 13, 14, 25, 39, 65535)
ADDRESSES = tuple(map(ip, ("ff02::1:2", GUEST_LINK_LOCAL, GUEST6, "::", "::1", "ff02::1")))
DEPTH = 4


def take(data: bytes) -> None:
    """Answer a message: raw bytes, or options that stand in each other."""
    choices = Choices(data)
    server, source, to = choices.pick(SERVERS), choices.pick(ADDRESSES), choices.pick(ADDRESSES)
    if choices.flag():
        kind, named = choices.number(16), choices.flag()
        message = bytes((kind,)) + b"abc" + _option(CLIENT_ID, choices.piece(32))
        message += _option(SERVER_ID, OURS) if named else b""
        while choices.more:
            message += _listed(choices, DEPTH)
    else:
        message = choices.rest()
    try:
        answer = dhcpv6.answer(server, Packet(6, source, to, PROTOCOL_UDP, memoryview(b""), 1), message, GUEST_MAC)
    except PacketError:
        return
    if answer is not None:
        *_, payload = parse_udp(parse_ip(memoryview(answer)).payload)
        assert len(payload) >= DHCPV6_CODEC.size


def _listed(choices: Choices, depth: int) -> bytes:
    """Return an option, which may have others in it."""
    code, head, inner = choices.pick(CODES), choices.piece(32), b""
    for _ in range(choices.number(4) if depth else 0):
        inner += _listed(choices, depth - 1)
    return _option(code, head + inner)


def _option(code: int, data: bytes) -> bytes:
    return DHCPV6_OPTIONS.build([(code, data[:65535])])
