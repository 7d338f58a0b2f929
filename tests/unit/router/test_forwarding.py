"""Forwarding between two networks: hops, lengths, superframes, neighbours, and what is for the router itself."""

from __future__ import annotations

import random

import pytest

from gpasst.counters import Drop
from gpasst.formats import (
    NDP_ROUTER_SOLICITATION_CODEC,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    VIRTIO_NET_BLANK,
)
from gpasst.packet import checksum
from gpasst.packet.address import BROADCAST_MAC
from gpasst.packet.build import ip_packet, with_checksum, wrap, wrap_udp
from gpasst.packet.dhcp_wire import DHCP_CODEC
from gpasst.packet.frame import Frame
from gpasst.packet.segmentation import split
from gpasst.packet.superframe import VIRTIO
from gpasst.router.behaviour import ENDPOINT_INDEPENDENT, Behaviour
from gpasst.router.firewall import parse
from gpasst.router.interface import INSIDE, OUTSIDE, Route
from gpasst.router.lease import Lease
from gpasst.services import arp
from gpasst.tcp.header import Header as TcpHeader
from gpasst.udp.header import Header as UdpHeader
from gpasst.wire import (
    NDP_ADVERTISEMENT_CODEC,
    NDP_LINK_ADDRESS_CODEC,
    NDP_OPTION_TARGET_LINK_ADDRESS,
    NDP_TYPE_ADVERTISEMENT,
    TCP_ACK,
    TCP_SYN,
)
from tests.support.addresses import ip
from tests.support.routing import (
    A6,
    FAR,
    GATEWAY,
    ROUTER4,
    ROUTER6,
    ROUTER_MAC,
    S6,
    A,
    B,
    S,
    World,
    datagram,
    mac_of,
)
from tests.support.superframes import sound

PLAIN = Behaviour(mapping=None)
NAT = Behaviour()
OUT = ROUTER4[OUTSIDE]


def sent(frame: Frame, family: int) -> int:
    """Return the TTL or hop limit of a frame."""
    assert frame.ip is not None
    hops: int = frame.ip.ttl if family == 4 else frame.ip.hop_limit
    return hops


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(("family", "inside", "outside"), [(4, A, S), (6, A6, S6)])
def test_without_nat_addresses_stay(family: int, inside: str, outside: str, times: int) -> None:
    """The first datagram takes another way than those behind it."""
    world = World(PLAIN)
    for _ in range(times):
        out = world.udp(INSIDE, inside, 5000, outside, 100)
        back = world.udp(OUTSIDE, outside, 100, inside, 5000)
    for frame, ends, side in ((out, (inside, 5000, outside, 100), OUTSIDE), (back, (outside, 100, inside, 5000), 0)):
        assert frame is not None
        assert (frame.src, frame.sport, frame.dst, frame.dport) == ends
        assert frame.data[:12] == mac_of(ip(ends[2])) + ROUTER_MAC[side]
        assert sent(frame, family) == 254


def test_ipv6_is_never_translated() -> None:
    world = World(NAT)
    frame = world.udp(INSIDE, A6, 5000, S6, 100)
    assert frame is not None
    assert frame.src == A6
    assert world.udp(OUTSIDE, S6, 1, A6, 2) is not None


def test_what_is_far_goes_to_the_gateway() -> None:
    world = World(NAT)
    frame = world.udp(INSIDE, A, 5000, FAR, 100)
    assert frame is not None
    assert (frame.dst, frame.data[:6]) == (FAR, mac_of(ip(GATEWAY)))


def test_what_has_no_route_comes_back_as_an_error() -> None:
    world = World(PLAIN)
    frame = world.udp(INSIDE, A6, 5000, "2001:db8:ffff::1", 100)
    assert frame is not None
    assert frame.icmp is not None
    assert (frame.icmp.type, frame.icmp.code, frame.src, frame.dst) == (1, 0, ROUTER6[INSIDE], A6)
    assert world.drops(Drop.NO_ROUTE) == 1


@pytest.mark.parametrize("behaviour", [PLAIN, NAT])
@pytest.mark.parametrize("known", [False, True])
def test_a_packet_without_hops_left_is_reported(behaviour: Behaviour, known: bool) -> None:
    world = World(behaviour)
    if known:
        world.udp(INSIDE, A, 5000, S, 100)
        world.last(OUTSIDE)
    packet = ip_packet(ip(A), ip(S), PROTOCOL_UDP, datagram(A, 5000, S, 100), hop_limit=1)
    world.take(INSIDE, ROUTER_MAC[INSIDE] + mac_of(ip(A)) + b"\x08\x00" + packet)
    assert world.last(OUTSIDE) is None
    frame = world.last(INSIDE)
    assert frame is not None
    assert frame.icmp is not None
    assert (frame.icmp.type, frame.icmp.code, frame.src, frame.dst) == (11, 0, ROUTER4[INSIDE], A)
    assert frame.data[42:] == packet, "it quotes the packet as it was sent"
    assert world.drops(Drop.HOP_LIMIT) == 1


