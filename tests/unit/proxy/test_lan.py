"""A network on its hub: what drives the switch."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import gevent
import pytest

from gpasst.link.switch import Data
from gpasst.link.switch_tap import TapPort
from gpasst.proxy.lan import Lan
from tests.support.switches import BROADCAST, frame, mac

SECONDS = 5.0  # until something that takes milliseconds counts as failed
COST = 0.0001  # seconds that a frame takes


class Case:
    """A network of two hosts, whose taps are sockets."""

    def __init__(self) -> None:
        self.lan = Lan("lan")
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.ports: list[TapPort] = []
        for number, (ours, theirs) in enumerate(self.pairs):
            for sock in (ours, theirs):
                sock.setblocking(False)
            self.ports.append(self.lan.add_tap(str(number), ours.fileno(), mac(number)))

    def close(self) -> None:
        self.lan.close()
        for pair in self.pairs:
            for sock in pair:
                sock.close()


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.close()


def test_a_storm_takes_turns_with_rests_and_all_of_it_arrives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    rests: list[object] = []
    rest = case.lan.watchers.rest

    def write(data: Data) -> None:
        taken.append(time.perf_counter())
        while time.perf_counter() < taken[-1] + COST:
            pass

    monkeypatch.setattr(case.ports[1], "write", write)

    def rest_and_note(owner: object) -> None:
        rests.append(owner)
        rest(owner)

    monkeypatch.setattr(case.lan.watchers, "rest", rest_and_note)
    for _ in range(50):
        case.pairs[0][1].send(frame(BROADCAST, mac(0)))
    with gevent.Timeout(SECONDS):
        while len(taken) < 50:
            gevent.sleep(0.001)
    assert set(rests) == {case.ports[0]}
    assert len(rests) >= 5


def test_a_port_that_is_removed_in_its_rest_stays_away(case: Case) -> None:
    case.lan.watchers.rest(case.ports[0])
    case.lan.timers.at(case.lan.timers.clock(), lambda _: case.lan.watchers.resume(case.ports[0]))
    case.lan.remove(case.ports[0])
    case.pairs[0][1].send(frame(BROADCAST, mac(0)))
    gevent.sleep(0.01)
    assert case.ports[0].received == 0
