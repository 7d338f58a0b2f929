"""Services of a test: Python callables that answer the guest for addresses which exist nowhere.

Theory of operation: the address is checked here, where the user reads the error; `gpasst.proxy.served` does the rest,
on the hub of the proxy.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from gpasst.api.handle import Handle
from gpasst.errors import ConfigurationError
from gpasst.helper.client import OpenRequest
from gpasst.hub import wait_read
from gpasst.packet.address import V4
from gpasst.packet.dhcp_wire import DHCP_SERVER_PORT, DHCPV6_SERVER_PORT
from gpasst.proxy.served import DatagramHandler, DatagramService, StreamHandler, StreamService

if TYPE_CHECKING:
    from gpasst.helper.client import Namespace
    from gpasst.proxy.proxy import Proxy
    from gpasst.runtime import Runtime

PORT_MAXIMUM = 0xFFFF
BROADCAST4 = "255.255.255.255"
OWN_PORTS = {4: DHCP_SERVER_PORT, 6: DHCPV6_SERVER_PORT}  # of UDP, on which gpasst itself answers, by family


class Service(Handle):
    """A callable that answers the guest; ends with `close`, its `with` statement or the connection.

    :ivar protocol: ``"udp"`` or ``"tcp"``.
    :ivar address: the address that it answers for, as text.
    :ivar port: the port that it answers on.
    """

    def __init__(
        self,
        here: Runtime,
        proxy: Proxy,
        protocol: str,
        address: str,
        port: int,
        service: DatagramService | StreamService,
    ) -> None:
        self.protocol = protocol
        self.address = address
        self.port = port
        self._here = here
        self._served = proxy.served
        self._service = service

    def __repr__(self) -> str:
        return f"<{self.protocol} service at {self.address} port {self.port}>"

    @property
    def calls(self) -> int:
        """How often the handler was called."""
        return self._service.handlers.calls

    @property
    def errors(self) -> tuple[str, ...]:
        """Text of the newest errors of the handler, with their tracebacks, oldest first."""
        return tuple(self._service.handlers.errors)

    def close(self) -> None:
        """Answer no more: calls that run are ended, and their streams are reset. More calls of this do nothing."""
        self._here.call(lambda: self._served.end(self._service))


def serve_udp(here: Runtime, proxy: Proxy, address: str, port: int, handler: DatagramHandler) -> Service:
    """Do what `gpasst.api.connection.Connection.serve_udp` does, for a proxy of `here`."""
    packed, shown, name = _checked(proxy, "udp", address, port, handler)
    service = here.call(lambda: proxy.served.udp(packed, port, handler, name))
    return Service(here, proxy, "udp", shown, port, service)


def serve_tcp(here: Runtime, proxy: Proxy, address: str, port: int, handler: StreamHandler) -> Service:
    """Do what `gpasst.api.connection.Connection.serve_tcp` does, for a proxy of `here`."""
    packed, shown, name = _checked(proxy, "tcp", address, port, handler)
    request = OpenRequest(tap=False, netns_only=proxy.config.netns_only)

    def opened() -> Namespace:
        return here.helper().open(request, wait_read)

    service = here.call(lambda: proxy.served.tcp(packed, port, handler, name, opened))
    return Service(here, proxy, "tcp", shown, port, service)


def _checked(proxy: Proxy, protocol: str, address: str, port: int, handler: object) -> tuple[bytes, str, str]:
    """Return an address in 4 or 16 bytes and as text, and the service's name.

    :raises ConfigurationError: if nothing could answer there.
    """
    try:
        given = ipaddress.ip_address(str(address).partition("%")[0])
    except ValueError:
        raise ConfigurationError(f"{address} is no IP address", "name one, such as 192.0.2.53") from None
    name = f"{protocol} {given} port {port}"
    if given.is_loopback or given.is_unspecified or given.is_multicast or given == ipaddress.ip_address(BROADCAST4):
        raise ConfigurationError(f"{name} cannot be served", "choose a unicast address that no loopback has")
    if not callable(handler):
        raise ConfigurationError(f"the handler of {name} cannot be called", "give a function")
    if not isinstance(port, int) or not 0 < port <= PORT_MAXIMUM:
        raise ConfigurationError(f"{name}: no such port", f"choose one of 1 to {PORT_MAXIMUM}")
    config, network = proxy.config, proxy.network
    if config.splice_only:
        raise ConfigurationError(f"{name} needs a tap", "leave splice_only out")
    if config.no_tcp if protocol == "tcp" else config.no_udp:
        raise ConfigurationError(f"{name}: the protocol is switched off", f"leave no_{protocol} out")
    family = network.ip4 if given.version == V4 else network.ip6
    if family is None:
        raise ConfigurationError(
            f"{name}: the guest has no IPv{given.version}", f"serve an IPv{10 - given.version} address"
        )
    if given.packed == family.address:
        raise ConfigurationError(f"{name} is the guest's own address", "choose another one")
    if protocol == "udp" and port == OWN_PORTS[given.version]:
        raise ConfigurationError(f"{name}: gpasst's own DHCP answers there", "choose another port")
    return given.packed, str(given), name