def test_options_of_ipv4_cross() -> None:
    """Nothing reads them; the transport header stands behind them."""
    world = World(NAT)
    plain = ip_packet(ip(A), ip(S), PROTOCOL_UDP, datagram(A, 5000, S, 100))
    header = bytearray(plain[:20] + b"\x01\x01\x01\x00")
    header[0], header[3], header[10:12] = 0x46, len(plain) + 4, bytes(2)
    header[10:12] = checksum.internet(header).to_bytes(2, "big")
    for _ in range(2):
        world.take(INSIDE, ROUTER_MAC[INSIDE] + mac_of(ip(A)) + b"\x08\x00" + header + plain[20:])
        (frame,) = world.received[OUTSIDE]
        world.received[OUTSIDE].clear()
        assert checksum.ones_sum(frame.data[14:38]) == checksum.ONES
        assert frame.data[34:38] == b"\x01\x01\x01\x00"
        assert frame.data[38:] == datagram(OUT, 5000, S, 100)


def test_extension_headers_of_ipv6_cross() -> None:
    world = World(Behaviour(mapping=None, firewall=(parse("allow out udp 100"), parse("drop out"))))
    for port, crosses in ((100, True), (101, False)):
        packet = ip_packet(ip(A6), ip(S6), 60, b"\x11\0\1\4\0\0\0\0" + datagram(A6, 5000, S6, port))
        world.take(INSIDE, ROUTER_MAC[INSIDE] + mac_of(ip(A6)) + b"\x86\xdd" + packet)
        frame = world.last(OUTSIDE)
        assert (frame is not None) is crosses
        if frame is not None:
            assert (frame.dport, frame.data[54:]) == (port, packet[40:])


# --- Superframes --------------------------------------------------------------------------------------------


def superframe(protocol: int, family: int, payload: bytes, segment: int) -> bytes:
    """Return a superframe of an inside host, from its virtio-net header on."""
    source, destination = (A, S) if family == 4 else (A6, S6)
    macs = ROUTER_MAC[INSIDE], mac_of(ip(source))
    if protocol == PROTOCOL_UDP:
        header = UdpHeader(family, *macs, ip(source), ip(destination), 5000, 100)
        return bytes(header.fill(len(payload), segment)) + payload
    key = ip(destination) + ip(source) + (100).to_bytes(2, "big") + (5000).to_bytes(2, "big")
    segments = TcpHeader(*macs, key)
    segments.prepare(7, 9, TCP_ACK, 999)
    return bytes(segments.fill(len(payload), segment)) + payload


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("behaviour", [PLAIN, NAT, Behaviour(port_preservation=False)])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", [PROTOCOL_UDP, PROTOCOL_TCP])
def test_superframes_cross_whole(protocol: int, family: int, behaviour: Behaviour, times: int) -> None:
    world = World(behaviour)
    payload = random.Random(1).randbytes(30_000)
    data = superframe(protocol, family, payload, 1400)
    for _ in range(times):
        world.raw[OUTSIDE].clear()
        world.router.receive(INSIDE, memoryview(data), world.now)
    (whole,) = world.raw[OUTSIDE]
    assert len(whole) == len(data)
    assert whole[:VIRTIO] == data[:VIRTIO]
    frames = list(split(whole))
    assert len(frames) == 22
    assert all(map(sound, frames))
    assert b"".join(Frame(frame, True).payload for frame in frames) == payload
    first = Frame(frames[0], True)
    translated = family == 4 and behaviour.mapping is not None
    assert first.src == (OUT if translated else A if family == 4 else A6)
    assert (first.sport == 5000) is (behaviour.port_preservation or not translated)


@pytest.mark.parametrize("protocol", [PROTOCOL_UDP, PROTOCOL_TCP])
def test_a_superframe_whose_segments_are_too_long_is_refused(protocol: int) -> None:
    world = World(NAT, mtus=(1500, 1280))
    world.router.receive(INSIDE, memoryview(superframe(protocol, 6, bytes(5000), 1400)), world.now)
    frame = world.last(INSIDE)
    assert frame is not None
    assert frame.icmp is not None
    assert frame.icmp.type == 2
    assert int.from_bytes(frame.data[58:62], "big") == 1280
    assert world.drops(Drop.MESSAGE_SIZE) == 1


