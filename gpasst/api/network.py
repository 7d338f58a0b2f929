"""`Network`: namespaces on one switch in this process.

Theory of operation: hosts are namespaces (`gpasst.api.host`), each with a tap that is a port of the switch. What all of
this stands on is in `gpasst.api.network_base`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpasst.api.host import Host
from gpasst.api.interface import Interface
from gpasst.api.limits import limited
from gpasst.api.network_base import MTU_DEFAULT
from gpasst.api.network_watch import NetworkWatch
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.values import check_timeout, shown

if TYPE_CHECKING:
    from os import PathLike

    from gpasst.api.guest import Guest
    from gpasst.api.trunk import Trunk


class Network(NetworkWatch):
    """A network of hosts.

    ::

        with gpasst.Network("lan") as lan:
            a, b = lan.hosts("a", "b")
            b.run(["ping", "-c1", a.ip4], check=True)

    :param name: of the network, and of each host's interface in it.
    :param subnet4: prefix of IPv4, such as ``"10.1.0.0/24"``; None for one that no other network of this process has,
        empty for none.
    :param subnet6: of IPv6, likewise.
    :param mtu: bytes of an IP packet on its links; below 1280 they have no IPv6 (RFC 8200, section 5).
    :param part: the number of this part of a network whose parts are in several processes, joined by trunks: 0 for the
        first. Parts have the same prefixes, and each has addresses of its own among them.
    :param seed: of all its weather that names none; None for that of the test run, or a random one.
    :param record: keep what crosses last, for `expect`, `count` and `save`.
    :param uplink: let its hosts reach the outside through this process (`gpasst.api.uplink`).
    :raises ConfigurationError: if a value makes no sense.
    :ivar name: as above.
    :ivar mtu: as above.
    """

    def __init__(
        self,
        name: str = "lan",
        *,
        subnet4: str | None = None,
        subnet6: str | None = None,
        mtu: int = MTU_DEFAULT,
        part: int | None = None,
        seed: int | None = None,
        record: bool = False,
        uplink: bool = False,
    ) -> None:
        super().__init__(name, subnet4, subnet6, mtu, part, seed, record, uplink)

    @limited()
    def host(self, name: str, *, forwarding: bool = False, configured: bool = True) -> Host:
        """Open a host: a namespace whose interface is a port of this network.

        :param name: of the host, by which the others find it (/etc/hosts).
        :param forwarding: let its kernel forward packets between its networks.
        :param configured: give it its addresses and routes; otherwise it has to ask the gateway, an uplink or a
            router, by DHCP, DHCPv6 (of an uplink) or router solicitation.
        :return: the host, which ends with its `close`, with a ``with`` statement or with this network.
        :raises ConfigurationError: if the name is none, or taken; or the network has no address left.
        :raises PlatformError: if a permission or a limit is in the way.
        """
        host = Host(self, name, forwarding, configured)
        self.enter(name, host)
        try:
            host.open()
        except BaseException:
            self.leave(name)
            raise
        return host

    def hosts(self, *names: str) -> tuple[Host, ...]:
        """Open several hosts; the parameters are those of `host`."""
        return tuple(self.host(name) for name in names)

    @limited()
    def join(self, host: Host) -> Interface:
        """Let a host be in this network, too.

        ::

            with gpasst.Network("left") as left, gpasst.Network("right") as right:
                router = left.host("router", forwarding=True)
                right.join(router)

        :param host: a host that another network has opened.
        :return: its interface here, which ends with its `close`, with a ``with`` statement, with the host or with this
            network.
        :raises ConfigurationError: if it is here already, or its name is taken; or the network has no address left.
        :raises PlatformError: if a limit is in the way.
        """
        if not isinstance(host, Host):
            raise ConfigurationError(f"{shown(host)} is no host", "pass what another network's host(...) has returned")
        return host.join(self)

    def __getitem__(self, name: str) -> Host:
        """Return the host of a name.

        :raises KeyError: if there is none.
        """
        member = self._members[name]
        host = member.host if isinstance(member, Interface) else member
        if not isinstance(host, Host):
            raise KeyError(name)
        return host

    def wait_host(self, name: str, timeout: float = 10.0) -> tuple[str, ...]:
        """Wait until there is a host of a name, maybe in another part of this network, behind a trunk.

        :param name: of a host or virtual machine.
        :param timeout: seconds.
        :return: its addresses as text, that of IPv4 first.
        :raises PlatformError: if there is none by then.
        """
        check_timeout(timeout)
        found = self.here().call(lambda: self.names.await_name(name, timeout))
        if not found:
            raise PlatformError(f"network {self.name} has no host {shown(name)}", f"open it within {timeout:g} s")
        return found

    @limited()
    def guest(self, name: str, path: str | PathLike[str] | None = None) -> Guest:
        """Open a port for a virtual machine.

        :param name: of the machine.
        :param path: of the UNIX socket that qemu connects to; None for one in a folder of its own.
        :return: the port, which ends with its `close`, with a ``with`` statement or with this network.
        :raises ConfigurationError: if the name is none, or taken; the path is none; or there is no address left.
        :raises PlatformError: if the socket is in use or cannot be made.
        """
        from gpasst.api.guest import Guest

        guest = Guest(self, name, path)
        self.enter(name, guest)
        try:
            guest.open()
        except BaseException:
            self.leave(name)
            raise
        return guest

    @limited()
    def trunk(
        self,
        *,
        listen: str | PathLike[str] | None = None,
        connect: str | PathLike[str] | None = None,
        secret: str | bytes = "",
        timeout: float = 10.0,
    ) -> Trunk:
        """Join this network with its parts in other processes, or on other machines.

        One side listens, any number of others connect to it; hosts of all parts are then on one network. A connection
        that is lost is made again. Parts form a tree: a trunk between two that are joined already is refused.

        :param listen: where to listen: a path, for processes of this user alone; or host and port, such as
            ``"192.0.2.1:4000"``. A port alone is one of the loopback interface, and port 0 one that is free.
        :param connect: where another part listens, likewise.
        :param secret: what both sides must have; a trunk over TCP needs one.
        :param timeout: seconds to wait for the side that listens, if this one connects; 0 for none.
        :return: the trunk, which ends with its `close`, with a ``with`` statement or with this network.
        :raises ConfigurationError: if an argument makes no sense, or the other side refuses the trunk.
        :raises PlatformError: if it cannot listen, or nobody listens by then.
        """
        from gpasst.api.trunk import open_trunk

        trunk = open_trunk(self, listen, connect, secret)
        self._closing.callback(trunk.close)
        if connect is not None and timeout:
            try:
                trunk.wait(timeout)
            except BaseException:
                trunk.close()
                raise
        return trunk
