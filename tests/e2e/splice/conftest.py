"""Fixtures of the tests of splice pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import gpasst
from tests.support.engines import ENGINES
from tests.support.lab import Remote
from tests.support.ready import until
from tests.support.stream_ways import INWARD, OUTWARD, SERVICE, StreamWay, pairs
from tests.support.ways import Way


@pytest.fixture(params=ENGINES, scope="module")
def net(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    """A namespace and its host, which lead to each other's ports 53 and 54."""
    del tun, remote
    ports: dict[str, Any] = {"udp_ports": "8053-8054:53-54", "udp_ns": "5300-5301:53-54"}
    with gpasst.Pasta(config_net=True, **ports, **ENGINES[request.param]) as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["to-namespace", "to-host"])
def way(request: pytest.FixtureRequest, net: gpasst.Pasta, family: int) -> Way:
    ports = (5300, 5301) if request.param else (8053, 8054)
    return Way(net, family, request.param, *ports)


@pytest.fixture(scope="module")
def streams(tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    """A namespace and its host, which lead to each other's port 80."""
    del tun, remote
    with gpasst.Pasta(config_net=True, tcp_ports=f"{INWARD}:{SERVICE}", tcp_ns=f"{OUTWARD}:{SERVICE}") as opened:
        yield opened


@pytest.fixture(params=[False, True], ids=["to-namespace", "to-host"])
def stream_way(request: pytest.FixtureRequest, streams: gpasst.Pasta, family: int) -> StreamWay:
    # The sockets of an earlier test are closed, but the proxy may not have heard of it yet.
    until(lambda: not pairs(streams), "no pair of an earlier test")
    return StreamWay(streams, family, request.param, OUTWARD if request.param else INWARD)
