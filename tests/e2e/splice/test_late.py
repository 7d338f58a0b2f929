"""The process that keeps the namespace does not answer: nothing waits for it, and what is lost by that is counted."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

import gpasst
from gpasst.counters import Drop
from gpasst.host.socket_pool import READY
from tests.support.ready import stopped, until

pytestmark = pytest.mark.usefixtures("tun", "remote")

PORT = 5000
SENDERS = READY + 8


def test_flows_go_on_while_it_is_stopped_and_new_ones_come_when_it_goes_on() -> None:
    with gpasst.Pasta(udp_ports=f"127.0.0.1/{PORT}", config_net=True) as net, ExitStack() as stack:
        service = stack.enter_context(net.socket())
        service.bind(("127.0.0.1", PORT))
        service.settimeout(10)

        def ask() -> None:
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.sendto(b"?", ("127.0.0.1", PORT))

        holder = net._namespace.pid  # type: ignore[union-attr]  # noqa: SLF001
        with stopped(holder):
            for _ in range(SENDERS):
                ask()
            until(lambda: net.statistics().drops, "what needs a socket more than there are is dropped")
            until(lambda: net.statistics().pairs == READY, "those that are ready are used")
            assert net.statistics().drops == {Drop.NO_SOCKET.value: SENDERS - READY}

        def carried() -> bool:
            before = net.statistics().pairs
            ask()
            until(lambda: net.statistics().pairs > before or net.statistics().drops, "carried or dropped")
            return net.statistics().pairs > before

        until(carried, "a new sender after it went on")
