"""Networks whose parts come and go in any order leave nothing behind. Takes 6 seconds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest

import gpasst
from gpasst.testing import assert_flat

pytestmark = pytest.mark.usefixtures("tun", "remote")

SEEDS = 12
CHANGES = 40  # of one set of networks
WEATHER = ("loss 30%", "delay 300ms", "rate 1mbit", "udp: duplicate 10%", "partition")
NAT = (None, "symmetric", "endpoint-independent")


class Course:
    """What happens to a few networks, by chance; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.names = map("m{}".format, itertools.count())
        self.networks = [self.network(number) for number in range(3)]
        self.hosts: list[gpasst.Host] = []
        self.closing: list[Callable[[], object]] = []
        self.changes = (
            *[self.open_host] * 4,
            self.open_other,
            self.join,
            self.move,
            self.fail,
            self.use,
            self.impair,
            self.part,
            self.end,
            self.end_host,
            self.end_network,
        )

    def network(self, number: int) -> gpasst.Network:
        record, uplink = self.chance.random() < 0.3, self.chance.random() < 0.3
        return gpasst.Network(f"n{number}", record=record, uplink=uplink, mtu=self.chance.choice((1280, 1500, 9000)))

    def run(self) -> None:
        with ExitStack() as opened:
            for network in self.networks:
                opened.enter_context(network)
            for _ in range(CHANGES):
                # Some make no sense by now, such as a move to a network that is closed, and say so.
                with suppress(gpasst.ConfigurationError):
                    self.chance.choice(self.changes)()

    def any_network(self) -> gpasst.Network:
        return self.chance.choice(self.networks)

    def any_host(self) -> gpasst.Host:
        if not self.hosts:
            self.open_host()
        return self.chance.choice(self.hosts)

    def any_place(self) -> tuple[gpasst.Network, gpasst.Host]:
        """Return a host, and a network that it is in if there is one."""
        host = self.any_host()
        there = [network for network in self.networks if any(part.network is network for part in host.interfaces)]
        return self.chance.choice(there or self.networks), host

    def open_host(self) -> None:
        self.hosts.append(self.any_network().host(next(self.names), forwarding=self.chance.random() < 0.2))

    def open_other(self) -> None:
        network, name = self.any_network(), next(self.names)
        if self.chance.random() < 0.5:
            self.closing.append(network.guest(name).close)
        else:
            nat = self.chance.choice(NAT)
            self.closing.append(gpasst.Router(name, inside=network, outside=self.any_network(), nat=nat).close)

    def join(self) -> None:
        self.closing.append(self.any_network().join(self.any_host()).close)

    def move(self) -> None:
        self.any_host().move(self.any_network())

    def fail(self) -> None:
        host = self.any_host()
        self.chance.choice((host.down, host.up, host.kill))()

    def use(self) -> None:
        host = self.any_host()
        host.popen(["sleep", "1000"])
        with host.socket() as sock, suppress(OSError):
            sock.sendto(b"data", (self.any_host().ip4, 9))
        self.closing.append(host.forward("udp", "0:9").close)

    def impair(self) -> None:
        network, host = self.any_place()
        part = network.link(host) if self.chance.random() < 0.5 else network.between(host, self.any_host())
        self.closing.append(part.impair(self.chance.choice(WEATHER)).remove)

    def part(self) -> None:
        network, host = self.any_place()
        self.closing.append(network.capture().close)
        self.closing.append(network.partition([host]).remove)

    def end(self) -> None:
        if self.closing:
            self.closing.pop(self.chance.randrange(len(self.closing)))()

    def end_host(self) -> None:
        host = self.any_host()
        self.hosts.remove(host)
        host.close()

    def end_network(self) -> None:
        if self.chance.random() < 0.1:
            self.any_network().close()


def test_parts_that_come_and_go_in_any_order_leave_nothing() -> None:
    seeds = itertools.cycle(range(SEEDS))
    assert_flat(lambda: Course(next(seeds)).run(), repeats=2 * SEEDS, warm=SEEDS)
