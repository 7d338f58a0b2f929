"""Rewriting keeps checksums right, whatever the addresses, ports and payload."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpasst.packet.build import ip_packet, with_checksum
from gpasst.packet.frame import Frame
from gpasst.packet.icmp_error import CLOSED_PORT, message
from gpasst.router.patch import TTL, Patch, hop4, readdressed, requoted
from gpasst.wire import PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, TCP_CODEC, UDP_CODEC, VIRTIO_NET_BLANK
from tests.support.routing import echo_message
from tests.support.superframes import sound

AT = 44  # offset of the transport header behind the virtio-net header, and those of Ethernet and IPv4
MACS = bytes(12)

addresses = st.binary(min_size=4, max_size=4).filter(any)
ports = st.integers(0, 65535)
ends = st.tuples(addresses, ports, addresses, ports)
payloads = st.binary(max_size=60) | st.integers(0, 3).map(lambda size: b"\xff" * size)
protocols = st.sampled_from((PROTOCOL_TCP, PROTOCOL_UDP))


def segment(protocol: int, end: tuple[bytes, int, bytes, int], payload: bytes) -> bytes:
    source, sport, destination, dport = end
    if protocol == PROTOCOL_TCP:
        header = TCP_CODEC.pack(source=sport, destination=dport, sequence=1, acknowledgement=2, flags=16, window=3)
        return with_checksum(header + payload, 16, source, destination, protocol)
    header = UDP_CODEC.pack(source=sport, destination=dport, length=8 + len(payload))
    built = with_checksum(header + payload, 6, source, destination, protocol)
    # As a sender does: 0 would stand for no checksum (RFC 768).
    return built if any(built[6:8]) else built[:6] + b"\xff\xff" + built[8:]


def packet(protocol: int, end: tuple[bytes, int, bytes, int], payload: bytes) -> bytes:
    return ip_packet(end[0], end[2], protocol, segment(protocol, end, payload), hop_limit=64)


def frame(data: bytes) -> bytearray:
    return bytearray(VIRTIO_NET_BLANK + MACS + b"\x08\x00" + data)


@given(protocols, ends, ends, payloads)
def test_a_patched_frame_is_what_its_new_ends_would_have_sent(
    protocol: int, old: tuple[bytes, int, bytes, int], new: tuple[bytes, int, bytes, int], payload: bytes
) -> None:
    patched = frame(packet(protocol, old, payload))
    Patch(protocol, old, new).apply(patched, AT)
    hop4(patched)
    assert sound(bytes(patched[10:]))
    assert patched[TTL] == 63
    seen = Frame(bytes(patched[10:]), True)
    assert (seen.source, seen.sport, seen.destination, seen.dport, seen.payload) == (*new, payload)


@given(ends, ends, payloads)
def test_a_datagram_without_checksum_gets_none(
    old: tuple[bytes, int, bytes, int], new: tuple[bytes, int, bytes, int], payload: bytes
) -> None:
    patched = frame(packet(PROTOCOL_UDP, old, payload))
    patched[AT + 6 : AT + 8] = bytes(2)
    Patch(PROTOCOL_UDP, old, new).apply(patched, AT)
    assert not any(patched[AT + 6 : AT + 8])


@given(addresses, addresses, ports, addresses, ports)
def test_an_echo_gets_another_identifier(
    source: bytes, destination: bytes, identifier: int, address: bytes, other: int
) -> None:
    patched = frame(ip_packet(source, destination, PROTOCOL_ICMP, echo_message(8, identifier)))
    Patch(PROTOCOL_ICMP, (source, identifier, destination, 0), (address, other, destination, 0)).apply(patched, AT)
    assert sound(bytes(patched[10:]))
    assert patched[AT:] != b""
    assert int.from_bytes(patched[AT + 4 : AT + 6], "big") == other


@given(protocols, ends, ends, payloads, st.integers(8, 60), addresses)
def test_an_error_quotes_what_its_receiver_has_sent(
    protocol: int,
    old: tuple[bytes, int, bytes, int],
    new: tuple[bytes, int, bytes, int],
    payload: bytes,
    quoted: int,
    router: bytes,
) -> None:
    error = message(4, CLOSED_PORT[4], packet(protocol, old, payload)[: 20 + quoted])
    again = requoted(error, 28, protocol, old, new)
    assert len(again) == len(error)
    whole = packet(protocol, new, payload)
    assert again[8:36] == whole[:28]
    built = frame(ip_packet(router, old[0], PROTOCOL_ICMP, error))
    moved = readdressed(built, AT, again, router, new[0])
    assert sound(moved[10:])
    assert Frame(moved[10:], True).destination == new[0]
