"""Which port of a switch leads to which MAC address.

Theory of operation: as in a bridge (IEEE 802.1D-2004, sections 7.8 and 7.9), the source address of each frame is
learned, and a frame to an address that is not known goes to every other port. Three things differ:

1. The addresses of a network's own hosts are *pinned* to their ports, so nobody else can take their frames; so are
   those of hosts in other parts to the trunks that announce them.
2. A learned address does not age. It moves when it is seen at another port, and ends with its port.
3. The addresses that one port may have are limited, and its oldest makes room. So a host that invents addresses costs
   itself alone: what goes on is looked at again only for an address that something was sent to.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

LEARNED_PER_PORT = 4096  # addresses; a trunk may have other switches behind it

P = TypeVar("P", bound=Hashable)


class Table(Generic[P]):
    """The addresses of one switch.

    :ivar changes: grows whenever an address that somebody relies on leads elsewhere, or nowhere.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._ports: dict[bytes, P] = {}
        self._pinned: set[bytes] = set()
        self._learned: dict[P, dict[bytes, None]] = {}
        self._relied: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._ports)

    def pin(self, address: bytes, port: P) -> None:
        """Let an address lead to a port until that is removed.

        :param address: a MAC address, 6 bytes.
        """
        before = self._ports.get(address)
        if before is not None and address not in self._pinned:
            del self._learned[before][address]
        self._ports[address] = port
        self._pinned.add(address)
        self.changes += 1

    def unpin(self, address: bytes, port: P) -> None:
        """Let an address that was pinned to a port be learned again; others are left as they are."""
        if address in self._pinned and self._ports[address] == port:
            del self._ports[address]
            self._pinned.discard(address)
            self.changes += 1

    def is_pinned(self, address: bytes) -> bool:
        """Return whether an address is pinned to a port."""
        return address in self._pinned

    def learn(self, address: bytes, port: P) -> bool:
        """Take note that a frame from an address came in by a port; return whether it may.

        A group address is nobody's, and a pinned one belongs to its port.

        :param address: the source address, 6 bytes.
        """
        known = self._ports.get(address)
        if known == port:
            return True
        if address[0] & 1 or address in self._pinned:
            return False
        if known is not None:
            del self._learned[known][address]
            self._changed(address)
        learned = self._learned.setdefault(port, {})
        if len(learned) >= LEARNED_PER_PORT:
            oldest = next(iter(learned))
            del learned[oldest], self._ports[oldest]
            self._changed(oldest)
        learned[address] = None
        self._ports[address] = port
        return True

    def find(self, address: bytes) -> P | None:
        """Return the port that leads to an address, None if none is known."""
        return self._ports.get(address)

    def rely(self, address: bytes) -> None:
        """Let `changes` grow when an address leads elsewhere: somebody keeps what `find` has returned.

        :param address: one that is known.
        """
        self._relied.add(address)

    def forget_relied(self) -> None:
        """Take note that nobody keeps anything any more."""
        self._relied.clear()

    def remove(self, port: P) -> None:
        """Forget a port and its addresses."""
        gone = [address for address, known in self._ports.items() if known == port]
        for address in gone:
            del self._ports[address]
            self._pinned.discard(address)
        self._learned.pop(port, None)
        self.changes += 1

    def _changed(self, address: bytes) -> None:
        if address in self._relied:
            self.changes += 1
