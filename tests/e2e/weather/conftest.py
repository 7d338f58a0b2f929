"""Fixtures of weather's tests: guests with a kernel behind both links, with and without offloads."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import machines
from tests.support.guests import resolve_by
from tests.support.lab import Remote
from tests.support.machines import Machine

MACHINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tap": (machines.tap, {}),
    "tap-no-offload": (machines.tap, {"no_offload": True}),
    "stream": (machines.stream, {}),
}


@pytest.fixture(scope="package", params=MACHINES)
def machine(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[Machine]:
    """A guest, which the tests share."""
    del tun
    make, options = MACHINES[request.param]
    with make(mtu=1500, **options) as opened:
        resolve_by(lambda family: opened.socket(family, socket.SOCK_DGRAM), remote)
        yield opened


@pytest.fixture(params=["guest", "host"])
def to(request: pytest.FixtureRequest) -> str:
    """Where the frames go that weather acts on."""
    return str(request.param)
