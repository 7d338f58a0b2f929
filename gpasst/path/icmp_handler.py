"""The handler of ICMP and ICMPv6: a table of handlers by type.

Neighbour discovery, errors of the guest and echo requests are different services of one protocol. A type without entry
goes to the handler of echo requests, which drops what is none.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpasst.packet.parse import Packet
from gpasst.path.dispatch import Handler


class IcmpHandler:
    """Hands ICMP or ICMPv6 packets to the handlers of their types.

    :param by_type: handlers by ICMP type of one family.
    :param otherwise: handles every other type, and packets without payload.
    """

    def __init__(self, by_type: Mapping[int, Handler], otherwise: Handler) -> None:
        self._by_type = by_type
        self._otherwise = otherwise

    def handle(self, packet: Packet) -> None:
        """Hand a packet on.

        :raises PacketError: as the handler says.
        """
        handler = self._by_type.get(packet.payload[0]) if packet.payload else None
        (handler or self._otherwise)(packet)
