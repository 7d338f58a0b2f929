"""A new MAC address of the guest: headers that were built for the one before are rewritten when next used."""

from __future__ import annotations

import socket

from gpasst.counters import Counters
from gpasst.features import ALL
from gpasst.host.receive import Receiver, Run, sender_key
from gpasst.link.port import RunHeader
from gpasst.link.recorder import Recorder
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.udp_sockets import UdpSockets
from gpasst.udp.mapping import Peer
from tests.support.addresses import GUEST_MAC, SERVER4, ip
from tests.support.nat import Host

OTHER_MAC = b"\x02\0\0\0\0\x09"


class Batches(Receiver):
    """A receiver of scripted batches."""

    def __init__(self) -> None:
        self.waiting: list[list[Run]] = []

    def receive(self, fd: int) -> tuple[list[Run], bool]:
        return (self.waiting.pop(0), bool(self.waiting)) if self.waiting else ([], False)


class Written:
    """A link that keeps the MAC addresses of the frames it is to write."""

    ready = True
    full = False
    recorder: Recorder | None = None

    def __init__(self) -> None:
        self.macs: list[bytes] = []

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        self.macs.append(bytes(header.fill(total, segment)[10:16]))

    def write_bare(self, header: RunHeader) -> None:
        raise AssertionError("every datagram here has a payload")

    def write_frame(self, frame: bytes) -> None:
        raise AssertionError("nothing is answered here")

    def flush(self) -> None:
        pass


class Case:
    """A guest's UDP sockets, one of them open."""

    def __init__(self) -> None:
        self.host, self.link, self.batches, counters = Host(), Written(), Batches(), Counters()
        icmp = IcmpToGuest(self.link, self.host.guest, counters)
        self.udp = UdpSockets(self.host.path, self.link, icmp, None, {4: self.batches}, {}, counters, ALL)

    def up(self, peer: Peer, port: int) -> None:
        """Let a datagram of SERVER4's `port` arrive."""
        key = sender_key(4, ip(SERVER4), port, 0)
        self.batches.waiting.append([(key, 3, 3, [memoryview(b"abc")], 64)])
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            peer.udp_socket.socket = sock
            self.udp.step(peer.udp_socket)
        peer.udp_socket.socket = None


def test_a_new_mac_address_reaches_every_peer_when_it_is_next_used() -> None:
    case = Case()
    peer = case.host.down(33000, SERVER4, 1)
    case.up(peer, 1)
    case.host.guest.learn_mac(OTHER_MAC)
    case.up(peer, 1)
    case.up(peer, 2)
    case.host.guest.learn_mac(GUEST_MAC)
    case.up(peer, 2)
    assert case.link.macs == [GUEST_MAC, OTHER_MAC, OTHER_MAC, GUEST_MAC]


def test_a_new_mac_address_costs_nothing_for_peers_that_are_not_used() -> None:
    case = Case()
    peers = [case.host.down(33000, SERVER4, port) for port in (1, 2)]
    for port in (1, 2):
        case.up(peers[0], port)
    case.host.guest.learn_mac(OTHER_MAC)
    assert [peer.header.stamp for peer in peers] == [GUEST_MAC] * 2
    case.up(peers[0], 1)
    assert [peer.header.stamp for peer in peers] == [OTHER_MAC, GUEST_MAC]
