"""What a proxy does when the kernel refuses a call: the rows of docs/faults.md."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import pytest

from gpasst.counters import Drop
from tests.support.fault_pages import table
from tests.support.fault_ways import WAYS, Attempt, LostError, guests
from tests.support.faults import Injector, injected
from tests.support.guests import expire
from tests.support.lab import Remote
from tests.support.ready import until

TIMES = {"once": 1, "three times": 3, "always": sys.maxsize}
ENDS: dict[str, tuple[int, ...]] = {
    "refused": (errno.ECONNREFUSED,),
    "unreachable": (errno.ENETUNREACH, errno.EHOSTUNREACH),
    "reset": (errno.ECONNRESET, errno.EPIPE),
}


@dataclass(frozen=True)
class Row:
    way: str
    call: str
    at: str
    number: str
    times: str
    outcome: str

    def __str__(self) -> str:
        return "-".join(getattr(self, field.name) for field in fields(self)[:5]).replace(" ", "_")


def rows() -> list[Row]:
    return [
        Row(way, call, at, number, times, outcome)
        for way, call, at, numbers, times, outcome in table("Errors of system calls")
        for number in numbers.split(", ")
    ]


@dataclass(frozen=True)
class World:
    guest_of: Callable[[str], Any]
    remote: Remote
    injector: Injector

    def attempt(self, way: str, lost: Callable[[], bool] = lambda: False) -> str:
        """Try a way; return what became of it."""
        try:
            WAYS[way](Attempt(self.guest_of(way), self.remote, lost))
        except LostError:
            return "lost"
        except OSError as error:
            return next((end for end, numbers in ENDS.items() if error.errno in numbers), repr(error))
        return "carried"


@pytest.fixture(scope="module")
def world(tun: None, remote: Remote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    del tun
    with injected() as injector, guests(tmp_path_factory.mktemp("faults")) as guest_of:
        yield World(guest_of, remote, injector)


# Calls that no row is about.
ELSEWHERE = {
    # What they are about ends with an event of the kernel's, which an injector does not make.
    ("shutdown", "path.tcp_sockets"),
    ("shutdown", "path.tcp_splice"),
    ("send", "path.tcp_carrier"),
    # A pipe is kept for the next; tests/unit/host/test_pipes.py has these.
    ("pipe2", "host.pipes"),
    ("fcntl", "host.pipes"),
    # Only frames that happen to come together go by a ring; tests/unit/host/test_ring.py has its errors.
    ("io_uring_enter", "host.ring"),
    # It has no error but that nothing is due.
    ("read", "proxy.timers"),
}


@pytest.mark.parametrize("row", rows(), ids=str)
def test_a_call_that_fails(world: World, row: Row, caplog: pytest.LogCaptureFixture) -> None:
    net = world.guest_of(row.way)
    expire(net)
    outcome, _, reason = row.outcome.partition(": ")

    def grown() -> bool:
        after = net.statistics()
        if outcome == "unreported":
            return bool(after.socket_errors > before.socket_errors)
        return bool(after.drops.get(reason, 0) > before.drops.get(reason, 0))

    before = net.statistics()
    with world.injector.fault(row.call, row.at, getattr(errno, row.number), TIMES[row.times]) as fault:
        found = world.attempt(row.way, grown if outcome in ("dropped", "unreported") else lambda: False)
        if reason:
            until(grown, reason)
    assert fault.met, "the call was made"
    expected = {"gone": "reset", "waits": "carried", "counted": "carried", "dropped": "lost", "unreported": "lost"}
    assert found == expected.get(outcome, outcome)
    expire(net)
    assert world.attempt(row.way) == "carried", "when it is over"
    assert Drop.INTERNAL.value not in net.statistics().drops
    assert not [record for record in caplog.records if record.exc_info]


def test_every_call_has_a_row(world: World) -> None:
    tested = {(row.call, row.at) for row in rows()}
    for way in WAYS:
        expire(world.guest_of(way))
        world.injector.seen.clear()
        assert world.attempt(way) == "carried"
        assert world.injector.seen - ELSEWHERE - tested == set(), way
