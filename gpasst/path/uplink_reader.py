"""From a network's switch to host sockets: the frames that hosts send to their gateway.

Theory of operation: the switch calls `take` with each frame, in the step of the port that it comes from, so what a host
sends is carried in its own time. As from a tap, an ordinary frame of a known flow costs one look at its headers, one
look-up and one send; every other one goes to the backlog. The backlog has steps of its own, since the switch has more
frames to forward. So has the work of connections where frames come in numbers, so that it is done once for all of them;
what follows from a frame that comes alone is done at once, since its sender may await an answer.

Frames of no known flow cost most, and wait in a *lane* of their host, a backlog whose steps take turns with those of
the others: so a host that floods delays its own newcomers. Hosts whose MAC addresses end in the same byte share a lane,
and so do all machines that the network has not placed.

The gateway takes what is for its MAC address, and of frames to groups the questions that it answers: ARP, neighbour
discovery and DHCP. As a router it forwards no other multicast (RFC 1812, section 5.2.1; RFC 4541), and frames that a
switch floods since it does not know their addressee are not its business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from gpasst.counters import Counters, Drop
from gpasst.path.backlog import Queue
from gpasst.path.budget import BACKLOG_SECONDS
from gpasst.path.fastpath import FastPath, udp_segment
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.udp_sockets import UdpSockets
from gpasst.path.unknown import ARP, DHCP, NDP, ROUTER, kind_of
from gpasst.wire import ETHERNET_CODEC, IPV6_CODEC, NDP_TYPE_ROUTER_SOLICITATION, VIRTIO_NET_CODEC

ALONE_SECONDS: Final = 0.00005  # since the frame before; of a run of frames each takes less

STRANGERS: Final = -1  # the lane of machines that the network has not placed
LANES_KNOWN: Final = 1024  # MAC addresses whose lane is kept, so that it is found by one look-up

_VIRTIO: Final = VIRTIO_NET_CODEC.size
_DESTINATION: Final = slice(_VIRTIO, _VIRTIO + 6)
_SOURCE: Final = slice(_DESTINATION.stop, _DESTINATION.stop + 6)
_ICMP6_TYPE: Final = _VIRTIO + ETHERNET_CODEC.size + IPV6_CODEC.size
_GROUP: Final = 1  # bit of the first byte of a MAC address (IEEE 802-2014, section 8.2)
_QUESTIONS: Final = frozenset((ROUTER, ARP, NDP, DHCP))


class UplinkReader:
    """Carries frames of a switch to host sockets.

    :param mac: the gateway's MAC address, 6 bytes.
    :param routers: addresses of the gateway.
    :param fastpath: recognises UDP of known peers.
    :param udp: sends runs to their peers.
    :param make: makes a lane, for every other frame.
    :param placed: returns whether the network has placed a host at a MAC address.
    :param counters: where traffic and drops are counted.
    :param tcp: takes segments of known connections, None where TCP is not carried.
    :param clock: returns seconds, for the budget of a step.
    """

    def __init__(
        self,
        mac: bytes,
        routers: frozenset[bytes],
        fastpath: FastPath,
        udp: UdpSockets,
        make: Callable[[], Queue],
        placed: Callable[[bytes], bool],
        counters: Counters,
        tcp: TcpFrames | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._mac = mac
        self._routers = routers
        self._fastpath = fastpath
        self._udp = udp
        self._make = make
        self._placed = placed
        self._lanes: dict[int, Queue] = {}
        self._lane_of: dict[bytes, Queue] = {}
        self._counters = counters
        self._tcp = tcp
        self._clock = clock
        self._last = 0.0

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
        source = bytes(view[_SOURCE])
        backlog = (self._lane_of.get(source) or self._lane(source)).backlog
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
                now = self._clock()
                if now - self._last > ALONE_SECONDS:
                    tcp.run(now + BACKLOG_SECONDS)
                else:
                    tcp.ask()
                self._last = self._clock()
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
        lane = self._lane(bytes(view[_SOURCE]))
        lane.backlog.add(view[_VIRTIO:], segment)
        lane.again()

    def _lane(self, source: bytes) -> Queue:
        """Return the lane of a MAC address, 6 bytes."""
        lane = self._lane_of.get(source)
        if lane is None:
            number = source[-1] if self._placed(source) else STRANGERS
            lane = self._lanes.get(number) or self._make()
            self._lanes[number] = lane
            if len(self._lane_of) >= LANES_KNOWN:
                self._lane_of.clear()
            self._lane_of[source] = lane
        return lane
