"""Segments for the guest: to its present MAC address, within its window, and gathered until they are flushed."""

from __future__ import annotations

import socket
from select import EPOLLIN, EPOLLRDHUP
from typing import Any

import pytest

from gpasst.formats import TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN
from gpasst.host.peek import RUNS, StreamPeeker
from gpasst.tcp.work import PROBE, REFUSE, RESET, SEND, SYNCHRONISE
from tests.support.addresses import GUEST_MAC, ip
from tests.support.families import FAMILIES
from tests.support.streams import noise
from tests.support.tcp import THEIRS, House, house

OTHER_MAC = b"\x02\0\0\0\0\x09"
LARGE = 1460  # bytes of a full segment


def macs(made: House) -> set[bytes]:
    """Return the MAC addresses that anything was written to since the last call."""
    found = {frame[:6] for frame in made.link.frames} | {
        bytes(header.fill(0, 0)[10:16]) for header, *_ in made.link.runs
    }
    made.link.frames.clear()
    made.link.runs.clear()
    made.link.take()
    return found


@FAMILIES
@pytest.mark.parametrize("work", [SEND, PROBE, REFUSE, RESET])
def test_a_new_mac_address_of_the_guest_is_used_at_once(family: int, work: int) -> None:
    with house() as made:
        joined = made.join(family)
        joined.remote.sendall(b"data")
        assert macs(made) == {GUEST_MAC}
        made.guest.learn_mac(OTHER_MAC)
        made.sockets.mark(joined.connection, work)
        made.run()
        assert macs(made) == {OTHER_MAC}


def test_so_it_is_for_a_syn() -> None:
    """One to the address of broadcasts, which stands for an unknown one, is ignored by the guest's stack."""
    with house() as made:
        sock, _ = made.accepted()
        made.tcp.opener.inbound(sock, 4, ip(THEIRS[4]), 1000, 0, 80, b"")
        made.run()
        assert macs(made) == {GUEST_MAC}
        made.guest.learn_mac(OTHER_MAC)
        (connection,) = made.tcp.table
        made.sockets.mark(connection, SYNCHRONISE)
        made.run()
        assert macs(made) == {OTHER_MAC}


def test_a_syn_that_is_answered_in_time_is_not_sent_again() -> None:
    """Though its deadline had passed, or the guest had sent its own once more."""
    with house() as made:
        joined = made.join()
        made.sockets.mark(joined.connection, SYNCHRONISE)
        assert made.run() == []


def test_data_has_push_and_what_has_none_has_not() -> None:
    with house() as made:
        joined = made.join()
        joined.remote.sendall(b"data")
        (data,) = made.event((joined, EPOLLIN))
        assert (data.flags, data.window) == (TCP_ACK | TCP_PSH, 256)
        made.sockets.mark(joined.connection, PROBE)
        (probe,) = made.run()
        assert (probe.flags, probe.sequence) == (TCP_ACK, joined.expected + 3), "a number that was used"


def test_no_more_is_sent_than_the_window_takes() -> None:
    with house() as made:
        joined = made.join(window=2 * LARGE + 100)
        joined.remote.sendall(noise(5 * LARGE))
        segments = made.event((joined, EPOLLIN))
        assert sum(len(segment.payload) for segment in segments) == 2 * LARGE + 100
        assert made.event((joined, EPOLLIN)) == [], "an event does not help"
        assert joined.connection.sender.blocked
        rest = segments[2]
        joined.expected += 2 * LARGE
        joined.say()
        assert made.run()[0].sequence == rest.sequence + 100


def test_a_closed_window_stops_everything_until_it_opens() -> None:
    with house() as made:
        joined = made.join()
        joined.window = 0
        joined.say()
        joined.remote.sendall(b"data")
        made.run()
        assert made.event((joined, EPOLLIN)) == []
        joined.window = 1000
        joined.say()
        assert joined.hear(made.run()) == b"data"


def test_the_buffers_of_a_stream_are_used_again_when_they_were_flushed() -> None:
    data = noise(3 * RUNS * LARGE)
    with house(Short()) as made:
        joined = made.join()
        joined.remote.sendall(data)
        flushed = made.link.flushed
        assert joined.hear(made.event((joined, EPOLLIN))) == data
        assert made.link.flushed - flushed >= 3


class Short(StreamPeeker):
    """A peeker of short runs, without the room for headers that a stream's link expects."""

    def peek(self, sock: Any, family: int, mss: int, room: int, skip: int) -> tuple[int, memoryview]:
        assert not self.full
        count, payload = super().peek(sock, family, mss, min(room, LARGE), skip)
        return count, payload[len(payload) - count :]


@pytest.mark.parametrize("offset", [None, False], ids=["as-it-is", "no-offset"])
def test_a_fin_that_was_lost_is_sent_again(offset: bool | None) -> None:
    with house(peek_offset=offset) as made:
        joined = made.join()
        joined.remote.shutdown(socket.SHUT_WR)
        (fin,) = made.event((joined, EPOLLIN | EPOLLRDHUP))
        assert (fin.flags, fin.sequence) == (TCP_FIN | TCP_ACK, joined.expected)
        assert made.run() == []
        for _ in range(2):
            joined.say()
        assert made.run() == [fin]


def test_a_syn_is_the_same_when_it_is_sent_again() -> None:
    with house() as made:
        sock, _ = made.accepted()
        made.tcp.opener.inbound(sock, 4, ip(THEIRS[4]), 1000, 0, 80, b"")
        (first,) = made.run()
        assert first.flags == TCP_SYN
        (connection,) = made.tcp.table
        made.sockets.mark(connection, SYNCHRONISE)
        assert made.run() == [first]


def test_an_acknowledgement_of_nothing_is_reset_and_the_connection_stays() -> None:
    with house() as made:
        sock, _ = made.accepted()
        joined = made.join()
        made.tcp.opener.inbound(sock, 4, ip(THEIRS[4]), 1000, 0, 80, b"")
        made.run()
        joined.port = 1000
        joined.say(TCP_ACK, acknowledges=77)
        (answer,) = made.run()
        assert (answer.flags, answer.sequence) == (TCP_RST, joined.expected + 77)
        assert len(made.tcp.table) == 2
