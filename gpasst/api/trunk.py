"""`Trunk`: a network joined with its parts in other processes, or on other machines.

Theory of operation: a trunk is a side of `gpasst.proxy.trunk_sides` on the network's hub. What waits for it waits
there, for an event.
"""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

from gpasst.api.handle import Handle
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.link.listener import check_path
from gpasst.linux import AF_UNIX
from gpasst.proxy.trunk_sides import Place, Side, TrunkConnector, TrunkListener, written
from gpasst.switch.handshake import Refusal
from gpasst.values import check_timeout, shown

if TYPE_CHECKING:
    from gpasst.api.network_base import NetworkBase
    from gpasst.proxy.lan import Lan
    from gpasst.runtime import Runtime

LOOPBACK = "127.0.0.1"
WRITTEN = "write it like 127.0.0.1:4000, or as a path with a slash"
PORTS = range(65536)
_PORT = re.compile("[0-9]{1,5}")
REMEDIES = {
    Refusal.PROTOCOL: "name the address of a trunk that listens",
    Refusal.VERSION: "use one version of gpasst at both ends",
    Refusal.SECRET: "give both ends the same secret",
    Refusal.LOOP: "leave this trunk out",
    Refusal.PREFIXES: "give all parts the same subnet4 and subnet6, or each a number: Network(..., part=N)",
    Refusal.ADDRESSES: "give each part a number of its own, Network(..., part=N)",
}


class Trunk(Handle):
    """One side of a trunk; `Network.trunk` opens it.

    :param here: the runtime of the network.
    :param side: the side on the hub.
    """

    def __init__(self, here: Runtime, side: Side) -> None:
        self._here = here
        self._side = side

    def __repr__(self) -> str:
        return f"<trunk {self.address}>"

    @property
    def name(self) -> str:
        """The name of its link, for weather and captures: ``lan.link(trunk)``.

        The side that listens has a link for each side that has connected: this name with ``-1``, ``-2`` and so on.
        """
        return self._side.name

    @property
    def address(self) -> str:
        """Where it listens, or connects to: a path, or host and port, such as ``127.0.0.1:4000``."""
        return self._side.text

    @property
    def peers(self) -> int:
        """The switches that are joined by it now; 1 at most for the side that connects."""
        return self._side.peers

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until it joins this network with another part.

        :param timeout: seconds.
        :raises ConfigurationError: if the other side refuses it, or it is closed.
        :raises PlatformError: if there is no other side by then.
        """
        check_timeout(timeout)
        side = self._side

        def joined() -> bool:
            if not side.peers and not side.closed:
                side.changed.clear()
                side.changed.wait(timeout)
            return side.peers > 0

        if self._here.call(joined):
            return
        if side.refusal is not None:
            raise ConfigurationError(f"trunk {self.address}: {side.refusal.value}", REMEDIES[side.refusal])
        reason = side.failure or "nobody has connected"
        raise PlatformError(f"trunk {self.address}: {reason}", f"begin the other side within {timeout:g} s")

    def close(self) -> None:
        """End it; more calls do nothing."""
        self._here.call(self._side.close)


def open_trunk(
    network: NetworkBase,
    listen: str | os.PathLike[str] | None,
    connect: str | os.PathLike[str] | None,
    secret: str | bytes,
) -> Trunk:
    """Open one side of a trunk; the parameters are those of `Network.trunk`.

    :raises ConfigurationError: if an argument makes no sense.
    :raises PlatformError: if it cannot listen.
    """
    if (listen is None) == (connect is None):
        raise ConfigurationError("a trunk listens or connects", "give listen or connect, and not both")
    what, where = ("listen", listen) if connect is None else ("connect", connect)
    assert where is not None
    place = _place(what, where)
    if not isinstance(secret, str | bytes):
        raise ConfigurationError(f"secret of the type {type(secret).__name__}", "give text or bytes")
    if not place.local and not secret:
        raise ConfigurationError(f"{what} {place.text}: a trunk over TCP needs a secret", "give secret= at both ends")
    key = secret.encode() if isinstance(secret, str) else secret
    kind = TrunkListener if connect is None else TrunkConnector
    here = network.here()

    def begin(lan: Lan) -> Side:
        trunks = network.trunks(lan)
        return kind(trunks, trunks.name_side(), place, key)

    return Trunk(here, network.call(begin))


def _place(what: str, where: str | os.PathLike[str]) -> Place:
    """Return where a trunk listens or connects to.

    :param what: names the argument, in messages.
    :raises ConfigurationError: if that is no place.
    """
    if not isinstance(where, str | os.PathLike):
        raise ConfigurationError(f"{what} {where!r} is no address", WRITTEN)
    text = os.fspath(where)
    if os.sep in text or not isinstance(where, str):
        check_path(text, what)
        return Place(((AF_UNIX, text),), text)
    host, _, port = text.rpartition(":")
    if not (_PORT.fullmatch(port) and int(port) in PORTS) or (":" in host and host[0] != "["):
        raise ConfigurationError(f"{what} {shown(text)} is no address", WRITTEN)
    try:
        found = socket.getaddrinfo(host.strip("[]") or LOOPBACK, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(f"{what} {shown(text)}: {error.strerror}", WRITTEN) from None
    except UnicodeError:  # a label of the name is too long or empty
        raise ConfigurationError(f"{what} {shown(text)} is no address", WRITTEN) from None
    addresses = tuple((family, address) for family, *_, address in found)
    return Place(addresses, written(host.strip("[]") or LOOPBACK, int(port)))
