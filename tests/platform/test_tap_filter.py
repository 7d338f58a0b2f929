"""A classic BPF program on a tap (linux/if_tun.h, TUNATTACHFILTER; Linux 2.6.34): it runs where the guest sends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from gpasst.counters import Counters
from gpasst.helper.client import Helper, Namespace
from gpasst.link.tap import Tap
from gpasst.path.filter_program import PORTS_LIMIT, program
from gpasst.path.unknown import FLOW, KINDS
from tests.support.namespaces import CONFIGURED

ROUTERS = frozenset((bytes((10, 1, 2, 1)), bytes.fromhex("fd11") + bytes(13) + b"\x01"))
GROUP = "224.0.0.251"  # needs no neighbour
SAMPLED, SPARED = 5001, 5002
FRAMES = 400


@pytest.fixture
def namespace(tun: None) -> Iterator[Namespace]:
    """A namespace with a tap, whose other end is ours."""
    del tun
    with Helper.start() as helper, helper.open(CONFIGURED) as opened:
        yield opened


def sent(namespace: Namespace, port: int) -> int:
    """Send datagrams from a port of the namespace; return how many reach the tap."""
    (descriptor,) = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 0, descriptor) as sock:
        sock.bind(("", port))
        for _ in range(FRAMES):
            sock.sendto(b"x", (GROUP, 9))
    came = 0
    while True:
        try:
            frame = os.read(namespace.tap, 1 << 17)
        except BlockingIOError:
            return came
        came += frame[44:46] == port.to_bytes(2, "big")


def test_the_kernel_passes_a_sample_and_what_is_spared(namespace: Namespace) -> None:
    tap = Tap(namespace.tap, Counters(), {})
    tap.set_filter(program({FLOW}, [SPARED], ROUTERS))
    assert sent(namespace, SAMPLED) < FRAMES // 2
    assert sent(namespace, SPARED) == FRAMES
    tap.set_filter(b"")
    assert sent(namespace, SAMPLED) == FRAMES


def test_the_kernel_takes_the_longest_program(namespace: Namespace) -> None:
    tap = Tap(namespace.tap, Counters(), {})
    tap.set_filter(program(range(len(KINDS)), range(PORTS_LIMIT), ROUTERS))
    tap.set_filter(b"")
