"""Fixtures of passt mode's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpasst
from tests.support.engines import ENGINES
from tests.support.guests import expire
from tests.support.lab import Remote
from tests.support.passt import ENGINE_PORT, FORWARDS, greeted
from tests.support.scripted import Guest


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, closed to nobody."""
    with tempfile.TemporaryDirectory(prefix="gpasst-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture(scope="module")
def link(folder: Path, remote: Remote) -> Iterator[gpasst.Passt]:
    """What most tests share; each connects a guest of its own."""
    del remote
    with gpasst.Passt(socket=str(folder / "link"), udp_ports=FORWARDS, tcp_ports=FORWARDS) as opened:
        yield opened


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest, folder: Path, remote: Remote) -> Iterator[gpasst.Passt]:
    del remote
    with gpasst.Passt(socket=str(folder / "engine"), udp_ports=str(ENGINE_PORT), **ENGINES[request.param]) as opened:
        yield opened


@pytest.fixture
def guest(link: gpasst.Passt) -> Iterator[Guest]:
    with Guest.connect(link.path) as connected:
        greeted(connected)
        yield connected
    expire(link)
