"""A proxy that cannot be built leaves nothing open, whatever was in the way."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path

import gevent
import pytest

from gpasst.config import Config
from gpasst.errors import PlatformError
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
