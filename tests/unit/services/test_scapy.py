"""Every frame that services and headers build, read and built again by scapy: a second opinion on all of their bytes.

DHCP, DHCPv6 and ICMP errors have theirs beside their other tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from gpasst.formats import ECHO_CODEC, TCP_CODEC, VIRTIO_NET_CODEC
from gpasst.services import arp, echo, ndp
from gpasst.tcp import reset
from gpasst.udp.header import Header
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST4, GUEST6, GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES
from tests.support.need import need_module
from tests.support.questions import (
    GUEST,
    REPLY,
    SERVER,
    TCP,
    packet,
    request,
    router,
    router_solicitation,
    solicitation,
    theirs,
)

COMPUTED = ("chksum", "cksum", "len", "plen", "dataofs", "ihl")


@pytest.fixture
def scapy() -> Any:
    for name in ("scapy.layers.inet", "scapy.layers.inet6"):
        need_module(name)
    return need_module("scapy.all")


def read(scapy: Any, frame: bytes | bytearray | None) -> Any:
    """Let scapy take a frame apart, and build it again with lengths and checksums of its own: the same bytes."""
    assert frame is not None
    taken = scapy.Ether(bytes(frame))
    layer = taken
    while layer:
        for name in COMPUTED:
            if name in getattr(layer, "fields", {}):
                delattr(layer, name)
        layer = layer.payload
    assert scapy.raw(taken) == bytes(frame)
    again = scapy.Ether(bytes(frame))
    assert not again.haslayer("Raw") or again.haslayer("UDP") or again.haslayer("ICMP")
    return again


def test_arp(scapy: Any) -> None:
    answer = read(scapy, arp.answer(request(GATEWAY4), HOST_MAC, theirs))["ARP"]
    assert (answer.op, answer.psrc, answer.pdst) == (2, GATEWAY4, GUEST4)
    assert (answer.hwsrc, answer.hwdst) == (HOST_MAC.hex(":"), GUEST_MAC.hex(":"))
    asked = read(scapy, arp.request(HOST_MAC, ip(GATEWAY4), ip(GUEST4)))
    assert (asked.dst, asked["ARP"].op, asked["ARP"].pdst) == ("ff:ff:ff:ff:ff:ff", 1, GUEST4)


def test_neighbour_advertisement_and_solicitation(scapy: Any) -> None:
    answer = read(scapy, ndp.answer(router(), solicitation(GATEWAY6), GUEST_MAC, theirs))
    message = answer["ICMPv6 Neighbor Discovery - Neighbor Advertisement"]
    assert (message.tgt, message.R, message.S, message.O) == (GATEWAY6, 1, 1, 1)
    assert message["ICMPv6NDOptDstLLAddr"].lladdr == HOST_MAC.hex(":")
    asked = read(scapy, ndp.solicitation(router().network, ip(GUEST_LINK_LOCAL)))
    assert asked["ICMPv6 Neighbor Discovery - Neighbor Solicitation"].tgt == GUEST_LINK_LOCAL
    assert (asked["IPv6"].hlim, asked["IPv6"].dst) == (255, "ff02::1:ff12:3456")


def test_router_advertisement(scapy: Any) -> None:
    described = router(resolvers=(ip("2001:db8::53"), ip("2001:db8::54")))
    for frame in (ndp.answer(described, router_solicitation(), GUEST_MAC, theirs), ndp.unsolicited(described)):
        message = read(scapy, frame)["ICMPv6 Neighbor Discovery - Router Advertisement"]
        assert (message.chlim, message.M, message.routerlifetime) == (255, 1, 65535)
        assert message["ICMPv6NDOptPrefixInfo"].prefixlen == 64
        assert message["ICMPv6NDOptMTU"].mtu == described.mtu
        assert message["ICMPv6NDOptRDNSS"].dns == ["2001:db8::53", "2001:db8::54"]
        assert message["ICMPv6NDOptSrcLLAddr"].lladdr == HOST_MAC.hex(":")


@FAMILIES
def test_reset(scapy: Any, family: int) -> None:
    segment = TCP_CODEC.pack(source=50000, destination=80, sequence=1000, acknowledgement=0, flags=2, window=99)
    answer = read(scapy, reset.reset(packet(family, TCP, segment), GUEST_MAC, HOST_MAC))
    assert (answer["TCP"].sport, answer["TCP"].dport, str(answer["TCP"].flags)) == (80, 50000, "RA")
    assert answer["TCP"].ack == 1001


@FAMILIES
@pytest.mark.parametrize("data", [b"", b"odd", b"even"])
def test_echo(scapy: Any, family: int, data: bytes) -> None:
    kernels = ECHO_CODEC.pack(type=REPLY[family], identifier=7, sequence=3) + data
    answer = read(scapy, echo.reply(kernels, 99, ip(SERVER[family]), ip(GUEST[family]), GUEST_MAC, HOST_MAC))
    message = answer["ICMP" if family == 4 else "ICMPv6EchoReply"]
    assert (message.id, message.seq) == (99, 3)
    assert answer.src == HOST_MAC.hex(":")


@FAMILIES
@pytest.mark.parametrize("data", [b"", b"odd", b"even", bytes(1472)])
@pytest.mark.parametrize("tos_ttl", [255, 64, 0xB801])
def test_datagram(scapy: Any, family: int, data: bytes, tos_ttl: int) -> None:
    guest = ip(GUEST4 if family == 4 else GUEST6)
    header = Header(family, GUEST_MAC, HOST_MAC, ip(SERVER[family]), guest, 53, 40000)
    header.set_tos_ttl(tos_ttl)
    frame = bytes(header.fill_complete(data))[VIRTIO_NET_CODEC.size :] + data
    taken = scapy.Ether(frame)
    if family == 4:
        # Left out over IPv4 (RFC 768); scapy would compute it.
        assert taken["UDP"].chksum == 0
        del taken["IP"].chksum, taken["IP"].len, taken["UDP"].len
        assert scapy.raw(taken) == frame
        assert (taken["IP"].tos, taken["IP"].ttl) == (tos_ttl >> 8, tos_ttl & 0xFF)
    else:
        read(scapy, frame)
        assert (taken["IPv6"].tc, taken["IPv6"].hlim) == (tos_ttl >> 8, tos_ttl & 0xFF)
    assert (taken["UDP"].sport, taken["UDP"].dport) == (53, 40000)
    assert scapy.raw(taken["UDP"].payload) == data
