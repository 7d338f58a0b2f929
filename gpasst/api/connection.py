"""The base of `Pasta` and `Passt`: a configuration, and a proxy while it is open.

Theory of operation: the proxy lives on the runtime's hub, so every question to it crosses over to that hub. Between
`close` and the next `open` the object refers to neither proxy nor hub.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from gpasst import runtime
from gpasst.api.counted import Counted
from gpasst.api.impairable import ImpairableConnection
from gpasst.api.lifetime import Lifetime
from gpasst.api.observed import Observed
from gpasst.api.serving import Serving
from gpasst.config import Config, given_fields
from gpasst.counters import Statistics
from gpasst.errors import ConfigurationError
from gpasst.flow.record import Flow, Forward
from gpasst.values import similar

if TYPE_CHECKING:
    from gpasst.api.forwards import AddedForward
    from gpasst.capture.history import History
    from gpasst.proxy.proxy import Proxy

T = TypeVar("T")

RESOLVER_FILE = "/etc/resolv.conf"
PORTS_NAMED = 10  # in a message

log = logging.getLogger(__name__)


class Connection(Lifetime, Serving, ImpairableConnection, Observed, Counted):
    """The base of `Pasta` and `Passt`.

    :param config: the options.
    :param fields: the same as the fields of a `Config`; one of both is empty.
    :param record: keep what crosses last.
    :raises ConfigurationError: if an option makes no sense, or belongs to the other class.
    :ivar config: the options.
    """

    mode = ""

    def __init__(self, config: Config | None, fields: dict[str, Any], record: bool = False) -> None:
        if config is not None and fields:
            raise ConfigurationError("a Config and keywords were given", "give one of them")
        if config is None:
            names = {item.name for item in given_fields()}
            unknown = sorted(set(fields) - names)
            if unknown:
                raise ConfigurationError(
                    f"unknown option {unknown[0]}", f"{similar(unknown[0], names)}see gpasst.Config for their names"
                )
            config = Config(**fields)
        config.check_mode(self.mode)
        self.config = config
        self._proxy: Proxy | None = None
        self._history: History | None = None
        self._record = record
        self._added: set[AddedForward] = set()

    def close(self) -> None:
        """Stop the proxy and close all that belongs to it. More calls do nothing."""
        self._resolvers = ()
        super().close()

    def _begin(self, here: runtime.Runtime) -> None:
        if self._record:
            from gpasst.capture.history import History

            self._history = History()
        self._open(here)
        if self.config.impair:
            report(*self._impair_at_once())

    def _open(self, here: runtime.Runtime) -> None:
        """Start the proxy on the hub of the calling greenlet, which is that of `here`."""
        raise NotImplementedError

    def _close(self) -> None:
        """Stop the proxy on its hub."""
        proxy, self._proxy = self._proxy, None
        self._added.clear()
        if proxy is not None:
            proxy.close()

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The open listeners.

        :raises ConfigurationError: if the connection is not open; so do all that follow.
        """
        return self._call(lambda proxy: proxy.forwards)

    def statistics(self) -> Statistics:
        """Return the counters of traffic and drops."""
        return self._call(lambda proxy: proxy.statistics())

    def flows(self) -> tuple[Flow, ...]:
        """Return every tracked peer and splice pair."""
        return self._call(lambda proxy: proxy.flows())

    def port(self, protocol: str, target: int) -> int:
        """Return the host's port that leads to one of the guest's, such as one that the kernel chose for ``0:53``.

        Of several the one that was opened first is returned.

        :param protocol: ``"tcp"`` or ``"udp"``.
        :param target: the guest's port.
        :raises ConfigurationError: if none leads there.
        """
        forwards = [forward for forward in self.forwards if not forward.inside]
        for forward in forwards:
            if (forward.protocol, forward.target) == (protocol, target):
                return forward.port
        others = ", ".join(f"{forward.protocol} {forward.port}:{forward.target}" for forward in forwards[:PORTS_NAMED])
        raise ConfigurationError(
            f"no port of the host leads to {protocol} {target}", f"forward it; these are: {others or 'none'}"
        )

    def add_forward(self, protocol: str, specification: str, inside: bool = False) -> AddedForward:
        """Forward ports from now on, until `remove_forward` or the end.

        ::

            added = net.add_forward("tcp", "0:80")
            urllib.request.urlopen(f"http://127.0.0.1:{added.port}/")
            net.remove_forward(added)

        :param protocol: ``"tcp"`` or ``"udp"``.
        :param specification: the ports, as the options `tcp_ports` and `udp_ports` take them, but not ``auto``.
        :param inside: let them listen on the namespace's loopback and lead to the host's, as `tcp_ns` and `udp_ns` do.
        :return: one handle for the whole specification.
        :raises ConfigurationError: if the specification makes no sense here, or an address or interface does not exist.
        :raises PlatformError: if a port cannot be had; none of them is open then.
        """
        from gpasst.api.forwards import add_forward, parse_forward

        side, rules = parse_forward(self.config, self.mode, protocol, specification, inside)
        added = self._call(lambda proxy: add_forward(proxy, side, rules))
        self._added.add(added)
        return added

    def remove_forward(self, added: AddedForward) -> None:
        """Close the listeners that `add_forward` has opened, and end what passes them but for accepted connections.

        More calls with the same handle do nothing.

        :param added: what `add_forward` has returned.
        :raises ConfigurationError: if this connection is closed.
        """

        def remove(proxy: Proxy) -> None:
            # Another greenlet may do the same.
            if added in self._added:
                self._added.discard(added)
                proxy.remove_forward(added.added)

        self._call(remove)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the proxy has no guest any more: its namespace, or its only virtual machine, has ended.

        A joined namespace has ended, too, when its file is deleted or its process ends, unless `no_netns_quit` is set.

        :param timeout: seconds, None for no limit.
        :return: whether it has none.
        """
        return bool(self._call(lambda proxy: proxy.finished.wait(timeout)))


def report(*notes: str) -> None:
    """Log what was chosen or left out while opening, one line each."""
    for note in notes:
        log.warning("%s", note)


def read_text(path: str) -> str:
    """Return the text of a file, empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
