"""Notifying a service manager that the proxy is open, and that it ends (sd_notify(3), Type=notify of systemd).

Theory of operation: the manager names a datagram socket in an environment variable. It is connected while the process
may still do so, since the process may become another user, and the variable is removed, so that no COMMAND speaks for
the proxy.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

NOTIFY_SOCKET = "NOTIFY_SOCKET"  # environment variable, of sd_notify(3)
SEND_SECONDS = 1.0  # for a manager that reads nothing; the proxy goes on without it

log = logging.getLogger("gpasst")


class Manager:
    """The service manager that has started the process, if one has.

    A manager that cannot be reached is logged, and nothing else: the proxy works without it.

    :param environment: the environment of the process, from which the variable is removed. Its value is the path of a
        UNIX socket, or ``@`` and its abstract name.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        address = environment.pop(NOTIFY_SOCKET, "")
        if not address:
            return
        import socket

        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.settimeout(SEND_SECONDS)
        try:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            sock.close()
            log.warning("%s=%s: %s; no service manager is notified", NOTIFY_SOCKET, address, error.strerror or error)
            return
        self._socket = sock

    def notify(self, state: str) -> None:
        """Send a state in one datagram.

        :param state: such as ``READY=1``.
        """
        if self._socket is None:
            return
        try:
            self._socket.send(state.encode())
        except OSError as error:
            log.warning("%s: %s; the service manager is not notified", state, error.strerror or error)

    def close(self) -> None:
        """Close the socket. More calls do nothing."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
