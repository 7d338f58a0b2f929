"""Where a frame of the guest goes that is none of a known flow.

Theory of operation: the frame is parsed (`gpasst.packet.parse`), fragments are reassembled
(`gpasst.packet.reassembly`), and the packet goes to the handler of its family and IP protocol. A handler answers, sets
up state, or raises `PacketError` with the reason to drop the packet. ARP, which is no IP protocol, has a handler of its
own. A protocol without handler is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gpasst.counters import Counters, Drop
from gpasst.errors import PacketError
from gpasst.flow.guest import Guest
from gpasst.link.recorder import UNRECORDED, Recorded
from gpasst.packet.parse import Packet, parse_ip
from gpasst.packet.reassembly import Reassembly
from gpasst.records import replace
from gpasst.services.chatter import of_disabled_family
from gpasst.wire import ETHERNET_CODEC, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6

# Handles a whole packet of the guest; raises PacketError with the reason for which it is dropped.
Handler = Callable[[Packet], None]
# Handles the payload of an ARP frame likewise.
ArpHandler = Callable[[memoryview], None]


class Dispatch:
    """Hands frames to the handlers of their protocols.

    :param guest: the guest, whose MAC address is learned here.
    :param arp: handles ARP.
    :param handlers: handlers by (family, IP protocol number).
    :param counters: where drops are counted.
    :param now: returns monotonic seconds.
    :param link: where the frames come from, whose recorder takes note of the reason of a drop.
    """

    def __init__(
        self,
        guest: Guest,
        arp: ArpHandler,
        handlers: Mapping[tuple[int, int], Handler],
        counters: Counters,
        now: Callable[[], int],
        link: Recorded = UNRECORDED,
    ) -> None:
        self._guest = guest
        self._arp = arp
        self._handlers = handlers
        self._counters = counters
        self._now = now
        self._link = link
        self._reassembly = Reassembly()

    def frame(self, frame: memoryview, segment: int = 0) -> None:
        """Dispatch any frame.

        :param frame: from the destination MAC address on; valid during the call.
        :param segment: payload bytes of each segment of a superframe, 0 for a single frame.
        """
        try:
            self._frame(frame, segment)
        except PacketError as error:
            self._counters.drop(error.reason)
            if self._link.recorder is not None:
                self._link.recorder.note(frame, error.reason)

    def scan(self, now: int) -> None:
        """Let go of fragments whose rest has not come by `now`, in monotonic seconds."""
        lost = self._reassembly.scan(now)
        if lost:
            self._counters.drop(Drop.FRAGMENT_TIMEOUT, lost)

    def _frame(self, frame: memoryview, segment: int) -> None:
        if len(frame) < ETHERNET_CODEC.size:
            raise PacketError(Drop.FRAME_SHORT)
        ethernet = ETHERNET_CODEC.unpack_from(frame)
        ethertype, guest = ethernet["ethertype"], self._guest
        family = 6 if ethertype == ETHERTYPE_IPV6 else 4
        if ethertype not in (ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6):
            raise PacketError(Drop.ETHERTYPE)
        if family not in guest.addresses:
            reason = Drop.FAMILY_DISABLED if ethertype == ETHERTYPE_ARP else of_disabled_family(parse_ip(frame))
            raise PacketError(reason)
        guest.learn_mac(ethernet["source"])
        if ethertype == ETHERTYPE_ARP:
            self._arp(frame[ETHERNET_CODEC.size :])
            return
        packet: Packet | None = parse_ip(frame)
        assert packet is not None
        if packet.fragment:
            packet = self._reassembly.add(packet, self._now())
            if packet is None:
                return
        elif segment:
            packet = replace(packet, segment=segment)
        handler = self._handlers.get((family, packet.protocol))
        if handler is None:
            raise PacketError(Drop.PROTOCOL)
        handler(packet)
