"""Frames of known peers: what is recognised at one look is what the parsers would have said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.errors import PacketError
from gpasst.formats import VIRTIO_NET_BLANK
from gpasst.packet.joining import HEADERS
from gpasst.packet.parse import parse_ip, parse_udp
from gpasst.path.fastpath import PASSED_BYTES, FastPath
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST4, GUEST_LINK_LOCAL, ip
from tests.support.bench import udp_frame
from tests.support.families import FAMILIES
from tests.support.nat import Host

GUEST = {4: GUEST4, 6: GUEST_LINK_LOCAL}
GATEWAY = {4: GATEWAY4, 6: GATEWAY6}
PORT, TO = 5000, 7000
VIRTIO = len(VIRTIO_NET_BLANK)
ETHERNET = 14
PROTOCOL = {4: ETHERNET + 9, 6: ETHERNET + 6}  # offset in a frame
UDP = 17
TOS_TTL = 64  # of frames that are built here


def changed(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + bytes((value,)) + frame[at + 1 :]


class Case:
    """A fast path with one peer in each family."""

    def __init__(self) -> None:
        self.host = Host()
        self.peers = {family: self.host.down(PORT, GATEWAY[family], TO, GUEST[family]) for family in (4, 6)}
        self.fastpath = FastPath(self.host.path.tables)

    def lookup(self, frame: bytes, before: int = 0) -> tuple[object, bytes] | None:
        """Return the peer and the payload of a frame that lies somewhere in a buffer."""
        buffer = bytearray(bytes(before) + VIRTIO_NET_BLANK + frame + b"behind")
        found = self.fastpath.lookup(buffer, before, VIRTIO + len(frame))
        if found is None:
            return None
        peer, start, length = found
        return peer, bytes(buffer[before + start : before + start + length])


@FAMILIES
@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 5])
@pytest.mark.parametrize("padding", [0, 30])
@pytest.mark.parametrize("before", [0, 7])
def test_a_frame_of_a_known_peer(family: int, payload: bytes, padding: int, before: int) -> None:
    case = Case()
    frame = udp_frame(family, PORT, TO, payload) + bytes(padding)
    assert case.lookup(frame, before) == (case.peers[family], payload)
    assert case.fastpath.knows(frame)


@FAMILIES
def test_it_counts_as_active(family: int) -> None:
    case = Case()
    table, peer = case.host.path.tables[family], case.peers[family]
    table.activity[:] = bytes(len(table.activity))
    case.lookup(udp_frame(family, PORT, TO, b"?"))
    assert table.activity[peer.byte] == peer.bit


@FAMILIES
def test_its_tos_and_ttl_become_the_peers(family: int) -> None:
    case = Case()
    peer = case.peers[family]
    frame = bytearray(udp_frame(family, PORT, TO, b"?"))
    case.lookup(bytes(frame))
    assert peer.tos_ttl == TOS_TTL
    if family == 4:
        frame[ETHERNET + 1], frame[ETHERNET + 8] = 0xB9, 17
    else:
        frame[ETHERNET : ETHERNET + 2], frame[ETHERNET + 7] = b"\x6b\x90", 17
    assert case.lookup(bytes(frame)) is not None
    assert peer.tos_ttl == 0xB911


@FAMILIES
def test_frames_of_others_are_nobodys(family: int) -> None:
    case = Case()
    other_guest = udp_frame(family, PORT + 1, TO, b"?")
    other_target = udp_frame(family, PORT, TO + 1, b"?")
    for frame in (other_guest, other_target):
        assert case.lookup(frame) is None
        assert not case.fastpath.knows(frame)


@FAMILIES
def test_without_tables_nothing_is_known(family: int) -> None:
    frame = udp_frame(family, PORT, TO, b"?")
    fastpath = FastPath({})
    assert fastpath.lookup(bytearray(VIRTIO_NET_BLANK + frame), 0, VIRTIO + len(frame)) is None
    assert not fastpath.knows(frame)


@FAMILIES
@given(
    payload=st.binary(max_size=40),
    changes=st.lists(st.tuples(st.integers(12, 70), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 30),
)
def test_whatever_is_recognised_the_parsers_agree(
    family: int, payload: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    case = Case()
    frame = bytearray(udp_frame(family, PORT, TO, payload))
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    frame = frame[: len(frame) - cut]
    found = case.lookup(bytes(frame))
    if found is None:
        return
    packet = parse_ip(memoryview(bytes(frame)))
    assert packet.fragment is None
    source, destination, data = parse_udp(packet.payload)
    assert (packet.source, packet.destination) == (ip(GUEST[packet.family]), ip(GATEWAY[packet.family]))
    assert (source, destination, bytes(data)) == (PORT, TO, found[1])
    assert found[0] is case.peers[packet.family]
    assert case.peers[packet.family].tos_ttl == packet.tos_ttl


@FAMILIES
@pytest.mark.parametrize("size", [0, 40])
def test_after_any_change_of_one_byte_both_still_agree(family: int, size: int) -> None:
    """But for options, extension headers and fragments, which are left to the parsers."""
    case = Case()
    good = udp_frame(family, PORT, TO, bytes(size))
    ends = ip(GUEST[family]), ip(GATEWAY[family]), PORT, TO
    agreed = 0
    for at in range(ETHERNET - 2, HEADERS[family] - VIRTIO):
        for value in range(256):
            frame = bytearray(good)
            frame[at] = value
            found = case.lookup(bytes(frame))
            expected = parsed(bytes(frame))
            if expected is not None and expected[:4] == ends:
                assert found == (case.peers[family], expected[4]), (at, value)
                agreed += 1
            else:
                assert found is None, (at, value)
    assert agreed > HEADERS[family] - VIRTIO - ETHERNET


def parsed(frame: bytes) -> tuple[bytes, bytes, int, int, bytes] | None:
    """Return ends and payload of an ordinary datagram, as the parsers have them; None for any other frame."""
    if frame[12:14] not in (b"\x08\x00", b"\x86\xdd"):
        return None
    try:
        packet = parse_ip(memoryview(frame))
        source, destination, data = parse_udp(packet.payload)
    except PacketError:
        return None
    direct = frame[PROTOCOL[packet.family]] == UDP and (packet.family == 6 or frame[ETHERNET] == 0x45)
    if not direct or packet.protocol != UDP or packet.fragment is not None:
        return None
    return packet.source, packet.destination, source, destination, bytes(data)


@FAMILIES
def test_what_may_be_of_a_known_flow(family: int) -> None:
    case = Case()
    known, other = udp_frame(family, PORT, TO, b"?"), udp_frame(family, PORT + 1, TO, b"?")
    key = bytes(other[HEADERS[family] - VIRTIO - 8 - (8 if family == 4 else 32) :][: 12 if family == 4 else 36])
    for fastpath, expected in ((case.fastpath, [True, False]), (FastPath({}, {key: None}), [False, True])):
        for number, frame in enumerate((known, other)):
            buffer = bytearray(VIRTIO_NET_BLANK + frame + bytes(36))
            assert fastpath.may_matter(buffer, 0) is expected[number]
            stream = memoryview(len(frame).to_bytes(4, "big") + frame + bytes(36))
            assert fastpath.pass_over(stream, 0, len(stream))[1] == (0 if expected[number] else 1)


@given(
    st.lists(st.tuples(st.sampled_from([4, 6]), st.booleans(), st.integers(0, 2000)), max_size=30), st.integers(0, 99)
)
def test_frames_of_a_stream_are_passed_over_up_to_the_first_of_a_known_flow(
    frames: list[tuple[int, bool, int]], cut: int
) -> None:
    case = Case()
    made = [udp_frame(family, PORT + (not known), TO, bytes(size)) for family, known, size in frames]
    data = b"start" + b"".join(len(frame).to_bytes(4, "big") + frame for frame in made)
    data = data[: len(data) - cut] if cut < len(data) - 5 else data
    at, passed = case.fastpath.pass_over(memoryview(data), 5, len(data))
    assert at == 5 + sum(4 + len(frame) for frame in made[:passed])
    assert at <= len(data)
    assert not any(known for _, known, _ in frames[:passed])
    rest = data[at : 5 + PASSED_BYTES]
    if passed < len(made) and not frames[passed][1] and len(made[passed]) + 4 <= len(rest):
        # All but what is shorter than the longest key.
        assert len(rest) < 70


@pytest.mark.parametrize("length", [0, 13, 65536, 2**32 - 1])
def test_a_frame_of_illegal_length_is_not_passed_over(length: int) -> None:
    stream = memoryview(length.to_bytes(4, "big") + bytes(200))
    assert FastPath({}).pass_over(stream, 0, len(stream)) == (0, 0)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (bytes(12) + b"\x08\x06" + bytes(28), True),
        (bytes(12) + b"\x88\xcc" + bytes(28), False),
        (udp_frame(4, 68, 67, b"DHCP"), True),
        (udp_frame(6, 546, 547, b"DHCPv6"), True),
        (udp_frame(4, 67, 68, b""), False),
        (changed(udp_frame(4, 1, 2, b""), PROTOCOL[4], 1), True),
        (changed(udp_frame(6, 1, 2, b""), PROTOCOL[6], 58), True),
        (changed(udp_frame(6, 1, 2, b""), PROTOCOL[6], 0), False),
        (b"", False),
    ],
)
def test_what_is_for_a_service_matters(frame: bytes, expected: bool) -> None:
    fastpath = FastPath({})
    assert fastpath.may_matter(bytearray(VIRTIO_NET_BLANK + frame + bytes(62)), 0) is expected
    if frame:
        stream = memoryview(len(frame).to_bytes(4, "big") + frame + bytes(62))
        assert fastpath.pass_over(stream, 0, len(stream))[1] == (not expected)
