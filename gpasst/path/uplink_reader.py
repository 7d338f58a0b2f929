"""From a network's switch to host sockets: the frames that hosts send to their gateway.

Theory of operation: the switch calls `take` with each frame, in the step of the port that it comes from, so what a host
sends is carried in its own time. As from a tap, an ordinary frame of a known flow costs one look at its headers, one
look-up and one send; every other one goes to the backlog. The work of connections, and the backlog, have steps of their
own, since the switch has more frames to forward.

The gateway takes what is for its MAC address, and of frames to groups the questions that it answers: ARP, neighbour
discovery and DHCP. As a router it forwards no other multicast (RFC 1812, section 5.2.1; RFC 4541), and frames that a
switch floods since it does not know their addressee are not its business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gpasst.counters import Counters, Drop
from gpasst.path.backlog import Backlog
from gpasst.path.fastpath import FastPath, udp_segment
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.udp_sockets import UdpSockets
from gpasst.path.unknown import ARP, DHCP, NDP, ROUTER, kind_of
from gpasst.wire import ETHERNET_CODEC, IPV6_CODEC, NDP_TYPE_ROUTER_SOLICITATION, VIRTIO_NET_CODEC

_VIRTIO: Final = VIRTIO_NET_CODEC.size
_DESTINATION: Final = slice(_VIRTIO, _VIRTIO + 6)
_ICMP6_TYPE: Final = _VIRTIO + ETHERNET_CODEC.size + IPV6_CODEC.size
_GROUP: Final = 1  # bit of the first byte of a MAC address (IEEE 802-2014, section 8.2)
_QUESTIONS: Final = frozenset((ROUTER, ARP, NDP, DHCP))


class UplinkReader:
    """Carries frames of a switch to host sockets.

    :param mac: the gateway's MAC address, 6 bytes.
    :param routers: addresses of the gateway.
    :param fastpath: recognises UDP of known peers.
    :param udp: sends runs to their peers.
    :param backlog: takes every other frame.
    :param again: asks for a step of the backlog.
    :param counters: where traffic and drops are counted.
    :param tcp: takes segments of known connections, None where TCP is not carried.
    """

    def __init__(
        self,
        mac: bytes,
        routers: frozenset[bytes],
        fastpath: FastPath,
        udp: UdpSockets,
        backlog: Backlog,
        again: Callable[[], None],
        counters: Counters,
        tcp: TcpFrames | None = None,
    ) -> None:
        self._mac = mac
        self._routers = routers
        self._fastpath = fastpath
        self._udp = udp
        self._backlog = backlog
        self._again = again
        self._counters = counters
        self._tcp = tcp

    def take(self, data: bytes | bytearray | memoryview) -> None:
        """Take a frame or superframe of a host.

        :param data: it, behind its virtio-net header; valid during the call.
        """
        view = memoryview(data)
        if view[_DESTINATION] != self._mac:
            if view[_VIRTIO] & _GROUP and kind_of(view[_VIRTIO:], self._routers)[0] in _QUESTIONS:
                self._keep(view)
            return
        size = len(view)
        self._counters.frames_down += 1
        backlog = self._backlog
        if backlog.behind:
            # Frames of a flow that has become known wait there, and must not be overtaken.
            backlog.step()
        found = None if backlog.behind else self._fastpath.lookup(view, 0, size)
        if found is not None:
            peer, start, length = found
            segment = udp_segment(view, size)
            if segment < 0:
                self._counters.drop(Drop.MALFORMED_UDP)
            else:
                self._udp.send(peer, view[start : start + length], segment or length)
            return
        tcp = self._tcp
        if tcp is not None and not backlog.behind and tcp.frame(view, view, 0, size):
            if tcp.queue:
                tcp.ask()
            return
        self._keep(view)

    def answers(self, data: bytes | bytearray | memoryview) -> bool:
        """Return whether a frame to a group is a question to the gateway: ARP or neighbour discovery for it, router
        discovery, or DHCP.

        :param data: as of `take`.
        """
        view = memoryview(data)
        kind, _ = kind_of(view[_VIRTIO:], self._routers)
        return kind in (ROUTER, DHCP) or (kind == NDP and view[_ICMP6_TYPE] == NDP_TYPE_ROUTER_SOLICITATION)

    def _keep(self, view: memoryview) -> None:
        """Put a frame that is none of a known flow into the backlog."""
        segment = udp_segment(view, len(view))
        if segment < 0:
            self._counters.drop(Drop.MALFORMED_UDP)
            return
        self._backlog.add(view[_VIRTIO:], segment)
        self._again()
