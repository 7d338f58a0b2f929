"""`Passt`: the network of a virtual machine.

Theory of operation: opening a `Passt` asks the helper for the host's facts, lays the options over them, listens on a
UNIX socket (or takes over a connected one), and starts a proxy on the runtime's hub.
"""

from __future__ import annotations

from _socket import socket as RawSocket  # a class
from typing import Any

from gpasst.api.connection import RESOLVER_FILE, Connection, read_text, report
from gpasst.config import Config
from gpasst.errors import ConfigurationError
from gpasst.flow.network import build_network
from gpasst.flow.resolver_file import parse_resolver_file
from gpasst.hub import wait_read
from gpasst.link.listener import GuestListener
from gpasst.runtime import Runtime


class Passt(Connection):
    """The network of a virtual machine, which connects to a UNIX socket.

    ::

        with gpasst.Passt(socket="/run/vm.sock", udp_ports="5000") as link:
            qemu = subprocess.Popen(["qemu-system-x86_64", *link.qemu_options, ...])

    :param config: the options; or its fields as keywords, which are the long option names with ``_`` for ``-``.
    :param record: keep what crosses last, for `expect`, `count` and `save`.
    :raises ConfigurationError: if an option makes no sense.
    """

    mode = "passt"

    def __init__(self, config: Config | None = None, *, record: bool = False, **fields: Any) -> None:
        super().__init__(config, fields, record)
        self._path = ""

    @property
    def path(self) -> str:
        """Path of the listening socket; empty if the guest's socket was handed over."""
        self._opened()
        return self._path

    def can_lose_sight(self) -> bool:
        """Return whether this process may lose all files, and get ready for that."""
        return True

    @property
    def qemu_options(self) -> tuple[str, ...]:
        """Options of qemu (7.2 or later) that connect a virtual machine."""
        path = self.path.replace(",", ",,")  # a comma ends a value in qemu's options unless it is doubled
        netdev = f"stream,id=gpasst,server=off,addr.type=unix,addr.path={path}"
        return "-device", "virtio-net-pci,netdev=gpasst", "-netdev", netdev

    def _open(self, here: Runtime) -> None:
        from gpasst.proxy.proxy import Proxy

        config = self.config
        facts = here.helper().facts(wait_read)
        network = build_network(config, facts, parse_resolver_file(read_text(RESOLVER_FILE)), advertises=True)
        report(*network.notes)
        first, last = facts["ephemeral"]
        end = GuestListener(config.socket or "") if config.fd is None else _handed_over(config.fd)
        try:
            self._proxy = Proxy(config, network, end, (first, last), here.polls, self._history)
        except BaseException:
            end.close()
            raise
        self._path = end.path if isinstance(end, GuestListener) else ""


def _handed_over(descriptor: int) -> RawSocket:
    """Take over a guest's socket; the proxy closes the descriptor.

    :raises ConfigurationError: if it is not an open socket.
    """
    try:
        return RawSocket(fileno=descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"--fd {descriptor}: {error.strerror}", "pass one end of a connected socket pair"
        ) from None
