"""What a gateway writes becomes frames of its switch, superframes whole."""

from __future__ import annotations

import pytest

from gpasst.counters import Counters
from gpasst.formats import VIRTIO_NET_BLANK
from gpasst.link.uplink import Uplink
from gpasst.udp.header import Header
from tests.support.addresses import GUEST_MAC, HOST_MAC, SERVER4, ip

DATA = b"abcdefg"


class Case:
    def __init__(self) -> None:
        self.counters = Counters()
        self.link = Uplink(self.counters)
        self.written: list[bytes] = []
        self.link.forward = self.written.append

    def header(self) -> Header:
        return Header(4, GUEST_MAC, HOST_MAC, ip(SERVER4), ip("10.77.0.2"), 53, 4000)


@pytest.mark.parametrize("segment", [3, len(DATA), 100])
def test_a_run_is_one_frame_for_the_switch(segment: int) -> None:
    case = Case()
    case.link.write_run(case.header(), len(DATA), segment, [memoryview(DATA[:4]), memoryview(DATA[4:])])
    assert case.written == [bytes(case.header().fill(len(DATA), segment)) + DATA]
    tally = case.counters.udp.up
    assert (tally.bytes, tally.datagrams, tally.superframes) == (7, 3 if segment == 3 else 1, segment == 3)


def test_frames_without_payload_and_of_services() -> None:
    case = Case()
    case.link.write_bare(case.header())
    case.link.write_frame(b"frame")
    case.link.flush()
    assert case.written == [bytes(case.header().fill(0, 0)), VIRTIO_NET_BLANK + b"frame"]
    assert (case.counters.udp.up.datagrams, case.counters.frames_up) == (1, 1)


def test_before_there_is_a_switch_frames_go_nowhere() -> None:
    link = Uplink(Counters())
    link.write_frame(b"frame")
    assert link.ready and not link.full
