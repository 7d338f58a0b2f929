"""The ends of captures on the hub. Takes 0.1 s."""

from __future__ import annotations

from gpasst.api.captures import Taker
from gpasst.capture.history import FRAMES_LIMIT
from gpasst.capture.record import Record


def test_records_that_were_forgotten_are_not_waited_for_again() -> None:
    taker = Taker()
    taker.take([Record(number, True, bytes(60), "") for number in range(FRAMES_LIMIT + 5)])
    assert len(taker.wait(0, timeout=0)) == FRAMES_LIMIT
    assert taker.seen == FRAMES_LIMIT + 5
    taker.take([Record(-1, True, bytes(60), "")])
    assert [record.time_ns for record in taker.wait(taker.seen, timeout=0)] == [-1]
