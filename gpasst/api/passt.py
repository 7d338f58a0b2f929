"""`Passt`: the network of a virtual machine."""

from __future__ import annotations

from _socket import socket as RawSocket  # a class
from typing import TYPE_CHECKING, Any

from gevent.socket import wait_read

from gpasst.config import Config
from gpasst.errors import ConfigurationError
from gpasst.flow.network import build_network, parse_resolver_file
from gpasst.link.listener import GuestListener
from gpasst.proxy.proxy import Proxy

if TYPE_CHECKING:
    pass

from gpasst.api.connection import RESOLVER_FILE, Connection, read_text


class Passt(Connection):
    """The network of a virtual machine, which connects to a UNIX socket.

    ::

        with gpasst.Passt(socket="/run/vm.sock", udp_ports="5000") as link:
            qemu = subprocess.Popen(["qemu-system-x86_64", *link.qemu_options, ...])

    :param config: what to do; or its fields as keywords, which are the long option names with ``_`` for ``-``.
    :raises ConfigurationError: if an option makes no sense, or names what does not exist.
    :raises PlatformError: if a permission, a busy port or a busy path is in the way.
    """

    mode = "passt"

    def __init__(self, config: Config | None = None, **fields: Any) -> None:
        super().__init__(config, fields)
        self._path = ""

    @property
    def path(self) -> str:
        """The file of the listening socket; empty if the guest's socket was handed over."""
        self._opened()
        return self._path

    @property
    def qemu_options(self) -> tuple[str, ...]:
        """Options of qemu (7.2 or later) that connect a virtual machine here."""
        netdev = f"stream,id=gpasst,server=off,addr.type=unix,addr.path={self.path}"
        return "-device", "virtio-net-pci,netdev=gpasst", "-netdev", netdev

    def _open(self) -> None:
        assert self._runtime is not None
        config = self.config
        with self._runtime.lock:
            facts = self._runtime.helper().facts(wait_read)
        network = build_network(config, facts, parse_resolver_file(read_text(RESOLVER_FILE)), advertises=True)
        first, last = facts["ephemeral"]
        end = _handed_over(config.fd) if config.has_fd else GuestListener(config.socket)
        try:
            self._proxy = Proxy(config, network, end, (first, last), polls=self._runtime.polls)
        except BaseException:
            end.close()
            raise
        self._path = end.path if isinstance(end, GuestListener) else ""


def _handed_over(descriptor: int) -> RawSocket:
    """Take a guest's socket over; the caller's descriptor becomes ours.

    :raises ConfigurationError: if it is not an open socket.
    """
    try:
        return RawSocket(fileno=descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"--fd {descriptor}: {error.strerror}", "pass one end of a connected socket pair"
        ) from None
