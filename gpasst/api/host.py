"""`Host`: a namespace in networks.

Theory of operation: the helper makes the namespace and its first tap, which is a port of the network's switch, and the
other taps when they are asked for (`gpasst.api.interface`). Programs and sockets are those of `Inhabited`. Programs
find the names of all hosts of the host's networks in files of its own, which are made for the first program. A host
lives on the runtime of the network that opened it, and ends with it, wherever it has moved meanwhile.

Changes of one host take turns: each awaits the process that keeps the namespace, while others run.
"""

from __future__ import annotations

import itertools
import logging
import os
import string
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import gevent
from gevent.lock import Semaphore

from gpasst import runtime
from gpasst.api.connection import RESOLVER_FILE, read_text
from gpasst.api.forwarded import Forwarded
from gpasst.api.host_files import HostFiles
from gpasst.api.inhabited import Inhabited
from gpasst.api.interface import Interface
from gpasst.api.limits import limited
from gpasst.api.network_base import NetworkBase, check_network
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.helper.channel import PeerEndedError
from gpasst.helper.kept import Namespace
from gpasst.host.processes import kill_inside
from gpasst.host.socket_pool import PAUSE_SECONDS
from gpasst.hub import wait_read
from gpasst.linux import IFNAMSIZ
from gpasst.proxy.patience import patiently
from gpasst.values import check_flag

if TYPE_CHECKING:
    from gpasst.helper.request import Route

T = TypeVar("T")

BRIEF_SECONDS = 1.0
LOOPBACK = "lo"  # the device that each namespace has

log = logging.getLogger(__name__)


