"""Parsing of frames, and all that works on frames of any kind: reassembly, errors, and frames as tests see them."""

from __future__ import annotations

from gpasst.capture.table import table
from gpasst.errors import PacketError
from gpasst.packet import icmp_error
from gpasst.packet.frame import Frame
from gpasst.packet.parse import Packet, parse_ip, parse_udp
from gpasst.packet.reassembly import BYTES_LIMIT, DATAGRAMS_LIMIT, PAYLOAD_LIMIT, Reassembly
from gpasst.services import echo
from gpasst.tcp import segment
from gpasst.tcp.reset import reset
from gpasst.wire import PROTOCOL_TCP, PROTOCOL_UDP
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.fuzz.choices import Choices

FRAMES = 8
ETHERNET_BYTES = 14


def take(data: bytes) -> None:
    """Parse frames, and reassemble their fragments."""
    choices, reassembly, now = Choices(data), Reassembly(), 0
    for _ in range(FRAMES):
        if not choices.more:
            return
        now += choices.pick((0, 0, 1, 31))
        reassembly.scan(now)
        frame = choices.piece(2048)
        _frame(frame)
        if len(frame) < ETHERNET_BYTES:
            continue
        try:
            packet = parse_ip(memoryview(frame))
        except PacketError:
            continue
        assert len(packet.payload) <= len(frame)
        whole: Packet | None = packet
        if packet.fragment is not None:
            try:
                whole = reassembly.add(packet, now)
            except PacketError:
                continue
        assert len(reassembly) <= DATAGRAMS_LIMIT
        assert 0 <= reassembly.held <= BYTES_LIMIT
        if whole is not None:
            assert len(whole.payload) <= PAYLOAD_LIMIT[whole.family]
            _packet(whole)


def _frame(frame: bytes) -> None:
    """Look at a frame as tests do."""
    seen = Frame(frame, True)
    described = (seen.src, seen.dst, seen.flags, seen.ethernet, seen.arp, seen.ip, seen.udp, seen.tcp, seen.icmp)
    assert seen.size == len(frame)
    assert str(described)
    assert table([seen])


def _packet(packet: Packet) -> None:
    """Parse what a packet carries."""
    for parse in (icmp_error.parse, echo.parse_request):
        try:
            parse(packet)
        except PacketError:
            continue
    try:
        if packet.protocol == PROTOCOL_UDP:
            *_, payload = parse_udp(packet.payload)
            assert len(payload) <= len(packet.payload)
        if packet.protocol == PROTOCOL_TCP:
            found = segment.parse(packet.payload)
            offer = segment.parse_options(found.options)
            assert offer.mss >= segment.MSS_MINIMUM
            assert offer.scale is None or offer.scale <= segment.SCALE_MAXIMUM
            reset(packet, GUEST_MAC, HOST_MAC)
    except PacketError:
        return
