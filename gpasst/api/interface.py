"""`Interface`: a host in one network.

Theory of operation: an interface is a tap in the host's namespace, one descriptor of which is here, and a port of the
network's switch. In a network that has not opened the host the interface is the member, so it ends with that network
while its host goes on in others.
"""

from __future__ import annotations

import posix
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from gpasst.api.member import Member
from gpasst.errors import ConfigurationError
from gpasst.helper.client import OpenRequest
from gpasst.records import replace

if TYPE_CHECKING:
    from gpasst.api.network_base import NetworkBase
    from gpasst.helper.request import Route
    from gpasst.link.switch_tap import TapPort
    from gpasst.switch.plan import HostAddresses


METRIC = 1024  # of IPv6 routes without one; those that are to come later have more (Linux, IP6_RT_PRIO_USER)


class Owner(Protocol):
    """What an interface knows of its host."""

    name: str
    network: NetworkBase
    configured: bool

    def leave(self, interface: Interface) -> None:
        """Take the host out of a network."""

    def show_names(self) -> None:
        """Let the host's programs know the names of hosts anew."""

    def reroute(self, network: object, added: Iterable[Route], removed: Iterable[Route]) -> None:
        """Let the host's kernel have other routes in a network."""


class Interface(Member):
    """A host in one network; ends with `close`, with a ``with`` statement, with its host or with that network.

    :param host: the host.
    :param network: the network.
    :param name: of the device in the host.
    :param rank: which of the host's networks its routes prefer: 0 for the first.
    :raises ConfigurationError: if the network is not open, has no address left, or has a member of the host's name.
    :ivar host: as above.
    :ivar network: as above.
    :ivar name: as above.
    :ivar ip4: the host's IPv4 address in this network, empty without IPv4.
    :ivar ip6: its IPv6 address, likewise.
    :ivar rank: as above.
    :ivar tap: descriptor of the device, which is closed with the interface; -1 while there is none.
    """

    def __init__(self, host: Owner, network: NetworkBase, name: str, rank: int = 0) -> None:
        self.rank = rank
        self.host = host
        self.network = network
        self.name = name
        self.ip4 = self.ip6 = ""
        self.tap = -1
        self._port: TapPort | None = None
        self._addresses: HostAddresses | None = None
        self._entered = network is not host.network
        if self._entered:
            network.enter(host.name, self)
        try:
            addresses = self._addresses = network.allot(host.configured)
        except BaseException:
            self.disconnect()
            raise
        self.ip4, self.ip6 = addresses.ip4, addresses.ip6

    def __repr__(self) -> str:
        return f"<interface {self.name} of host {self.host.name}>"

    @property
    def port(self) -> TapPort:
        """The port of the network's switch that leads to it.

        :raises ConfigurationError: if it has ended; so do `down` and `up`.
        """
        if self._port is None:
            raise ConfigurationError(
                f"host {self.host.name} is not in network {self.name} any more", "use what host.interfaces has"
            )
        return self._port

    @property
    def is_down(self) -> bool:
        """Whether the link is cut."""
        return self._port is not None and self._port.down

    def down(self) -> None:
        """Cut the link, as if its cable were pulled: nothing passes, and the host's kernel sees no carrier."""
        self._set_link(False)

    def up(self) -> None:
        """Mend the link."""
        self._set_link(True)

    def close(self) -> None:
        """Take the host out of the network. More calls do nothing."""
        self.host.leave(self)

    def addresses_in(self, network: object) -> tuple[str, ...]:
        """Return the addresses in a network, as text."""
        return tuple(filter(None, (self.ip4, self.ip6))) if network is self.network else ()

    def show_names(self) -> None:
        """Let the host's programs know the names anew."""
        self.host.show_names()

    def request(self, host_name: str = "") -> OpenRequest:
        """Return the request for the device.

        :param host_name: of a namespace that is to be made, too.
        """
        assert self._addresses is not None
        return OpenRequest(
            ifname=self.name,
            mac=self._addresses.mac.hex(":"),
            mtu=self.network.mtu,
            configure=True,
            addresses=self._addresses.prefixes if self.host.configured else (),
            routes=self.ranked(self.network.routes),
            hostname=host_name,
        )

    def ranked(self, routes: Iterable[Route]) -> tuple[Route, ...]:
        """Return routes of the network as the device has them; the network that the host joined first is preferred."""
        if not self.host.configured:
            return ()
        metric = METRIC + self.rank if self.rank else None
        return tuple(replace(route, metric=metric) for route in routes)

    def reroute(self, network: object, added: Iterable[Route], removed: Iterable[Route]) -> None:
        """Let the host's kernel have other routes."""
        if network is self.network:
            self.host.reroute(network, added, removed)

    def connect(self) -> None:
        """Connect the device with the switch.

        :raises ConfigurationError: if the network has been closed.
        """
        assert self._addresses is not None
        mac = self._addresses.mac
        self._port = self.network.call(lambda lan: lan.add_tap(self.host.name, self.tap, mac))

    def disconnect(self) -> int:
        """Leave the network; return the descriptor of the device, which is the caller's now, -1 if there is none."""
        port, self._port = self._port, None
        if port is not None:
            self.network.call_open(lambda lan: lan.remove(port))
        if self._entered:
            self._entered = False
            self.network.leave(self.host.name)
        addresses, self._addresses = self._addresses, None
        if addresses is not None:
            self.network.take_back(addresses)
        tap, self.tap = self.tap, -1
        return tap

    def end(self) -> None:
        """Leave the network, and close the device. More calls do nothing."""
        addresses = self._addresses
        tap = self.disconnect()
        if addresses is not None:
            self.network.forget(addresses)
        if tap >= 0:
            posix.close(tap)

    def _set_link(self, up: bool) -> None:
        port = self.port
        self.network.call(lambda lan: lan.set_link(port, up))
