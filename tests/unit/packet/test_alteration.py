"""Frames that a network changes: what their receiver would find (under 2 s)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.formats import (
    ECHO_CODEC,
    IPV4_MORE_FRAGMENTS,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_UDP,
    VIRTIO_NET_BLANK,
)
from gpasst.packet import checksum
from gpasst.packet.alteration import corrupt, mark_congestion
from gpasst.packet.build import ip_packet, with_checksum, wrap, wrap_udp
from gpasst.packet.segmentation import split
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.families import FAMILIES
from tests.support.superframes import GUEST, SOURCE, parsed, sound, tcp_superframe, udp_superframe

PAYLOAD = b"of a flow, and quite enough of it"
HEADERS = {"udp": 8, "tcp": 20, "icmp": 8}
ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}


def echo(family: int, payload: bytes) -> bytes:
    """Return the frame of an echo reply, complete."""
    protocol = PROTOCOL_ICMP if family == 4 else PROTOCOL_ICMPV6
    message = ECHO_CODEC.pack(type=0 if family == 4 else 129, identifier=7, sequence=1) + payload
    if family == 4:
        message = message[:2] + checksum.internet(message).to_bytes(2, "big") + message[4:]
    else:
        message = with_checksum(message, 2, SOURCE[6], GUEST[6], protocol)
    return VIRTIO_NET_BLANK + wrap(GUEST_MAC, HOST_MAC, SOURCE[family], GUEST[family], protocol, message)


def single(family: int, protocol: str, payload: bytes = PAYLOAD) -> bytes:
    """Return one frame, its checksum left to the kernel where the proxy does that."""
    if protocol == "icmp":
        return echo(family, payload)
    make = udp_superframe if protocol == "udp" else tcp_superframe
    return make(family, payload, max(1, len(payload)))


def different_bits(one: bytes, other: bytes) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


PROTOCOLS = pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])


@FAMILIES
@PROTOCOLS
@given(bit=st.integers(0, 2**64 - 1))
def test_a_flipped_bit_leaves_the_checksum_wrong(family: int, protocol: str, bit: int) -> None:
    data = single(family, protocol)
    (frame,) = split(data)
    changed = corrupt(data, bit, valid=False)
    assert changed.startswith(VIRTIO_NET_BLANK)
    assert not sound(changed[len(VIRTIO_NET_BLANK) :])
    # Where there was no checksum, it has one now.
    assert different_bits(frame, changed[len(VIRTIO_NET_BLANK) :]) == 1 or (family, protocol) == (4, "udp")


@FAMILIES
@PROTOCOLS
@given(bit=st.integers(0, 2**64 - 1))
def test_a_flipped_bit_of_the_payload_has_the_right_checksum(family: int, protocol: str, bit: int) -> None:
    data = single(family, protocol)
    (frame,) = split(data)
    changed = corrupt(data, bit, valid=True)[len(VIRTIO_NET_BLANK) :]
    assert sound(changed)
    size = HEADERS[protocol]
    assert different_bits(bytes(parsed(frame).payload[size:]), bytes(parsed(changed).payload[size:])) == 1


@FAMILIES
@PROTOCOLS
def test_every_bit_of_the_transport_packet_but_its_checksum_can_flip(family: int, protocol: str) -> None:
    data = single(family, protocol, b"x")
    seen = {corrupt(data, bit, valid=False) for bit in range(2000)}
    assert len(seen) == 8 * (HEADERS[protocol] + 1 - 2)


@FAMILIES
@PROTOCOLS
def test_without_payload_nothing_of_it_can_flip(family: int, protocol: str) -> None:
    data = single(family, protocol, b"")
    (frame,) = split(data)
    assert corrupt(data, 12345, valid=True) == VIRTIO_NET_BLANK + frame


def test_a_datagram_without_checksum_stays_without_one_if_the_damage_is_not_to_be_found() -> None:
    data = VIRTIO_NET_BLANK + wrap_udp(GUEST_MAC, HOST_MAC, SOURCE[4], GUEST[4], 1, 2, PAYLOAD)
    changed = corrupt(data, 99, valid=True)
    assert different_bits(data, changed) == 1
    assert not sound(corrupt(data, 99, valid=False)[len(VIRTIO_NET_BLANK) :])


@pytest.mark.parametrize("valid", [False, True])
def test_a_fragment_has_no_checksum_to_be_wrong(valid: bool) -> None:
    packet = ip_packet(SOURCE[4], GUEST[4], PROTOCOL_UDP, PAYLOAD * 8, flags=IPV4_MORE_FRAGMENTS)
    data = VIRTIO_NET_BLANK + GUEST_MAC + HOST_MAC + ETHERTYPE[4] + packet
    changed = corrupt(data, 77, valid)
    assert different_bits(data, changed) == 1
    assert changed[: len(data) - len(PAYLOAD * 8)] == data[: len(data) - len(PAYLOAD * 8)]


def test_what_is_no_ip_packet_has_no_payload() -> None:
    data = VIRTIO_NET_BLANK + bytes(12) + b"\x08\x06" + bytes(46)
    assert corrupt(data, 5, valid=True) == data
    assert different_bits(corrupt(data, 5, valid=False), data) == 1


@given(st.binary(max_size=120), st.integers(0, 2**64 - 1), st.booleans(), st.sampled_from([b"", *ETHERTYPE.values()]))
def test_any_frame_can_be_changed(frame: bytes, bit: int, valid: bool, ethertype: bytes) -> None:
    data = VIRTIO_NET_BLANK + (bytes(12) + ethertype if ethertype else b"") + frame
    assert len(corrupt(data, bit, valid)) == len(data)
    assert len(mark_congestion(data)) == len(data)


def marked(data: bytes, family: int, field: int) -> bytes:
    """Return a superframe with an ECN field."""
    changed = bytearray(data)
    at = len(VIRTIO_NET_BLANK) + 14
    if family == 6:
        changed[at + 1] |= field << 4
        return bytes(changed)
    changed[at + 1] |= field
    changed[at + 10 : at + 12] = bytes(2)
    changed[at + 10 : at + 12] = checksum.internet(changed[at : at + 20]).to_bytes(2, "big")
    return bytes(changed)


@FAMILIES
@pytest.mark.parametrize(("field", "after"), [(0, 0), (1, 3), (2, 3), (3, 3)])
def test_only_who_understands_the_mark_gets_it(family: int, field: int, after: int) -> None:
    data = udp_superframe(family, PAYLOAD * 4, 40)
    frames = list(split(mark_congestion(marked(data, family, field))))
    assert [parsed(frame).tos & 3 for frame in frames] == [after] * 4
    assert all(sound(frame) for frame in frames)
    assert frames == list(split(marked(data, family, after)))
