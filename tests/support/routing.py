"""A router between two networks of neighbours that answer: frames in, frames out, seen from both sides."""

from __future__ import annotations

from typing import Any

from gpasst.counters import Counters, Drop
from gpasst.formats import (
    ECHO_CODEC,
    ETHERTYPE_ARP,
    NDP_ADVERTISEMENT_CODEC,
    NDP_LINK_ADDRESS_CODEC,
    NDP_OPTION_TARGET_LINK_ADDRESS,
    NDP_SOLICITATION_CODEC,
    NDP_TYPE_ADVERTISEMENT,
    NDP_TYPE_SOLICITATION,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    TCP_CODEC,
    UDP_CODEC,
    VIRTIO_NET_BLANK,
)
from gpasst.impair.facts import NDP
from gpasst.packet import checksum
from gpasst.packet.build import with_checksum, wrap
from gpasst.packet.frame import Frame
from gpasst.packet.icmp_error import CLOSED_PORT, Problem, message
from gpasst.packet.superframe import VIRTIO
from gpasst.router.behaviour import Behaviour
from gpasst.router.forwarding import Router
from gpasst.router.interface import INSIDE, OUTSIDE, Interface, Route, Routes
from gpasst.router.lease import Lease
from gpasst.services import arp
from tests.support.addresses import ip
from tests.support.superframes import sound

ROUTER_MAC = (bytes.fromhex("02670a4d0101"), bytes.fromhex("0267c6336402"))
ROUTER4 = ("10.77.1.1", "198.51.100.2")
ROUTER6 = ("fd77:0:0:1::1", "2001:db8::2")
PREFIX4 = ("10.77.1.0/24", "198.51.100.0/24")
PREFIX6 = ("fd77:0:0:1::/64", "2001:db8::/64")
A, B, A6 = "10.77.1.2", "10.77.1.3", "fd77:0:0:1::2"
"""Hosts inside."""
S, T, S6 = "198.51.100.7", "198.51.100.8", "2001:db8::7"
"""Hosts outside."""
FAR = "203.0.113.9"
"""A host beyond the outside network's gateway."""
GATEWAY = "198.51.100.1"
MTU = 1500
MISSING = frozenset((ip("10.77.1.99"), ip("198.51.100.99"), ip("2001:db8::99")))
"""Addresses at which nobody answers."""


def mac_of(address: bytes) -> bytes:
    """Return the MAC address of a host."""
    return b"\x02\x67" + address[-4:]


