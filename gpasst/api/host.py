"""`Host`: a namespace in a network.

Theory of operation: the helper makes the namespace and its tap, which becomes a port of the network's switch. Programs
and sockets are those of `Inhabited`. A host lives on the runtime of the network that opened it, and ends with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpasst import runtime
from gpasst.api.handle import Handle
from gpasst.api.inhabited import Inhabited
from gpasst.errors import ConfigurationError
from gpasst.helper.client import OpenRequest
from gpasst.helper.kept import Namespace
from gpasst.hub import wait_read

if TYPE_CHECKING:
    from gpasst.api.network_base import NetworkBase
    from gpasst.link.switch import Port


class Host(Inhabited, Handle):
    """A host of a network; `Network.host` opens it.

    :ivar name: its name.
    :ivar network: the network that opened it.
    :ivar ip4: its IPv4 address in that network, empty without IPv4.
    :ivar ip6: its IPv6 address, likewise.
    """

    def __init__(self, network: NetworkBase, name: str) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.ip4 = self.ip6 = ""
        self._runtime: runtime.Runtime | None = None
        self._namespace: Namespace | None = None
        self._port: Port | None = None

    def __repr__(self) -> str:
        return f"<host {self.name}>"

    @property
    def interface(self) -> str:
        """Name of its interface."""
        return self._joined().name

    def open(self) -> None:
        """Make the namespace, and connect it with the network.

        :raises ConfigurationError: if the network has no address left.
        :raises PlatformError: if a permission or a limit is in the way.
        """
        addresses = self.network.allot()
        self.ip4, self.ip6 = addresses.ip4, addresses.ip6
        request = OpenRequest(
            ifname=self.network.name,
            mac=addresses.mac.hex(":"),
            mtu=self.network.mtu,
            configure=True,
            addresses=addresses.prefixes,
            hostname=self.name,
        )
        here = self._runtime = self.network.here()
        self._namespace = namespace = here.call(lambda: here.helper().open(request, wait_read))
        try:
            self._port = self.network.call(lambda lan: lan.add_tap(self.name, namespace.tap, addresses.mac))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End its programs, and the host. More calls do nothing."""
        here, self._runtime = self._runtime, None
        if here is not None:
            self._end_programs()
            self.network.leave(self.name)
            here.call(self._close)

    def _close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            self.network.call(lambda lan: lan.remove(port))
        namespace, self._namespace = self._namespace, None
        if namespace is not None:
            namespace.close()

    def _joined(self) -> Namespace:
        if self._namespace is None:
            raise ConfigurationError(f"host {self.name} is not open", "use it while its network is open")
        return self._namespace
