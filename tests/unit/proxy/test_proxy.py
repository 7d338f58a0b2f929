"""What a proxy opens, and that nothing of it stays open, also if it cannot be built, whatever was in the way."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import Counter
from pathlib import Path

import gevent
import pytest

from gpasst.config import Config
from gpasst.errors import PlatformError
from gpasst.features import Feature
from gpasst.host.ring import Ring
from gpasst.proxy import base
from gpasst.proxy.forwarder import Forwarder
from gpasst.proxy.proxy import Proxy
from tests.support.networks import guest_network


def descriptors() -> Counter[str]:
    """Count what is open."""
    with os.scandir("/proc/self/fd") as found:
        return Counter(os.readlink(entry) for entry in found)


@pytest.mark.parametrize("kind", [PlatformError, OSError, KeyboardInterrupt])
def test_a_failed_start(kind: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(forwarder: Forwarder) -> None:
        del forwarder
        # The capture file and the timer are open by now.
        assert {str(tmp_path / "pcap"), "anon_inode:[timerfd]"} <= set(descriptors() - before)
        raise kind("in the way")

    monkeypatch.setattr(Forwarder, "open", fail)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        gevent.get_hub()
        before = descriptors()
        with pytest.raises(kind, match="in the way"):
            Proxy(Config(pcap=str(tmp_path / "pcap")), guest_network(), ours)
        assert descriptors() == before


RINGS = "anon_inode:[io_uring]"


def refused() -> Ring:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_its_ring(
    wanted: bool, allowed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is open as long as the proxy, unless it is not wanted or not allowed, which one line says."""
    if not allowed:
        monkeypatch.setattr(base, "open_ring", refused)
    caplog.set_level(logging.DEBUG)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not descriptors()[RINGS]
        proxy = Proxy(Config() if wanted else Config(without="ring"), guest_network(), ours)
        has = bool(descriptors()[RINGS])
        assert (Feature.RING in proxy.features) is has
        if not (wanted and allowed):
            assert not has
        assert ("no io_uring: Operation not permitted" in caplog.messages) is (wanted and not allowed)
        proxy.close()
        assert not descriptors()[RINGS]