def test_a_superframe_that_may_be_fragmented_is_cut_and_fragmented() -> None:
    world = World(NAT, mtus=(1500, 1000))
    payload = random.Random(2).randbytes(3000)
    world.router.receive(INSIDE, memoryview(superframe(PROTOCOL_UDP, 4, payload, 1400)), world.now)
    assert [len(data) - 24 for data in world.raw[OUTSIDE]] == [996, 452, 996, 452, 228]


@pytest.mark.parametrize("flags", [0, 2])
def test_what_is_longer_than_the_next_link_allows(flags: int) -> None:
    """RFC 4787, REQ-13; RFC 1191: fragments, or "fragmentation needed" where the sender forbids them."""
    world = World(NAT, mtus=(1500, 600))
    packet = ip_packet(ip(A), ip(S), PROTOCOL_UDP, datagram(A, 5000, S, 100, bytes(1400)), flags=flags)
    world.take(INSIDE, ROUTER_MAC[INSIDE] + mac_of(ip(A)) + b"\x08\x00" + packet)
    if flags:
        frame = world.last(INSIDE)
        assert frame is not None
        assert frame.icmp is not None
        assert (frame.icmp.type, frame.icmp.code, int.from_bytes(frame.data[40:42], "big")) == (3, 4, 600)
    else:
        sizes = [len(data) - 24 for data in world.raw[OUTSIDE]]
        assert sizes == [596, 596, 276]
        assert all(size <= 600 for size in sizes)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("behaviour", [PLAIN, NAT])
def test_fragments_cross(behaviour: Behaviour, order: int) -> None:
    """RFC 4787, REQ-14: in any order. Without NAT nothing has to know their ports."""
    narrow, world = World(PLAIN, mtus=(1500, 600)), World(behaviour)
    packet = ip_packet(ip(A), ip(S), PROTOCOL_UDP, datagram(A, 5000, S, 100, bytes(1400)))
    narrow.take(INSIDE, ROUTER_MAC[INSIDE] + mac_of(ip(A)) + b"\x08\x00" + packet)
    pieces = narrow.raw[OUTSIDE]
    assert len(pieces) == 3
    for piece in pieces[::order]:
        world.take(INSIDE, ROUTER_MAC[INSIDE] + mac_of(ip(A)) + piece[22:])
    if behaviour is PLAIN:
        assert [len(data) for data in world.raw[OUTSIDE]] == [len(data) for data in pieces[::order]]
    else:
        frame = world.last(OUTSIDE)
        assert frame is not None
        assert (frame.src, frame.sport, frame.payload) == (OUT, 5000, bytes(1400))


def test_fragments_whose_rest_never_comes_are_dropped() -> None:
    world = World(NAT)
    packet = bytearray(ip_packet(ip(A), ip(S), PROTOCOL_UDP, bytes(64)))
    packet[6] = 0x20
    world.take(INSIDE, ROUTER_MAC[INSIDE] + mac_of(ip(A)) + b"\x08\x00" + packet)
    world.passes(40)
    assert world.drops(Drop.FRAGMENT_TIMEOUT) == 1
    assert world.router.due is None


# --- Neighbours ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "missing", "kind"), [(A, "198.51.100.99", (3, 1)), (A6, "2001:db8::99", (1, 3))])
def test_a_neighbour_that_does_not_answer_is_reported(source: str, missing: str, kind: tuple[int, int]) -> None:
    world = World(PLAIN)
    for _ in range(20):
        world.udp(INSIDE, source, 5000, missing, 100)
    assert world.drops(Drop.NEIGHBOUR_QUEUE) == 4
    assert world.asked == [ip(missing)]
    world.passes(2.9)
    assert not world.received[INSIDE]
    assert world.asked == 3 * [ip(missing)]
    world.passes(0.2)
    assert world.drops(Drop.NO_NEIGHBOUR) == 16
    frame = world.last(INSIDE)
    assert frame is not None
    assert frame.icmp is not None
    assert (frame.icmp.type, frame.icmp.code, frame.dst) == (*kind, source)
    assert world.router.due is None


