"""The flows of frames, as rules name them: what the fast look finds is what a parser finds (under 2 s)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.formats import (
    IPV4_MORE_FRAGMENTS,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_ACK,
    TCP_CODEC,
    TCP_SYN,
    UDP_CODEC,
    VIRTIO_NET_BLANK,
)
from gpasst.link.flows import FLOWS_KEPT, Flows
from gpasst.packet.build import ip_packet
from gpasst.packet.frame import Frame
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.families import FAMILIES
from tests.support.superframes import GUEST, SOURCE, tcp_superframe, udp_superframe

VIRTIO = len(VIRTIO_NET_BLANK)
MACS = GUEST_MAC + HOST_MAC
ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
LEAD = 7  # bytes before a frame in its buffer
TCP_FIELDS = ("source", "destination", "sequence", "acknowledgement", "window")


def found(data: bytes) -> tuple[str, int, bytes, bytes, int, int, int]:
    """Return what the flow of a frame says, and its flags, wherever the frame lies."""
    flows = Flows()
    flow, flags = flows.find(data, 0, len(data))
    again, flags_again = flows.find(memoryview(b"x" * LEAD + data + b"\xff" * 99), LEAD, LEAD + len(data))
    assert again is flow
    assert flags_again == flags
    return flow.protocol, flow.family, flow.source, flow.destination, flow.sport, flow.dport, flags


def packet(family: int, protocol: int, payload: bytes, flags: int = 0) -> bytes:
    source, destination = SOURCE[family], GUEST[family]
    body = ip_packet(source, destination, protocol, payload, flags=flags)
    return VIRTIO_NET_BLANK + MACS + ETHERTYPE[family] + body


def udp(source: int, destination: int) -> bytes:
    return UDP_CODEC.pack(source=source, destination=destination, length=8, checksum=0)


@FAMILIES
def test_a_run_has_the_flow_and_flags_of_its_header(family: int) -> None:
    ends = family, SOURCE[family], GUEST[family]
    assert found(udp_superframe(family, bytes(3000), 1000)) == ("udp", *ends, 123, 33000, 0)
    assert found(tcp_superframe(family, bytes(3000), 1000))[-1] == TCP_ACK


@FAMILIES
def test_a_bare_segment_has_flags(family: int) -> None:
    fields = {"source": 1, "destination": 2, "sequence": 3, "acknowledgement": 4, "window": 5}
    segment = TCP_CODEC.pack(flags=TCP_SYN, checksum=0, **fields)
    assert found(packet(family, PROTOCOL_TCP, segment))[0] == "tcp"
    assert found(packet(family, PROTOCOL_TCP, segment))[-3:] == (1, 2, TCP_SYN)


@pytest.mark.parametrize(
    ("family", "source", "destination", "name"),
    [(4, 68, 67, "dhcp"), (4, 67, 68, "dhcp"), (6, 546, 547, "dhcp"), (4, 68, 69, "udp"), (6, 67, 68, "udp")],
)
def test_address_clients_are_told_apart(family: int, source: int, destination: int, name: str) -> None:
    assert found(packet(family, PROTOCOL_UDP, udp(source, destination)))[0] == name


@pytest.mark.parametrize(
    ("family", "kind", "name"), [(4, 8, "icmp"), (6, 128, "icmp"), (6, 135, "ndp"), (6, 143, "ndp"), (6, 1, "icmp")]
)
def test_neighbour_discovery_is_no_icmp(family: int, kind: int, name: str) -> None:
    protocol = PROTOCOL_ICMP if family == 4 else PROTOCOL_ICMPV6
    assert found(packet(family, protocol, bytes((kind,)) + bytes(7)))[0] == name


def test_only_the_first_fragment_has_ports() -> None:
    first = packet(4, PROTOCOL_UDP, udp(1, 2) + bytes(8), flags=IPV4_MORE_FRAGMENTS)
    assert found(first)[:1] + found(first)[4:6] == ("udp", 1, 2)
    later = bytearray(first)
    later[VIRTIO + 14 + 6 : VIRTIO + 14 + 8] = (2).to_bytes(2, "big")
    assert found(bytes(later))[:1] + found(bytes(later))[4:6] == ("udp", 0, 0)


def test_both_directions_are_two_flows_and_protocols_do_not_mix() -> None:
    flows = Flows()
    data = udp_superframe(4, b"x", 1)
    tcp = tcp_superframe(4, b"x", 1)
    seen = {id(flows.find(frame, 0, len(frame))[0]) for frame in (data, tcp, data)}
    assert len(seen) == 2


def test_a_guest_cannot_fill_the_memory() -> None:
    flows = Flows()
    for number in range(FLOWS_KEPT + 2):
        frame = packet(4, PROTOCOL_UDP, udp(number & 0xFFFF, 9))
        flows.find(frame, 0, len(frame))
    frame = packet(4, PROTOCOL_UDP, udp(1, 9))
    assert flows.find(frame, 0, len(frame))[0].dport == 9


@given(st.binary(max_size=90), st.sampled_from([b"", *ETHERTYPE.values(), b"\x08\x06"]))
def test_any_frame_has_the_flow_that_its_parsed_form_has(frame: bytes, ethertype: bytes) -> None:
    frame = (MACS + ethertype if ethertype else b"") + frame
    protocol, family, source, destination, sport, dport, _ = found(VIRTIO_NET_BLANK + frame)
    parsed = Frame(frame, True)
    if parsed.protocol not in ("other", "arp"):
        assert (protocol, family, source, destination, sport, dport) == (
            parsed.protocol,
            parsed.family,
            parsed.source,
            parsed.destination,
            parsed.sport,
            parsed.dport,
        )


PORTS = (9, 67, 68, 546, 547)
PAYLOADS = {
    PROTOCOL_UDP: [udp(source, destination) for source in PORTS for destination in PORTS],
    PROTOCOL_TCP: [TCP_CODEC.pack(flags=TCP_ACK, checksum=0, **dict.fromkeys(TCP_FIELDS, 67))],
    PROTOCOL_ICMP: [bytes((kind,)) + bytes(7) for kind in range(256)],
    PROTOCOL_ICMPV6: [bytes((kind,)) + bytes(7) for kind in range(256)],
    47: [bytes(8)],
}


@pytest.mark.parametrize(("family", "place"), [(6, "whole"), (4, "whole"), (4, "first"), (4, "later")])
@pytest.mark.parametrize("protocol", PAYLOADS)
def test_rules_and_filters_call_a_packet_by_one_name(family: int, protocol: int, place: str) -> None:
    for payload in PAYLOADS[protocol]:
        data = bytearray(packet(family, protocol, payload, flags=0 if place == "whole" else IPV4_MORE_FRAGMENTS))
        if place == "later":
            data[VIRTIO + 14 + 7] = 1
        assert found(bytes(data))[0] == Frame(bytes(data[VIRTIO:]), True).protocol
