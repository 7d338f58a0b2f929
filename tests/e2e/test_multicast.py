"""Multicast of the guest: it leaves by the host's interface, and reaches no listener on the host itself."""

from __future__ import annotations

import pytest

import gpasst
from tests.support.families import FAMILY
from tests.support.guests import gateway, guest_socket, tap_index
from tests.support.lab import Remote, bound, host_socket

pytestmark = pytest.mark.usefixtures("tun", "remote")

ANY = {4: "0.0.0.0", 6: "::"}


@pytest.mark.parametrize(
    ("family", "group", "port", "forwarded"),
    [(4, "224.0.0.1", 5000, False), (6, "ff02::1", 5000, False), (6, "ff02::1", 5001, True)],
)
def test_all_nodes_are_the_networks_and_not_the_hosts_own(
    remote: Remote, family: int, group: str, port: int, forwarded: bool
) -> None:
    ports = str(port) if forwarded else "none"
    with (
        gpasst.Pasta(config_net=True, udp_ports=ports) as net,
        bound(remote.socket(FAMILY[family]), ANY[family]) as neighbour,
        bound(host_socket(FAMILY[family]), ANY[family], neighbour.getsockname()[1]) as server,
        guest_socket(net, family, port) as guest,
    ):
        asked = neighbour.getsockname()[1]
        guest.sendto(b"to all", (group, asked, 0, tap_index(net)) if family == 6 else (group, asked))
        assert neighbour.recv(99) == b"to all"
        guest.sendto(b"to the host", (gateway(net, family), asked))
        assert server.recv(99) == b"to the host"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(99)