def test_a_neighbour_that_is_silent_is_asked_again_and_forgotten() -> None:
    world = World(PLAIN)
    world.routes.add(Route("203.0.113.0/24", OUTSIDE, ip("198.51.100.99")))
    # Its own request makes it known.
    silent = ip("198.51.100.99")
    world.take(OUTSIDE, arp.request(mac_of(silent), silent, ip(OUT)))
    assert world.udp(INSIDE, A, 5000, FAR, 100) is not None
    world.passes(31)
    for _ in range(3):
        world.udp(INSIDE, A, 5000, FAR, 100)
        world.passes(1.1)
    world.udp(INSIDE, A, 5000, FAR, 100)
    assert world.asked == 4 * [silent]
    assert not world.received[OUTSIDE]
    world.passes(3.1)
    assert world.drops(Drop.NO_NEIGHBOUR) == 1


@pytest.mark.parametrize("lie", [ROUTER_MAC[OUTSIDE], BROADCAST_MAC, bytes(6)])
def test_a_neighbour_has_an_address_of_its_own(lie: bytes) -> None:
    world = World(PLAIN)
    for target in (S, S6):
        family = 4 if target == S else 6
        source = A if family == 4 else A6
        assert world.udp(INSIDE, source, 5000, target, 100) is not None
        if family == 4:
            world.take(OUTSIDE, arp.request(lie, ip(S), ip(OUT)))
        else:
            answer = NDP_ADVERTISEMENT_CODEC.pack(type=NDP_TYPE_ADVERTISEMENT, flags=0x60, target=ip(S6))
            answer += NDP_LINK_ADDRESS_CODEC.pack(type=NDP_OPTION_TARGET_LINK_ADDRESS, mac=lie)
            router = ip(ROUTER6[OUTSIDE])
            complete = with_checksum(answer, 2, ip(S6), router, PROTOCOL_ICMPV6)
            world.take(OUTSIDE, wrap(ROUTER_MAC[OUTSIDE], mac_of(ip(S6)), ip(S6), router, PROTOCOL_ICMPV6, complete))
        frame = world.udp(INSIDE, source, 5001, target, 100)
        assert frame is not None
        assert frame.data[:6] == mac_of(ip(target))
    assert world.drops(Drop.SOURCE_ADDRESS) == 2


# --- The router itself --------------------------------------------------------------------------------------


def test_a_port_of_the_router_is_closed() -> None:
    world = World(NAT)
    frame = world.udp(INSIDE, A, 5000, ROUTER4[INSIDE], 53)
    assert frame is not None
    assert frame.icmp is not None
    assert (frame.icmp.type, frame.icmp.code) == (3, 3)
    frame = world.tcp(INSIDE, A, 5000, ROUTER4[INSIDE], 53, TCP_SYN)
    assert frame is not None
    assert frame.flags == "rst,ack"


def test_the_router_advertises_its_prefix_to_inside_hosts_that_ask() -> None:
    world = World(PLAIN)
    solicitation = with_checksum(
        NDP_ROUTER_SOLICITATION_CODEC.pack(type=133), 2, ip("fe80::9"), ip("ff02::2"), PROTOCOL_ICMPV6
    )
    frame = wrap(bytes.fromhex("333300000002"), mac_of(ip(A)), ip("fe80::9"), ip("ff02::2"), 58, solicitation)
    world.take(INSIDE, frame)
    assert world.last(INSIDE) is None, "one that is configured would have a second default route"
    world.leases[mac_of(ip(A))] = Lease()
    world.take(OUTSIDE, frame)
    assert world.last(OUTSIDE) is None
    world.take(INSIDE, frame)
    answer = world.last(INSIDE)
    assert answer is not None
    assert answer.icmp is not None
    assert (answer.icmp.type, answer.src) == (134, "fe80::67:aff:fe4d:101")
    assert ip("fd77:0:0:1::") in answer.data


def test_a_solicitation_with_a_code_is_malformed() -> None:
    """RFC 4861, section 6.1.1: as for the proxy, whose rule it is."""
    world = World(PLAIN)
    world.leases[mac_of(ip(A))] = Lease()
    message = NDP_ROUTER_SOLICITATION_CODEC.pack(type=133)
    source, group = ip("fe80::9"), ip("ff02::2")
    coded = with_checksum(message[:1] + b"\1" + message[2:], 2, source, group, PROTOCOL_ICMPV6)
    world.take(INSIDE, wrap(bytes.fromhex("333300000002"), mac_of(ip(A)), source, group, 58, coded))
    assert world.last(INSIDE) is None
    assert world.drops(Drop.MALFORMED_NDP) == 1


