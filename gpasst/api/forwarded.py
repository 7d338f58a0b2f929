"""What ports of this machine can lead to: a host, or a virtual machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpasst.api.member import Member
from gpasst.errors import ConfigurationError

if TYPE_CHECKING:
    from gpasst.api.network_base import NetworkBase
    from gpasst.api.uplink import HostForward


class Forwarded(Member):
    """The base of a host or a virtual machine, which ports of this machine can lead to.

    :ivar name: its name.
    """

    name: str

    def _networks(self) -> Iterable[NetworkBase]:
        """Return its networks, the first one first."""
        raise NotImplementedError

    def forward(self, protocol: str, specification: str) -> HostForward:
        """Let ports of this machine lead to it, until the forward, the host or the network ends.

        ::

            with a.forward("tcp", "0:80") as forward:
                urllib.request.urlopen(f"http://127.0.0.1:{forward.port}/")

        :param protocol: ``"tcp"`` or ``"udp"``.
        :param specification: ports of this machine and of the host, as ``"8080:80"``, or ``"0:80"`` for one that the
            kernel chooses; as the options `tcp_ports` and `udp_ports` take them, but without a target address.
        :raises ConfigurationError: if the specification makes no sense, or none of its networks has an uplink.
        :raises PlatformError: if a port cannot be had; none of them is open then.
        """
        networks = list(self._networks())
        if not networks:
            raise ConfigurationError(f"{self.name} is not open, or in no network", "use it while its network is open")
        network = next((network for network in networks if network.has_uplink), networks[0])
        return network.uplink.forward(self.name, self.addresses_in(network), protocol, specification)