class World:
    """A router, and what each side of it has received.

    :ivar now: the time; a test lets it pass.
    :ivar received: frames that arrived on each side, without those of address resolution.
    :ivar raw: the same, as they crossed.
    :ivar leases: what hosts get that ask for their addresses, by their MAC addresses.
    :ivar asked: requests of the router's that had no answer.
    """

    def __init__(self, behaviour: Behaviour, mtus: tuple[int, int] = (MTU, MTU)) -> None:
        self.now = 1000.0
        self.counters = Counters()
        self.received: tuple[list[Frame], list[Frame]] = ([], [])
        self.raw: tuple[list[bytes], list[bytes]] = ([], [])
        self.asked: list[bytes] = []
        self.leases: dict[bytes, Lease] = {}
        self.routes = Routes()
        for side in (INSIDE, OUTSIDE):
            self.routes.add(Route(PREFIX4[side], side))
            self.routes.add(Route(PREFIX6[side], side))
        self.routes.add(Route("0.0.0.0/0", OUTSIDE, ip(GATEWAY)))
        interfaces = [
            Interface(
                ROUTER_MAC[side],
                mtus[side],
                {4: ip(ROUTER4[side]), 6: ip(ROUTER6[side])},
                {4: PREFIX4[side], 6: PREFIX6[side]},
            )
            for side in (INSIDE, OUTSIDE)
        ]
        sends = [self._sender(side) for side in (INSIDE, OUTSIDE)]
        self.chosen: list[int] = []
        ends = interfaces[INSIDE], interfaces[OUTSIDE]
        self.router = Router(behaviour, ends, self.routes, sends, 2 * [self.counters], self._chance, self.leases.get)

    def _chance(self, below: int) -> int:
        self.chosen.append(below)
        return (7919 * len(self.chosen)) % below

    def _sender(self, side: int) -> Any:
        return lambda data: self._arrived(side, bytes(data))

    def _arrived(self, side: int, data: bytes) -> None:
        frame = Frame(data[VIRTIO:], to_guest=True)
        if int.from_bytes(frame.data[12:14], "big") == ETHERTYPE_ARP:
            assert frame.arp is not None
            target = frame.arp.target_ip
            if frame.arp.operation == 1 and target not in MISSING:
                reply = arp.answer(memoryview(frame.data)[14:], mac_of(target), lambda _: True)
                assert reply is not None
                self.take(side, reply)
                return
            if frame.arp.operation == 1:
                self.asked.append(target)
                return
        if frame.protocol == NDP and frame.icmp is not None and frame.icmp.type == NDP_TYPE_SOLICITATION:
            target = NDP_SOLICITATION_CODEC.unpack_from(frame.data[54:])["target"]
            if target not in MISSING:
                self.advertise(side, target, frame)
                return
            self.asked.append(target)
            return
        self.received[side].append(frame)
        self.raw[side].append(data)

    def advertise(self, side: int, target: bytes, asked: Frame) -> None:
        """Let a neighbour answer a solicitation."""
        answer = NDP_ADVERTISEMENT_CODEC.pack(type=NDP_TYPE_ADVERTISEMENT, flags=0x60, target=target)
        answer += NDP_LINK_ADDRESS_CODEC.pack(type=NDP_OPTION_TARGET_LINK_ADDRESS, mac=mac_of(target))
        complete = with_checksum(answer, 2, target, asked.source, PROTOCOL_ICMPV6)
        self.take(side, wrap(ROUTER_MAC[side], mac_of(target), target, asked.source, PROTOCOL_ICMPV6, complete))

    def take(self, side: int, frame: bytes) -> None:
        """Let a side send a frame."""
        self.router.receive(side, memoryview(VIRTIO_NET_BLANK + frame), self.now)

    def passes(self, seconds: float) -> None:
        """Let time pass, with what is due in it."""
        end = self.now + seconds
        while (due := self.router.due) is not None and due <= end:
            self.now = max(self.now, due)
            self.router.expire(self.now)
        self.now = end

    def last(self, side: int) -> Frame | None:
        """Return the frame that a side received last, whose checksums are right, and forget what it received."""
        frames = self.received[side]
        frame = frames[-1] if frames else None
        frames.clear()
        if frame is not None:
            assert sound(frame.data)
        return frame

    def drops(self, reason: Drop) -> int:
        return self.counters.drops[reason]

    def udp(
        self, side: int, source: str, sport: int, destination: str, dport: int, data: bytes = b"data"
    ) -> Frame | None:
        """Let a host send a datagram; return what arrives on the other side, or on its own by hairpinning."""
        return self.packet(side, source, destination, PROTOCOL_UDP, datagram(source, sport, destination, dport, data))

    def tcp(self, side: int, source: str, sport: int, destination: str, dport: int, flags: int) -> Frame | None:
        """Let a host send a segment likewise."""
        header = TCP_CODEC.pack(source=sport, destination=dport, sequence=1, acknowledgement=2, flags=flags, window=9)
        segment = with_checksum(header, 16, ip(source), ip(destination), PROTOCOL_TCP)
        return self.packet(side, source, destination, PROTOCOL_TCP, segment)

    def echo(self, side: int, source: str, destination: str, identifier: int, kind: int = 8) -> Frame | None:
        """Let a host send an echo request or reply likewise."""
        return self.packet(side, source, destination, PROTOCOL_ICMP, echo_message(kind, identifier))

    def error(
        self, side: int, source: str, destination: str, about: bytes, problem: Problem = CLOSED_PORT[4]
    ) -> Frame | None:
        """Let a host send an ICMP error about an IP packet likewise."""
        family = 4 if "." in source else 6
        built = message(family, problem, about)
        if family == 6:
            built = with_checksum(built, 2, ip(source), ip(destination), PROTOCOL_ICMPV6)
        return self.packet(side, source, destination, PROTOCOL_ICMP if family == 4 else PROTOCOL_ICMPV6, built)

    def packet(self, side: int, source: str, destination: str, protocol: int, payload: bytes) -> Frame | None:
        """Let a host send a packet likewise."""
        for frames in self.received:
            frames.clear()
        frame = wrap(ROUTER_MAC[side], mac_of(ip(source)), ip(source), ip(destination), protocol, payload)
        self.take(side, frame)
        own = self.last(side)
        return own if own is not None else self.last(1 - side)


def datagram(source: str, sport: int, destination: str, dport: int, data: bytes = b"data") -> bytes:
    """Return a datagram with its checksum."""
    blank = UDP_CODEC.pack(source=sport, destination=dport, length=8 + len(data)) + data
    return with_checksum(blank, 6, ip(source), ip(destination), PROTOCOL_UDP)


def echo_message(kind: int, identifier: int) -> bytes:
    """Return an ICMP echo message."""
    blank = ECHO_CODEC.pack(type=kind, identifier=identifier, sequence=3) + b"ping"
    return blank[:2] + checksum.internet(blank).to_bytes(2, "big") + blank[4:]


def identifier_of(frame: Frame | None) -> int:
    """Return the identifier of an echo message."""
    assert frame is not None
    identifier: int = ECHO_CODEC.unpack_from(frame.data[34:])["identifier"]
    return identifier
