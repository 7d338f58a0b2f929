"""SYNs from outside that NAT does not admit, and their late answer (RFC 5382, REQ-4).

Theory of operation: an inside host may be about to connect to the sender at the same moment (simultaneous open, RFC
9293, section 3.5), so nothing answers the SYN for six seconds. If the connection exists by then, the SYN is forgotten;
otherwise its sender gets the ICMP error "port unreachable".
"""

from __future__ import annotations

from collections import deque
from typing import Final

from gpasst.packet.superframe import Buffer
from gpasst.router.nat import Nat
from gpasst.router.view import View, view
from gpasst.wire import PROTOCOL_TCP

PATIENCE: Final = 6.0  # seconds (RFC 5382, REQ-4 a)
LIMIT: Final = 256  # SYNs; more get no answer


class Unasked:
    """The SYNs that have no answer yet."""

    def __init__(self) -> None:
        self._held: deque[tuple[float, View]] = deque()

    def hold(self, data: Buffer, now: float) -> None:
        """Hold a SYN.

        :param data: virtio-net header and frame.
        :param now: seconds.
        """
        if len(self._held) < LIMIT:
            self._held.append((now + PATIENCE, view(bytes(data))))

    @property
    def due(self) -> float | None:
        """When `expire` has something to do, in seconds; None for never."""
        return self._held[0][0] if self._held else None

    def expire(self, nat: Nat, now: float) -> list[View]:
        """Return the SYNs whose time is over, and for which no connection exists."""
        late = []
        while self._held and self._held[0][0] <= now:
            _, syn = self._held.popleft()
            mapping = nat.mapped(PROTOCOL_TCP, syn.destination_port, now)
            key = (*mapping.place[:3], syn.packet.source, syn.source_port) if mapping else None
            if key is None or nat.find(key, now) is None:
                late.append(syn)
        return late
