"""`Pasta`: a network namespace with the network of an ordinary process.

Theory of operation: opening a `Pasta` asks the helper for the host's facts, lays the options over them, lets the helper
make or join the namespace and its tap, and starts a proxy on the runtime's hub. Closing it undoes all of that.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import gevent

from gpasst import runtime
from gpasst.api.connection import RESOLVER_FILE, Connection, read_text, report
from gpasst.api.inhabited import Inhabited
from gpasst.api.joined import NamespaceWatch, leads
from gpasst.config import Config
from gpasst.features import Feature
from gpasst.flow.network import GuestNetwork, build_network
from gpasst.flow.resolver_file import parse_resolver_file
from gpasst.helper.client import OpenRequest
from gpasst.helper.kept import Namespace
from gpasst.host.sockets import text
from gpasst.hub import wait_read
from gpasst.packet.address import is_link_local
from gpasst.packet.dns_names import encode_text

NETNS_FOLDER = "/run/netns"


class Pasta(Inhabited, Connection):
    """A network namespace connected to the host's sockets.

    ::

        with gpasst.Pasta(config_net=True, udp_ports="5000") as net:
            net.run(["dig", "@" + net.gateway4, "example.org"], check=True)

    :param config: the options; or its fields as keywords, which are the long option names with ``_`` for ``-``.
    :param runas: user and group id of the namespace's programs; root only.
    :param record: keep what crosses last, for `expect`, `count` and `save`.
    :raises ConfigurationError: if an option makes no sense.
    """

    mode = "pasta"

    def __init__(
        self,
        config: Config | None = None,
        *,
        runas: tuple[int, int] | None = None,
        record: bool = False,
        **fields: Any,
    ) -> None:
        Connection.__init__(self, config, fields, record)
        Inhabited.__init__(self, runas)
        self._namespace: Namespace | None = None
        self._watch: NamespaceWatch | None = None

    def _open(self, here: runtime.Runtime) -> None:
        config = self.config
        helper = here.helper()
        # A program that is gpasst alone has started the helper early, and imports while the namespace is made.
        facts = helper.facts(wait_read if here.polls else _wait_busily)
        network = build_network(config, facts, parse_resolver_file(read_text(RESOLVER_FILE)))
        namespace = helper.open(_request(config, network, self._runas), _wait_busily)
        report(*network.notes, *namespace.notes)
        network = network.without(namespace.lacking)
        from gpasst.proxy.proxy import Proxy

        try:
            first, last = facts["ephemeral"]
            proxy = Proxy(config, network, namespace, (first, last), here.polls, self._history)
        except BaseException:
            namespace.close()
            raise
        self._proxy, self._namespace = proxy, namespace
        path = _netns_path(config)
        if path and not config.no_netns_quit:
            self._watch = NamespaceWatch(gevent.get_hub().loop, path, namespace.netns, proxy.finished.set)

    def close(self) -> None:
        """End the programs that run in the namespace, stop the proxy, close the namespace. More calls do nothing."""
        self._end_programs()
        super().close()

    def _close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        super()._close()
        namespace, self._namespace = self._namespace, None
        if namespace is not None:
            namespace.close()

    def can_lose_sight(self) -> bool:
        """Return whether this process may lose all files, and get ready for that."""
        if self._watch is None:
            return True
        if self._watch.looks:
            return False
        self._watch.seal()
        return True

    def exists(self) -> bool:
        """Return whether the file that named a joined namespace still leads to it.

        It counts as existing where this process may not look, and always where the namespace was made.
        """
        namespace, path = self._joined(), _netns_path(self.config)
        return path is None or leads(path, namespace.netns) is not False

    @property
    def interface(self) -> str:
        """Name of the tap in the namespace."""
        return self._joined().name

    @property
    def gateway4(self) -> str:
        """The namespace's IPv4 gateway, which stands for the host by default; empty without IPv4."""
        return text(self.network.ip4.gateway) if self.network.ip4 else ""

    @property
    def gateway6(self) -> str:
        """The namespace's IPv6 gateway, with ``%interface`` if it is link-local; empty without IPv6."""
        if self.network.ip6 is None:
            return ""
        gateway = self.network.ip6.gateway
        return f"{text(gateway)}%{self.interface}" if is_link_local(gateway) else text(gateway)

    def _joined(self) -> Namespace:
        self._opened()
        assert self._namespace is not None
        return self._namespace

    def _resolver_file(self) -> str:
        return self._served_file()


def _wait_busily(descriptor: int) -> None:
    """Wait for the helper's answer, and import meanwhile what comes next: its start or a namespace takes as long."""
    importlib.import_module("gpasst.proxy.proxy")
    wait_read(descriptor)


def _request(config: Config, network: GuestNetwork, runas: tuple[int, int] | None) -> OpenRequest:
    """Return the request to the helper for what the options ask for."""
    netns, userns = _netns_path(config), config.userns
    if config.pid is not None and not userns and not config.netns_only:
        userns = f"/proc/{config.pid}/ns/user"
    return OpenRequest(
        netns=netns,
        userns=userns,
        netns_only=config.netns_only or (netns is not None and userns is None),
        runas=runas,
        ifname=network.interface,
        mac=config.ns_mac_addr,
        mtu=network.mtu,
        offload=Feature.USO in config.features,
        configure=config.config_net and not config.splice_only,
        tap=not config.splice_only,
        addresses=network.addresses,
        routes=network.routes,
        optional=network.optional,
        hostname=encode_text(network.hostname).decode("ascii"),
    )


def _netns_path(config: Config) -> str | None:
    """Return the file of the network namespace to join, None to make one."""
    if config.pid is not None:
        return f"/proc/{config.pid}/ns/net"
    if config.netns and os.sep not in config.netns:
        return os.path.join(NETNS_FOLDER, config.netns)
    return config.netns
