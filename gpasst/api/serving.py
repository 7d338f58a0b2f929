"""What answers guests for addresses that exist nowhere: functions of the program, and a resolver.

The work is done by `gpasst.api.services` and `gpasst.api.resolver`, which are imported when they are first used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpasst.api.opened import Opened
from gpasst.flow.network import GuestNetwork

if TYPE_CHECKING:
    import socket

    from gpasst.api.resolver import Delay, Resolver, Truncate
    from gpasst.api.services import Service
    from gpasst.dns import Records


class Serving(Opened):
    """The base of what has a proxy that services can answer by."""

    _resolvers: tuple[Resolver, ...] = ()

    @property
    def network(self) -> GuestNetwork:
        """The guest's network."""
        return self._opened().network

    def _resolver_changed(self) -> None:
        """Take note that programs have another resolver."""

    def _served_file(self) -> str:
        """Return what /etc/resolv.conf says of the newest resolver of `dns`, empty where there is none."""
        return next((found.file for found in reversed(self._resolvers) if found.open), "")

    def serve_udp(self, address: str, port: int, handler: Callable[[bytes, tuple[str, int]], bytes | None]) -> Service:
        """Answer the guest's datagrams to an address and port with a function; no socket of the host takes part.

        Calls run in greenlets of the proxy's hub, up to 1000 at once. A function that waits must wait as gevent does
        (`gevent.sleep`, not `time.sleep`). An error that it raises is logged and kept (`handler_errors`).

        :param address: a unicast address, which need not exist; IPv4 or IPv6.
        :param port: 1 to 65535.
        :param handler: called with the datagram, and address and port of the guest; returns the answer, None for none.
        :return: the service, which ends with its `close`, with a ``with`` statement or with what it belongs to.
        :raises ConfigurationError: if nothing can answer there, or something does already.
        """
        from gpasst.api.services import serve_udp

        proxy = self._opened()
        assert self._runtime is not None
        return serve_udp(self._runtime, proxy, address, port, handler)

    def serve_tcp(
        self, address: str, port: int, handler: Callable[[socket.socket, tuple[str, int]], object]
    ) -> Service:
        """Accept the guest's connections to an address and port with a function; no socket is in the host's network.

        Calls run in greenlets as with `serve_udp`. The stream is closed when the function returns, and reset if it
        raises an error.

        :param address: a unicast address, which need not exist; IPv4 or IPv6.
        :param port: 1 to 65535.
        :param handler: called with a connected socket of `gevent.socket`, and address and port of the guest.
        :return: the service, as of `serve_udp`.
        :raises ConfigurationError: if nothing can answer there, or something does already.
        :raises PlatformError: if the machine allows no further namespace.
        """
        from gpasst.api.services import serve_tcp

        proxy = self._opened()
        assert self._runtime is not None
        return serve_tcp(self._runtime, proxy, address, port, handler)

    def dns(self, records: Records, *, address: str = "", delay: Delay = 0, truncate: Truncate = False) -> Resolver:
        """Answer the guest's DNS queries by UDP and TCP; programs that are started from now on ask this resolver.

        Programs of a namespace find it in a /etc/resolv.conf of their own, those of hosts of a network also if they run
        already; a virtual machine must be told its address.

        :param records: values by name: ``"192.0.2.80"``, a list of addresses, one of the outcomes in `gpasst.dns` such
            as ``"NXDOMAIN"``, or a type and its data such as ``"MX 10 mail.example.org"``. ``"*.example.org"`` stands
            for all names below it, and ``"*"`` for all that nothing else fits, which do not exist without it.
        :param address: the address that answers; empty for one that exists nowhere.
        :param delay: time until each answer, in seconds or as text such as ``"20ms"``; or a function that returns that
            for a `gpasst.dns.Query`.
        :param truncate: whether answers by UDP are cut short; or such a function.
        :return: the resolver, which ends with its `close`, with a ``with`` statement or with what it belongs to.
        :raises ConfigurationError: for records that make no sense, or an address where nothing can answer or something
            does.
        :raises PlatformError: if dnspython is not installed, or the machine allows no further namespace.
        """
        from gpasst.api.resolver import Resolver

        serve_tcp = None if self.config.no_tcp else self.serve_tcp
        resolver = Resolver(
            self.network, self.serve_udp, serve_tcp, records, address, delay, truncate, self._resolver_changed
        )
        self._resolvers = (*(other for other in self._resolvers if other.open), resolver)
        self._resolver_changed()
        return resolver

    @property
    def handler_errors(self) -> tuple[str, ...]:
        """Text of the newest errors of the functions that serve, with their tracebacks, oldest first."""
        return self._call(lambda proxy: proxy.handler_errors)
