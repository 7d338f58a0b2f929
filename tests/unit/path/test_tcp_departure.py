"""The connections of a guest that has gone: reset towards their remote ends, some in each turn."""

from __future__ import annotations

from select import EPOLLIN

import pytest

from gpasst.path.budget import TURN_SECONDS
from gpasst.path.tcp_departure import TcpDeparture
from gpasst.tcp.connection import Connection
from tests.support.tcp import House, house, was_reset


class Case:
    """A departure, with a stopwatch that stands unless a test moves it.

    :ivar asked: how often a step was asked for.
    :ivar over: how often it was over.
    """

    def __init__(self, made: House) -> None:
        self.asked = self.over = 0
        self.lap = self._watch = 0.0
        self.departure = TcpDeparture(made.tcp.table, made.sockets.drop, self._ask, self._stopwatch)

    def begin(self) -> None:
        self.departure.begin(self._end)

    def _end(self) -> None:
        self.over += 1

    def _ask(self) -> None:
        self.asked += 1

    def _stopwatch(self) -> float:
        self._watch += self.lap
        return self._watch


def test_every_remote_end_gets_a_reset_and_the_guest_none() -> None:
    with house() as made:
        case, joined = Case(made), [made.join(family) for family in (4, 6, 4)]
        joined[0].tell(b"request")
        joined[1].remote.sendall(b"data")
        made.link.full = True
        made.event((joined[1], EPOLLIN))
        case.begin()
        assert (case.over, case.asked) == (0, 1)
        assert case.departure.step() == 0
        assert (case.over, case.asked) == (1, 1)
        assert joined[0].remote.recv(99) == b"request"
        assert all(was_reset(one.remote) for one in joined)
        assert [one.connection.socket for one in joined] == [None] * 3
        assert len(made.tcp.table) == 0
        made.link.full = False
        made.sockets.resume()
        assert made.run() + made.wait(1.0) == []


def test_it_takes_turns_with_other_work() -> None:
    with house() as made:
        case, joined = Case(made), [made.join() for _ in range(3)]
        case.lap = TURN_SECONDS
        case.begin()
        for left in (2, 1, 0):
            assert case.asked == len(joined) - left
            case.departure.step()
            assert (len(made.tcp.table), case.over) == (left, not left)
        assert case.asked == len(joined)


def test_without_connections_there_is_nothing_to_do() -> None:
    with house() as made:
        case = Case(made)
        case.begin()
        assert (case.over, case.asked) == (1, 0)


def test_an_internal_error_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with house() as made:
        case = Case(made)
        joined = [made.join() for _ in range(3)]
        drop = made.sockets.drop

        def fails(connection: Connection) -> None:
            drop(connection)
            if connection is joined[0].connection:
                raise ZeroDivisionError

        case.departure = TcpDeparture(made.tcp.table, fails, case._ask, lambda: 0.0)  # noqa: SLF001
        case.begin()
        with pytest.raises(ZeroDivisionError):
            case.departure.step()
        assert (case.over, case.asked) == (0, 2)
        case.departure.step()
        assert case.over == 1
