"""Services of passt mode, as scapy asks for them and reads what they answer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

import gpasst
from tests.support.families import FAMILY
from tests.support.lab import FAR4, FAR6, HOST4, HOST6, REMOTE4, REMOTE6, Remote, bound
from tests.support.need import need_module
from tests.support.passt import EPHEMERAL, greeted
from tests.support.scripted import ARP, BROADCAST, HOST_MAC, MAC, Guest, udp_packets

pytestmark = pytest.mark.usefixtures("remote")


@pytest.fixture
def scapy() -> Any:
    return need_module("scapy.layers.all")


def ask(guest: Guest, scapy: Any, packet: Any, answer: str) -> Any:
    """Send a packet of scapy's, and read up to a frame that has the layer `answer`."""
    frame = bytes(scapy.Ether(src=guest.mac.hex(":"), dst=HOST_MAC.hex(":")) / packet)
    guest.send(frame[12:])
    return scapy.Ether(guest.await_frame(lambda read: answer in scapy.Ether(read)))


def test_a_guest_is_asked_who_it_is(link: gpasst.Passt, scapy: Any) -> None:
    for _ in range(2):
        with Guest.connect(link.path) as guest:
            first, second = map(scapy.Ether, greeted(guest))
        assert first.dst == BROADCAST.hex(":")
        assert (first[scapy.ARP].op, first[scapy.ARP].psrc, first[scapy.ARP].pdst) == (1, REMOTE4, HOST4)
        assert second[scapy.ICMPv6ND_NS].tgt == HOST6
        assert second.dst.startswith("33:33:ff"), "to the group that its address makes"
        assert second[scapy.IPv6].hlim == 255


@pytest.mark.parametrize("address", [REMOTE4, "192.0.2.77", FAR4])
def test_arp_is_answered_for_all_but_the_guest(guest: Guest, scapy: Any, address: str) -> None:
    question = scapy.ARP(hwsrc=MAC.hex(":"), psrc=HOST4, pdst=HOST4)
    guest.send(ARP + bytes(question))
    answer = ask(guest, scapy, scapy.ARP(hwsrc=MAC.hex(":"), psrc=HOST4, pdst=address), "ARP")
    while answer[scapy.ARP].op == 1:
        answer = scapy.Ether(guest.await_frame(lambda read: "ARP" in scapy.Ether(read)))
    assert (answer[scapy.ARP].op, answer[scapy.ARP].psrc, answer[scapy.ARP].hwsrc) == (2, address, HOST_MAC.hex(":"))


def test_neighbour_discovery(guest: Guest, scapy: Any) -> None:
    question = scapy.IPv6(src=HOST6, dst="ff02::1:ff00:1", hlim=255) / scapy.ICMPv6ND_NS(tgt=REMOTE6)
    answer = ask(guest, scapy, question, "ICMPv6ND_NA")
    assert answer[scapy.ICMPv6ND_NA].tgt == REMOTE6
    assert answer[scapy.ICMPv6NDOptDstLLAddr].lladdr == HOST_MAC.hex(":")
    question = scapy.IPv6(src="fe80::1234", dst="ff02::2", hlim=255) / scapy.ICMPv6ND_RS()
    answer = ask(guest, scapy, question, "ICMPv6ND_RA")
    assert answer[scapy.ICMPv6NDOptPrefixInfo].prefix == "2001:db8::"
    assert answer[scapy.ICMPv6NDOptMTU].mtu == 65520


@pytest.mark.parametrize("reported", [True, False])
def test_a_lease_tells_address_router_and_resolvers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scapy: Any, reported: bool
) -> None:
    """A namespace has the host's resolver file; a virtual machine has to be told."""
    resolver_file = folder / "resolv.conf"
    resolver_file.write_text("nameserver 198.51.100.53\nsearch example.org\n", encoding="ascii")
    monkeypatch.setattr("gpasst.api.passt.RESOLVER_FILE", str(resolver_file))
    options: dict[str, Any] = {} if reported else {"no_dhcp_dns": True, "no_dhcp_search": True}
    with gpasst.Passt(socket=str(folder / "lease"), **options) as link, Guest.connect(link.path) as guest:
        question = (
            scapy.IP(src="0.0.0.0", dst="255.255.255.255")
            / scapy.UDP(sport=68, dport=67)
            / scapy.BOOTP(chaddr=MAC, xid=7)
            / scapy.DHCP(options=[("message-type", "discover"), "end"])
        )
        answer = ask(guest, scapy, question, "DHCP")
        options4 = {item[0]: item[1] for item in answer[scapy.DHCP].options if isinstance(item, tuple)}
        assert answer[scapy.BOOTP].yiaddr == HOST4
        assert (options4["message-type"], options4["subnet_mask"], options4["router"]) == (2, "255.255.255.0", REMOTE4)
        assert options4.get("name_server") == ("198.51.100.53" if reported else None)
        assert (119 in options4 or "DomainSearch" in str(options4) or "domain" in str(options4).lower()) == reported


@pytest.mark.parametrize("target", [REMOTE4, FAR4])
def test_echo(guest: Guest, scapy: Any, target: str) -> None:
    question = scapy.IP(src=HOST4, dst=target) / scapy.ICMP(id=77, seq=3) / b"payload"
    answer = ask(guest, scapy, question, "ICMP")
    assert (answer[scapy.IP].src, answer[scapy.ICMP].type, answer[scapy.ICMP].id) == (target, 0, 77)
    assert bytes(answer[scapy.ICMP].payload)[:7] == b"payload"


def test_echo_over_ipv6(guest: Guest, scapy: Any) -> None:
    question = scapy.IPv6(src=HOST6, dst=FAR6) / scapy.ICMPv6EchoRequest(id=77, seq=3, data=b"payload")
    answer = ask(guest, scapy, question, "ICMPv6EchoReply")
    assert (answer[scapy.IPv6].src, answer[scapy.ICMPv6EchoReply].data) == (FAR6, b"payload")


def test_tcp_is_refused_at_once(guest: Guest, scapy: Any) -> None:
    question = scapy.IP(src=HOST4, dst=FAR4) / scapy.TCP(sport=1234, dport=80, flags="S", seq=9)
    answer = ask(guest, scapy, question, "TCP")
    assert "R" in str(answer[scapy.TCP].flags)
    assert answer[scapy.TCP].ack == 10


def test_messages_longer_than_any_clients_cost_themselves_alone(folder: Path, remote: Remote) -> None:
    association = struct.pack(">HH", 3, 12) + bytes(12)
    solicit = b"\1abc" + struct.pack(">HH", 1, 6) + b"client" + association * 1400
    discover = bytes((1, 1, 6, 0)) + bytes(232) + bytes.fromhex("63825363 350101") + bytes(64000)
    with (
        gpasst.Passt(socket=str(folder / "hostile")) as link,
        Guest.connect(link.path) as guest,
        bound(remote.socket(FAMILY[4]), FAR4) as far,
    ):
        greeted(guest)
        for _ in range(60):
            guest.send(*udp_packets("fe80::1234", 546, "ff02::1:2", 547, solicit))
            guest.send(*udp_packets("0.0.0.0", 68, "255.255.255.255", 67, discover))
        guest.sendto(EPHEMERAL, far.getsockname()[:2], b"behind them")
        assert far.recv(99) == b"behind them"
        drops = link.statistics().drops
    assert drops.pop(gpasst.Drop.EXCESSIVE.value) == 120
    assert gpasst.Drop.INTERNAL.value not in drops
