"""Fixtures of TCP's tests: guests with a kernel behind both links, with and without offloads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import machines
from tests.support.lab import Remote
from tests.support.machines import Machine
from tests.support.streams import FORWARD

MACHINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tap-1500": (machines.tap, {"mtu": 1500}),
    "tap-65520": (machines.tap, {"mtu": 65520}),
    "tap-1500-without-tso": (machines.tap, {"mtu": 1500, "without": "tso"}),
    "tap-1500-without-peek": (machines.tap, {"mtu": 1500, "without": "peek"}),
    "tap-65520-no-offload": (machines.tap, {"mtu": 65520, "no_offload": True}),
    "stream-1500": (machines.stream, {"mtu": 1500}),
    "stream-65520": (machines.stream, {"mtu": 65520}),
    "stream-65520-without-peek": (machines.stream, {"mtu": 65520, "without": "peek"}),
    "stream-1500-no-offload": (machines.stream, {"mtu": 1500, "no_offload": True}),
}


@pytest.fixture(scope="module", params=MACHINES)
def machine(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[Machine]:
    """A guest, which the tests of a module share."""
    del tun, remote
    make, options = MACHINES[request.param]
    with make(tcp_ports=FORWARD, **options) as opened:
        yield opened
