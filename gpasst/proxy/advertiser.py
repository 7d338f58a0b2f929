"""Frames that the host sends to the guest unasked: requests for its MAC address, and router advertisements."""

from __future__ import annotations

import random
from collections.abc import Callable

from gpasst.counters import Counters
from gpasst.flow.guest import Guest
from gpasst.link.port import Link
from gpasst.packet.address import BROADCAST_MAC, V6, family_of
from gpasst.services import arp, ndp


class Advertiser:
    """Greets a guest, and advertises the router to it (RFC 4861, section 6.2.4).

    :param link: the guest's end.
    :param guest: the guest.
    :param router: the router to advertise, None if there is none.
    :param counters: show whether the guest has spoken.
    :param now: returns monotonic seconds.
    """

    def __init__(
        self, link: Link, guest: Guest, router: ndp.Router | None, counters: Counters, now: Callable[[], int]
    ) -> None:
        self._link = link
        self._guest = guest
        self._router = router
        self._counters = counters
        self._now = now
        self._schedule = ndp.Schedule(now(), random.uniform)

    def greet(self) -> None:
        """Ask a new guest for its MAC address, so that it is reached before it speaks, and begin to advertise anew."""
        guest, network = self._guest, self._guest.network
        guest.learn_mac(BROADCAST_MAC)
        for family in (network.ip4, network.ip6):
            if family and family.address:
                self.ask(family.address)
        self._schedule = ndp.Schedule(self._now(), random.uniform)

    def ask(self, address: bytes) -> None:
        """Ask for the MAC address of a neighbour, 4 or 16 bytes."""
        network = self._guest.network
        if family_of(address) == V6:
            self._link.write_frame(ndp.solicitation(network, address))
        elif network.ip4:
            self._link.write_frame(arp.request(network.host_mac, network.ip4.gateway, address))

    def scan(self, now: int) -> None:
        """Send the advertisement that is due at `now`, in monotonic seconds.

        None is sent before the guest has spoken: its end may be down, and when it comes up it asks by itself.
        """
        if self._router and self._link.ready and self._counters.frames_down and self._schedule.due(now):
            self._link.write_frame(ndp.unsolicited(self._router))