def discover(world: World) -> Frame | None:
    """Let an inside host without address ask for one."""
    mac = mac_of(ip(A))
    message = DHCP_CODEC.pack(operation=1, transaction=7, client_mac=mac.ljust(16, b"\0")) + bytes.fromhex(
        "63825363 350101 ff"
    )
    ends = ip("0.0.0.0"), ip("255.255.255.255"), 68, 67
    world.take(INSIDE, wrap_udp(BROADCAST_MAC, mac, *ends, message))
    return world.last(INSIDE)


def test_a_host_that_asks_has_its_address_by_dhcp() -> None:
    world = World(NAT)
    assert discover(world) is None
    world.leases[mac_of(ip(A))] = Lease()
    assert discover(world) is None
    assert world.drops(Drop.SERVICE) == 2
    world.leases[mac_of(ip(A))] = Lease(ip(A), (ip(S),))
    offer = discover(world)
    assert offer is not None
    assert (offer.src, offer.sport, offer.dport) == (ROUTER4[INSIDE], 67, 68)
    assert DHCP_CODEC.unpack_from(offer.payload)["yours"] == ip(A)
    for option in (b"\x35\x01\x02", b"\x03\x04" + ip(ROUTER4[INSIDE]), b"\x06\x04" + ip(S)):
        assert option in offer.payload


@pytest.mark.parametrize("destination", ["224.0.0.251", "255.255.255.255", "10.77.1.255"])
def test_groups_are_not_forwarded(destination: str) -> None:
    world = World(PLAIN)
    world.udp(INSIDE, A, 5000, destination, 5353)
    assert not world.received[INSIDE]
    assert not world.received[OUTSIDE]
    assert world.drops(Drop.NOT_FORWARDED) == 1
    assert world.counters.snapshot(0, 0, 0, 0).drops == {}


@pytest.mark.parametrize("behaviour", [PLAIN, NAT], ids=["plain", "NAT"])
@pytest.mark.parametrize("source", ROUTER4)
def test_what_claims_to_come_from_the_router_is_dropped(behaviour: Behaviour, source: str) -> None:
    """Its answer would be for the router, which would ask its neighbours for its own address."""
    world = World(behaviour)
    assert world.udp(INSIDE, source, 5000, S, 53) is None
    assert world.udp(INSIDE, source, 5000, ROUTER4[OUTSIDE], 5000) is None
    assert world.drops(Drop.OWN_ADDRESS) == 2
    assert world.router.due is None


def test_frames_for_others_are_not_taken() -> None:
    """A switch floods what it has not learned yet."""
    world = World(PLAIN)
    world.take(INSIDE, wrap(mac_of(ip(B)), mac_of(ip(A)), ip(A), ip(S), PROTOCOL_UDP, datagram(A, 1, S, 2)))
    assert not world.received[OUTSIDE]


def test_any_bytes_are_taken() -> None:
    """Whatever a guest sends, nothing but a drop follows."""
    chance = random.Random(3)
    world = World(Behaviour(ENDPOINT_INDEPENDENT))
    base = [
        superframe(PROTOCOL_TCP, 4, bytes(3000), 1000),
        superframe(PROTOCOL_UDP, 6, bytes(3000), 1000),
        VIRTIO_NET_BLANK + wrap(ROUTER_MAC[0], mac_of(ip(A)), ip(A), ip(S), PROTOCOL_UDP, datagram(A, 1, S, 2)),
        VIRTIO_NET_BLANK + arp.request(mac_of(ip(A)), ip(A), ip(ROUTER4[0])),
    ]
    for number in range(20_000):
        data = bytearray(chance.choice(base))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(min(len(data), 120))] = chance.randrange(256)
        cut = data[: chance.randrange(VIRTIO, len(data) + 1)] if chance.random() < 0.3 else data
        world.router.receive(number & 1, memoryview(cut), world.now)
        for frames in (*world.received, *world.raw):
            frames.clear()


def test_a_table_of_flows_that_is_full_refuses_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpasst.router.session.LIMIT", 10)
    world = World(NAT)
    assert [world.udp(INSIDE, A, port, S, 100) is not None for port in range(1, 13)] == [True] * 10 + [False] * 2
    assert world.drops(Drop.SESSIONS_FULL) == 2
    world.passes(121)
    assert world.udp(INSIDE, A, 11, S, 100) is not None


def test_due_is_nothing_where_nothing_waits() -> None:
    world = World(PLAIN)
    world.udp(INSIDE, A, 5000, S, 100)
    assert world.router.due is None