class Host(Inhabited, Forwarded):
    """A host of a network; `Network.host` opens it.

    :ivar name: its name.
    :ivar configured: whether it has its addresses without asking for them.
    :ivar network: the network that opened it.
    :ivar ip4: its IPv4 address in the first of its networks, empty without IPv4.
    :ivar ip6: its IPv6 address there, likewise.
    """

    def __init__(self, network: NetworkBase, name: str, forwarding: bool = False, configured: bool = True) -> None:
        super().__init__()
        check_flag("forwarding", forwarding)
        check_flag("configured", configured)
        self.name = name
        self.configured = configured
        self.network = network
        self.ip4 = self.ip6 = ""
        self._forwarding = forwarding
        self._runtime: runtime.Runtime | None = None
        self._namespace: Namespace | None = None
        self._interfaces: list[Interface] = []
        self._files: HostFiles | None = None
        self._turn = Semaphore()

    def __repr__(self) -> str:
        return f"<host {self.name}>"

    @property
    def nsenter(self) -> list[str]:
        """The command line of nsenter(1) that runs what is put behind it, or a shell, in the host; see `Pasta.nsenter`.

        Other processes of this user may run it even if this one lets nobody look at its descriptors.
        """
        namespace = self._joined()
        assert self._runtime is not None
        doors = self._runtime.call(lambda: patiently(namespace, lambda: namespace.doors(wait_read)))
        return ["nsenter", "--preserve-credentials", *(f"--{group}={path}" for group, path in doors.items())]

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """Its interfaces, one in each of its networks."""
        return tuple(self._interfaces)

    @property
    def interface(self) -> str:
        """Name of the device of its first interface, empty if it is in no network."""
        return self._interfaces[0].name if self._interfaces else ""

    def interface_in(self, network: NetworkBase) -> Interface:
        """Return its interface in a network.

        :raises ConfigurationError: if it is not in that.
        """
        for interface in self._interfaces:
            if interface.network is network:
                return interface
        raise ConfigurationError(
            f"host {self.name} is not in network {network.name}", f"let it join: {network.name}.join({self.name})"
        )

    def open(self) -> None:
        """Make the namespace, and connect it with the network.

        :raises ConfigurationError: if the network has no address left.
        :raises PlatformError: if a permission or a limit is in the way.
        """
        here = self._runtime = self.network.here()
        here.call(lambda: self._open(here))

    def _open(self, here: runtime.Runtime) -> None:
        with self._turn:
            try:
                interface = Interface(self, self.network, _free_name(self.network.name, (LOOPBACK,)))
                request = interface.request(self.name)
                namespace = self._namespace = here.helper().open(request, wait_read)
                namespace.patience = PAUSE_SECONDS
                self._interfaces.append(interface)
                interface.tap, namespace.tap = namespace.tap, -1
                interface.connect()
                routes = interface.ranked(self.network.routes)
                if routes != request.routes:
                    # A router came or went meanwhile.
                    namespace.route(interface.name, routes, set(request.routes) - set(routes), wait_read)
                if self._forwarding:
                    namespace.forward(wait_read)
                self._joined()  # unless it was closed meanwhile
            except BaseException:
                self._runtime = None
                self._end()
                raise
            self._moved()

    def join(self, network: NetworkBase) -> Interface:
        """Give it an interface in a further network; see `Network.join`."""

        def join(namespace: Namespace) -> Interface:
            interface = self._interface(network)
            try:
                tap = patiently(namespace, lambda: namespace.attach(interface.request(), wait_read))
                self._interfaces.append(interface)
                interface.tap = tap.descriptor
                interface.connect()
            except BaseException:
                self._leave(namespace, interface)
                raise
            self._moved()
            return interface

        return self._change(join)

    def leave(self, interface: Interface) -> None:
        """Take it out of a network; see `Interface.close`."""
        if interface in self._interfaces and self._runtime is not None:
            self._change_open(lambda namespace: self._leave(namespace, interface))

    def _leave(self, namespace: Namespace, interface: Interface) -> None:
        there = interface in self._interfaces
        interface.end()
        if there:
            self._interfaces.remove(interface)
        # Its end takes the device along, too; and there may be one that nobody has awaited.
        with suppress(PeerEndedError):
            patiently(namespace, lambda: namespace.detach(interface.name, wait_read))
        if there:
            self._moved(interface.network)

    @limited()
    def move(self, network: NetworkBase, *, leave: NetworkBase | None = None) -> None:
        """Take it from one network to another while its programs run: its address goes, and it gets a new one.

        The device is the same, under the name of the new network; its link is down for a moment. What was on its way is
        lost. Sockets that are bound to the old address have none any more, and others use the new one.

        :param network: where it goes.
        :param leave: where it was; None for the only network that it is in.
        :raises ConfigurationError: if it is in that network already, or its name is taken there; or it is in several,
            and `leave` does not say which.
        :raises PlatformError: if the kernel refuses; it is in neither network then.
        """

        def move(namespace: Namespace) -> None:
            if leave is None and len(self._interfaces) != 1:
                remedy = (
                    "name the one that it leaves: leave=lan" if self._interfaces else "let it join one: lan.join(a)"
                )
                raise ConfigurationError(f"host {self.name} is in {len(self._interfaces)} networks", remedy)
            old = self.interface_in(leave) if leave else self._interfaces[0]
            new = self._interface(network, old)
            was_down = old.is_down
            self._interfaces[self._interfaces.index(old)] = new
            new.tap = old.disconnect()
            try:
                patiently(namespace, lambda: namespace.change(old.name, new.request(), wait_read))
                new.connect()
                if was_down:
                    new.down()
            except BaseException:
                self._leave(namespace, new)
                raise
            self._moved(old.network)

        self._change(move)

    def down(self) -> None:
        """Cut its links, as if their cables were pulled; see `Interface.down`."""
        self._joined()
        for interface in self._interfaces:
            interface.down()

    def up(self) -> None:
        """Mend its links."""
        self._joined()
        for interface in self._interfaces:
            interface.up()

    @limited()
    def kill(self) -> None:
        """Let it fail, as a machine does that loses its power: no program has a last word, and its links are down.

        Its links are cut, every process in the namespace gets SIGKILL, and every TCP socket ends, even one of `socket`.
        After `up` the host is like a machine that has started again: what comes for a connection of before is answered
        with a reset (RFC 9293, section 3.5.1), and programs can be started.

        :raises PlatformError: if a process does not end, or that which keeps the namespace has ended; sockets of this
            process stay open then.
        """

        def kill(namespace: Namespace) -> None:
            for interface in self._interfaces:
                interface.down()
            kill_inside(namespace.netns, {os.getpid(), namespace.pid}, _wait_briefly)
            try:
                patiently(namespace, lambda: namespace.abort_connections(wait_read))
            except PeerEndedError:
                raise
            except PlatformError as error:
                log.warning("host %s: its connections end when it is up again: %s", self.name, error)

        self._change(kill)

    def close(self) -> None:
        """End its programs, and the host. More calls do nothing."""
        here, self._runtime = self._runtime, None
        if here is not None:
            self._end_programs()
            here.call(self._close)

    def _networks(self) -> Iterable[NetworkBase]:
        return (interface.network for interface in self._interfaces)

    def addresses_in(self, network: object) -> tuple[str, ...]:
        """Return its addresses in a network, as text."""
        return tuple(address for interface in self._interfaces for address in interface.addresses_in(network))

    def show_names(self) -> None:
        """Let its programs know the names of hosts anew."""
        if self._files is not None:
            found: dict[str, tuple[str, ...]] = {}
            for interface in self._interfaces:
                found = interface.network.names.find() | found
            resolvers = (interface.network.resolver_file for interface in self._interfaces)
            self._files.write(found, next(filter(None, resolvers), "") or read_text(RESOLVER_FILE))

    def reroute(self, network: object, added: Iterable[Route], removed: Iterable[Route]) -> None:
        """Let its kernel have other routes in a network."""

        def reroute(namespace: Namespace) -> None:
            for interface in self._interfaces:
                if interface.network is network:
                    new, old = interface.ranked(added), interface.ranked(removed)
                    change = partial(namespace.route, interface.name, new, old, wait_read)
                    patiently(namespace, change)

        self._change_open(reroute)

    def _close(self) -> None:
        with self._turn:
            self._end()

    def _end(self) -> None:
        interfaces, self._interfaces = self._interfaces, []
        for interface in interfaces:
            interface.end()
        namespace, self._namespace = self._namespace, None
        if namespace is not None:
            namespace.close()
        files, self._files = self._files, None
        if files is not None:
            files.close()
        self.network.leave(self.name)
        for network in {self.network, *(interface.network for interface in interfaces)}:
            network.renamed()

    def _interface(self, network: NetworkBase, leaving: Interface | None = None) -> Interface:
        """Return an interface in a further network, which is not connected yet.

        :param leaving: the one that it has no longer then.
        :raises ConfigurationError: as of `move`.
        """
        check_network(network)
        if network.here() is not self._runtime:
            raise ConfigurationError(
                f"host {self.name} and network {network.name} are on different event loops", "open both in one thread"
            )
        if any(interface.network is network for interface in self._interfaces):
            raise ConfigurationError(f"host {self.name} is in network {network.name} already", "name another network")
        taken = {LOOPBACK, *(interface.name for interface in self._interfaces if interface is not leaving)}
        rank = leaving.rank if leaving else max((one.rank + 1 for one in self._interfaces), default=0)
        return Interface(self, network, _free_name(network.name, taken), rank)

    def _change(self, function: Callable[[Namespace], T]) -> T:
        """Change the host by a function, in turn with other changes, on the hub.

        :raises ConfigurationError: if the host is not open.
        """
        self._joined()
        here = self._runtime
        assert here is not None

        def in_turn() -> T:
            with self._turn:
                return function(self._joined())

        return here.call(in_turn)

    def _change_open(self, function: Callable[[Namespace], None]) -> None:
        """Change the host likewise, unless it is not open yet, or is closed, maybe by another thread meanwhile."""
        try:
            self._change(function)
        except ConfigurationError:
            if self._namespace is not None and self._runtime is not None:
                raise

    def _moved(self, left: NetworkBase | None = None) -> None:
        """Take note that it is in other networks than before.

        :param left: where it is no longer.
        """
        if self._interfaces:
            self.ip4, self.ip6 = self._interfaces[0].ip4, self._interfaces[0].ip6
        self.show_names()
        for network in (left, *(interface.network for interface in self._interfaces)):
            if network is not None:
                network.renamed()

    def _live_files(self) -> Mapping[str, str]:
        files = self._files
        return files.paths if files is not None else self._change(self._make_files)

    def _make_files(self, namespace: Namespace) -> Mapping[str, str]:
        """Return the paths of its files, which are made for the first program."""
        if self._files is None:
            files = self._files = HostFiles(RESOLVER_FILE if os.path.exists(RESOLVER_FILE) else "")
            self.show_names()
            for path in files.paths.values():
                patiently(namespace, partial(namespace.delete_at_end, path, wait_read))
        return self._files.paths

    def _joined(self) -> Namespace:
        if self._namespace is None or self._runtime is None:
            raise ConfigurationError(f"host {self.name} is not open", "use it while its network is open")
        return self._namespace


def _wait_briefly(descriptor: int) -> None:
    """Wait until a descriptor is readable, but not for ever: a device may hold a process that was killed."""
    with gevent.Timeout(BRIEF_SECONDS, False):
        wait_read(descriptor)


def _free_name(wanted: str, taken: Container[str]) -> str:
    """Return the name of a device: the wanted one, or one with a number if that is taken."""
    for number in itertools.count(2):
        if wanted not in taken:
            return wanted
        wanted = f"{wanted.rstrip(string.digits)[: IFNAMSIZ - 1 - len(str(number))]}{number}"
    raise AssertionError
