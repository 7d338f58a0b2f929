"""`Network`: namespaces on one switch in this process.

Theory of operation: hosts are namespaces (`gpasst.api.host`), each with a tap that is a port of the switch. What all of
this stands on is in `gpasst.api.network_base`.
"""

from __future__ import annotations

from gpasst.api.host import Host
from gpasst.api.interface import Interface
from gpasst.api.network_base import MTU_DEFAULT, NetworkBase


class Network(NetworkBase):
    """A network of hosts.

    ::

        with gpasst.Network("lan") as lan:
            a, b = lan.hosts("a", "b")
            b.run(["ping", "-c1", a.ip4], check=True)

    :param name: of the network, and of each host's interface in it.
    :param subnet4: prefix of IPv4, such as ``"10.1.0.0/24"``; None for one that no other network of this process has,
        empty for none.
    :param subnet6: of IPv6, likewise.
    :param mtu: bytes of an IP packet on its links.
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
    ) -> None:
        super().__init__(name, subnet4, subnet6, mtu)

    def host(self, name: str, *, forwarding: bool = False) -> Host:
        """Open a host: a namespace whose interface is a port of this network.

        :param name: of the host, by which the others find it (/etc/hosts).
        :param forwarding: let its kernel forward packets between its networks.
        :return: the host, which ends with its `close`, with a ``with`` statement or with this network.
        :raises ConfigurationError: if the name is none, or taken; or the network has no address left.
        :raises PlatformError: if a permission or a limit is in the way.
        """
        host = Host(self, name, forwarding)
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
