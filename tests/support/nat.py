"""The NAT of a guest without a kernel underneath: its sockets are records."""

from __future__ import annotations

from typing import Any

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.flow.key import down_key
from gpasst.host.receive import sender_key
from gpasst.udp.header import VIRTIO_SIZE
from gpasst.udp.mapping import Listener, Peer, UdpSocket
from gpasst.udp.nat import UdpNat
from gpasst.wire import HOP_LIMIT
from tests.support.addresses import GUEST4, GUEST_LINK_LOCAL, GUEST_MAC, ip
from tests.support.networks import family_network, guest_network

EPHEMERAL = 40000  # the first port that is handed out where the one that was asked for is taken


class Opener:
    """Opens the sockets of a `Host`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def open(self, family: int, port: int) -> UdpSocket:
        return self._host.open_socket(family, port)

    def close(self, udp_socket: UdpSocket) -> None:
        self._host.close_socket(udp_socket)


class Host:
    """UDP sockets that are records only, and a NAT that opens them as the data path does."""

    def __init__(self, taken: tuple[int, ...] = (), filtered: bool = False, **changes: Any) -> None:
        network = guest_network(ip4=family_network(4, **changes), mtu=0)
        self.taken = set(taken)
        self.open: list[UdpSocket] = []
        self.failing = 0
        self.opened = 0
        self.guest = Guest(network, GUEST_MAC, ip(GUEST_LINK_LOCAL))
        self.path = UdpNat(self.guest, Opener(self), sender_key, filtered=filtered, now=1000)

    def open_socket(self, family: int, port: int) -> UdpSocket:
        self.opened += 1
        if self.opened == self.failing:
            raise PacketError(Drop.NO_SOCKET)
        used = self.taken | {udp_socket.port for udp_socket in self.open if udp_socket.family == family}
        if not port or port in used:
            port = next(free for free in range(EPHEMERAL, 65536) if free not in used)
        udp_socket = UdpSocket(family, port)
        self.open.append(udp_socket)
        return udp_socket

    def close_socket(self, udp_socket: UdpSocket) -> None:
        assert udp_socket in self.open, "closed twice"
        self.open.remove(udp_socket)

    def listen(
        self, port: int, target: int, family: int = 4, general: bool = True, target_address: str = ""
    ) -> Listener:
        address = ip(target_address) if target_address else b""
        udp_socket = Listener(family, port, target=target, target_address=address, general=general)
        self.open.append(udp_socket)
        self.path.listen(udp_socket)
        return udp_socket

    def down(self, port: int, destination: str, to: int, guest: str = GUEST4) -> Peer:
        """Send from the guest's `port`; return the peer that it goes to."""
        family = 4 if "." in guest else 6
        known = self.path.tables[family].down.get(down_key(ip(guest), ip(destination), port, to))
        return known or self.path.outbound(family, ip(guest), ip(destination), port, to)

    def up(self, udp_socket: UdpSocket, source: str, port: int, local: str = "", scope: int = 0) -> Peer:
        """Send to a host socket; return the peer that the guest sees it from."""
        address, reported = ip(source), ip(local) if local else b""
        key = sender_key(udp_socket.family, address, port, scope) + reported
        known = udp_socket.find(key)
        return known or self.path.inbound(udp_socket, key, address, port, scope, reported)

    def frame(self, peer: Peer, payload: bytes) -> bytes:
        """Return the frame of an upward datagram as the guest reads it."""
        return bytes(self.path.header(peer, HOP_LIMIT).fill_complete(payload))[VIRTIO_SIZE:] + payload

    def answer(self, peer: Peer) -> Peer:
        """Let the guest answer `peer`."""
        table = self.path.tables[peer.udp_socket.family]
        return table.down[peer.mapping.guest + peer.shown[0] + ports(peer.mapping.port, peer.shown[1])]


def ports(*numbers: int) -> bytes:
    """Return port numbers as packets have them."""
    return b"".join(number.to_bytes(2, "big") for number in numbers)
