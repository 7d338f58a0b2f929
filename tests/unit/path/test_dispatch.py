"""Where frames go: to the handler of their protocol, whole, or nowhere for a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.packet.parse import Packet
from gpasst.packet.reassembly import LIFETIME
from gpasst.path.dispatch import Dispatch
from tests.support import scripted
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.bench import GATEWAY, GUEST, NOW, udp_frame
from tests.support.families import FAMILIES
from tests.support.networks import guest_network

UDP, TCP = 17, 6
PROTOCOL = {4: 14 + 9, 6: 14 + 6}  # offset in a frame
OTHER_MAC = bytes.fromhex("525400000002")


class Case:
    """A dispatcher with handlers that keep what they are given."""

    def __init__(self, families: tuple[int, ...] = (4, 6)) -> None:
        network = guest_network()
        network = replace(
            network, ip4=network.ip4 if 4 in families else None, ip6=network.ip6 if 6 in families else None
        )
        self.guest = Guest(network, GUEST_MAC)
        self.counters = Counters()
        self.arps: list[bytes] = []
        self.packets: list[Packet] = []
        self.now = NOW
        self.recorder: Any = None
        self.noted: list[tuple[bytes, Drop]] = []
        handlers = {(family, UDP): self.keep for family in (4, 6)}
        self.dispatch = Dispatch(
            self.guest,
            lambda payload: self.arps.append(bytes(payload)),
            handlers,
            self.counters,
            lambda: self.now,
            self,
        )

    def note(self, frame: memoryview, reason: Drop) -> None:
        """Take note of a dropped frame, in the place of a recorder."""
        self.noted.append((bytes(frame), reason))

    def keep(self, packet: Packet) -> None:
        if bytes(packet.payload[8:]) == b"refuse":
            raise PacketError(Drop.HAIRPIN)
        self.packets.append(replace(packet, payload=memoryview(bytes(packet.payload))))

    def take(self, *frames: bytes, segment: int = 0) -> None:
        for frame in frames:
            self.dispatch.frame(memoryview(frame), segment)


@FAMILIES
def test_a_packet_goes_to_the_handler_of_its_protocol(family: int) -> None:
    case = Case()
    case.take(udp_frame(family, 1, 2, b"data"))
    (packet,) = case.packets
    assert (packet.family, packet.protocol, packet.segment) == (family, UDP, 0)
    assert (packet.source, packet.destination) == (ip(GUEST[family]), ip(GATEWAY[family]))
    assert bytes(packet.payload[8:]) == b"data"
    assert case.counters.drops == {}


def test_the_reason_of_a_drop_is_noted_while_somebody_records() -> None:
    case = Case()
    refused = udp_frame(4, 1, 2, b"refuse")
    case.take(refused)
    case.recorder = case
    case.take(udp_frame(4, 1, 2, b"data"), refused, b"short")
    assert case.noted == [(refused, Drop.HAIRPIN), (b"short", Drop.FRAME_SHORT)]


@FAMILIES
def test_a_superframe_keeps_the_size_of_its_segments(family: int) -> None:
    case = Case()
    case.take(udp_frame(family, 1, 2, bytes(3000)), segment=1000)
    assert case.packets[0].segment == 1000


def test_arp_has_a_handler_of_its_own() -> None:
    case = Case()
    case.take(HOST_MAC + GUEST_MAC + b"\x08\x06" + b"question")
    assert (case.arps, case.packets) == ([b"question"], [])


@FAMILIES
def test_a_protocol_without_handler_is_dropped(family: int) -> None:
    case = Case()
    frame = bytearray(udp_frame(family, 1, 2, b"data"))
    frame[PROTOCOL[family]] = TCP
    if family == 4:
        frame[14 + 10 : 14 + 12] = b"\0\0"
    case.take(bytes(frame))
    assert case.packets == []
    assert case.counters.drops == {Drop.PROTOCOL: 1}


@FAMILIES
def test_what_a_handler_refuses_is_counted_under_its_reason(family: int) -> None:
    case = Case()
    case.take(udp_frame(family, 1, 2, b"refuse"), udp_frame(family, 1, 2, b"good"))
    assert case.counters.drops == {Drop.HAIRPIN: 1}
    assert len(case.packets) == 1


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", Drop.FRAME_SHORT),
        (bytes(13), Drop.FRAME_SHORT),
        (bytes(12) + b"\x88\xcc", Drop.ETHERTYPE),
        (bytes(12) + b"\x08\x00", Drop.MALFORMED_IP),
        (bytes(12) + b"\x86\xdd" + bytes(10), Drop.MALFORMED_IP),
    ],
)
def test_frames_that_are_none(frame: bytes, reason: Drop) -> None:
    case = Case()
    case.take(frame)
    assert case.counters.drops == {reason: 1}


@pytest.mark.parametrize(("enabled", "disabled"), [(4, 6), (6, 4)])
def test_a_family_that_is_switched_off(enabled: int, disabled: int) -> None:
    case = Case((enabled,))
    case.take(udp_frame(disabled, 1, 2, b"?"), udp_frame(enabled, 1, 2, b"?"))
    assert [packet.family for packet in case.packets] == [enabled]
    assert case.counters.drops == {Drop.FAMILY_DISABLED: 1}


def test_without_ipv4_there_is_no_arp() -> None:
    case = Case((6,))
    case.take(HOST_MAC + OTHER_MAC + b"\x08\x06" + b"question")
    assert case.arps == []
    assert case.counters.drops == {Drop.FAMILY_DISABLED: 1}
    assert case.guest.mac == GUEST_MAC, "nothing is learned from it"


def test_the_guests_mac_address_is_that_of_its_last_frame() -> None:
    case = Case()
    before = case.guest.mac
    case.take(udp_frame(4, 1, 2, b"?"))
    assert case.guest.mac is before, "it stays one object, which its users rely on"
    case.take(HOST_MAC + OTHER_MAC + udp_frame(4, 1, 2, b"?")[12:])
    assert case.guest.mac == OTHER_MAC


@FAMILIES
@pytest.mark.parametrize("backwards", [False, True])
def test_fragments_are_handled_as_the_whole_that_they_are(family: int, backwards: bool) -> None:
    case = Case()
    payload = bytes(at * 7 & 0xFF for at in range(5000))
    packets = scripted.udp_packets(GUEST[family], 1, GATEWAY[family], 2, payload, 1280)
    frames = [HOST_MAC + GUEST_MAC + packet for packet in packets]
    assert len(frames) > 3
    case.take(*(reversed(frames) if backwards else frames))
    (packet,) = case.packets
    assert bytes(packet.payload[8:]) == payload
    assert packet.fragment is None


@FAMILIES
def test_fragments_whose_rest_does_not_come_are_dropped(family: int) -> None:
    case = Case()
    packets = scripted.udp_packets(GUEST[family], 1, GATEWAY[family], 2, bytes(5000), 1280)
    case.take(*(HOST_MAC + GUEST_MAC + packet for packet in packets[:2]))
    case.dispatch.scan(NOW + LIFETIME)
    assert case.counters.drops == {}
    case.dispatch.scan(NOW + LIFETIME + 1)
    assert case.counters.drops == {Drop.FRAGMENT_TIMEOUT: 1}
    assert case.packets == []
