"""The work of connections: between a guest's segments and sockets of the host's loopback."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import Any

import pytest

from gpasst.counters import Drop
from gpasst.flow.sender import StreamSocket
from gpasst.formats import TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST
from gpasst.host.peek import RUNS, TapPeeker
from gpasst.host.tcp import peek_from_start
from gpasst.path.budget import STEP_SECONDS
from gpasst.path.tcp_sockets import MANY
from gpasst.tcp.connection import Connection
from gpasst.tcp.states import State
from gpasst.tcp.timers import DELAY_OF_MANY_SECONDS, DELAY_SECONDS
from gpasst.tcp.work import SEND
from tests.support.families import FAMILIES
from tests.support.streams import noise
from tests.support.tcp import NEVER, House, Joined, breaks, house, was_reset

OFFSETS = pytest.mark.parametrize("offset", [None, False], ids=["as-it-is", "no-offset"])
LARGE = 1460  # bytes of a full segment; its acknowledgement is not put off


class Small(TapPeeker):
    """A peeker of short superframes."""

    def peek(self, sock: StreamSocket, family: int, mss: int, room: int, skip: int) -> tuple[int, memoryview]:
        return super().peek(sock, family, mss, min(room, LARGE), skip)


# --- Downwards --------------------------------------------------------------------------------------------------------


@FAMILIES
def test_data_of_the_guest_reaches_the_remote_end(family: int) -> None:
    with house() as made:
        joined = made.join(family)
        joined.tell(noise(LARGE))
        assert joined.remote.recv(9999) == noise(LARGE)
        (answer,) = made.run()
        assert (answer.flags, answer.acknowledgement) == (TCP_ACK, joined.sequence)
        assert (made.counters.tcp.down.bytes, made.counters.tcp.down.datagrams) == (LARGE, 1)


def test_one_acknowledgement_answers_all_that_was_read_together() -> None:
    with house() as made:
        joined = made.join()
        for _ in range(10):
            joined.tell(noise(LARGE))
        (answer,) = made.run()
        assert answer.acknowledgement == joined.sequence


def test_what_a_socket_does_not_take_is_kept_until_it_does() -> None:
    data = noise(3 * LARGE)
    with house() as made:
        joined = made.join()
        broken = breaks(joined)
        broken.takes = [100, 0, 0, 1500, 0]
        for at in range(0, len(data), LARGE):
            joined.tell(data[at : at + LARGE])
        (answer,) = made.run()
        assert answer.acknowledgement == (joined.sequence - len(data) + 100) % (1 << 32)
        assert made.event((joined, EPOLLOUT)) == [], "it takes nothing yet"
        (answer,) = made.event((joined, EPOLLOUT))
        assert answer.acknowledgement == (joined.sequence - len(data) + 1600) % (1 << 32)
        assert made.event((joined, EPOLLOUT)) == []
        (answer,) = made.event((joined, EPOLLOUT))
        assert answer.acknowledgement == joined.sequence
        assert b"".join(broken.sent) == data
        assert made.counters.tcp.down.bytes == len(data)


@pytest.mark.parametrize("kept", [False, True])
def test_a_remote_end_that_reads_no_more_takes_everything(kept: bool) -> None:
    """Its RST follows, if it sends one."""
    with house() as made:
        joined = made.join()
        if kept:
            breaks(joined).takes = [0]
            joined.tell(noise(LARGE))
            made.run()
        breaks(joined, send=errno.EPIPE)
        if kept:
            answers = made.event((joined, EPOLLOUT))
        else:
            joined.tell(noise(LARGE))
            answers = made.run()
        assert [answer.acknowledgement for answer in answers] == [joined.sequence]
        assert joined.connection.socket is not None


@pytest.mark.parametrize("kept", [False, True])
def test_a_send_that_fails_ends_both_sides(kept: bool) -> None:
    with house() as made:
        joined = made.join()
        if kept:
            breaks(joined).takes = [0]
            joined.tell(noise(LARGE))
            made.run()
        breaks(joined, send=errno.ECONNRESET)
        if kept:
            answers = made.event((joined, EPOLLOUT))
        else:
            joined.tell(noise(LARGE))
            joined.tell(noise(LARGE))
            answers = made.run()
        assert [answer.flags for answer in answers] == [TCP_RST | TCP_ACK]
        assert was_reset(joined.remote)
        assert made.counters.socket_errors == 1
        assert len(made.tcp.table) == 0


def test_a_short_segment_is_acknowledged_a_little_later() -> None:
    with house() as made:
        joined = made.join()
        joined.tell(b"request")
        assert made.run() == []
        ((when, _),) = made.tcp.later
        assert when == DELAY_SECONDS
        (answer,) = made.wait(DELAY_SECONDS)
        assert (answer.flags, answer.acknowledgement) == (TCP_ACK, joined.sequence)
        assert made.tcp.later == []


def test_an_answer_carries_the_acknowledgement_of_its_request() -> None:
    with house() as made:
        joined = made.join()
        joined.tell(b"request")
        assert made.run() == []
        joined.remote.send(b"answer")
        (answer,) = made.event((joined, EPOLLIN))
        assert (answer.payload, answer.acknowledgement) == (b"answer", joined.sequence)
        assert made.wait(DELAY_SECONDS) == []


def test_connections_share_the_deadline_of_their_acknowledgements() -> None:
    with house() as made:
        joined = [made.join() for _ in range(3)]
        for one in joined:
            one.tell(b"request")
        made.run()
        joined[0].tell(b"more")
        made.run()
        assert len(made.tcp.later) == 1
        made.sockets.end(joined[1].connection)
        made.link.take()
        answers = made.wait(DELAY_SECONDS)
        assert [answer.source[1] for answer in answers] == [joined[2].port], "the others have it, or have ended"


def requests() -> Iterator[tuple[House, list[Joined]]]:
    """Yield a house with many connections, each of which has a request of the guest behind an earlier answer."""
    with house() as made:
        joined = [made.join() for _ in range(MANY)]
        for one in joined:
            one.remote.send(b"earlier")
            one.hear(made.event((one, EPOLLIN)))
        for one in joined:
            one.tell(b"request")
            assert one.remote.recv(99) == b"request"
        yield made, joined


many_requests = contextmanager(requests)


def test_answers_to_many_requests_are_taken_where_the_set_reports_them() -> None:
    with many_requests() as (made, joined):
        joined[1].remote.send(b"answer")
        made.ready.events = [(joined[1].fd, EPOLLIN)]
        made.frames.run(NEVER)
        (answer,) = made.link.take()
        assert (answer.source[1], answer.payload) == (joined[1].port, b"answer")
        assert answer.acknowledgement == joined[1].sequence
        joined[2].remote.send(b"later")
        (answer,) = made.event((joined[2], EPOLLIN))
        assert (answer.payload, answer.acknowledgement) == (b"later", joined[2].sequence)


def test_acknowledgements_of_many_requests_wait_longer_and_discard_what_the_guest_has() -> None:
    with many_requests() as (made, joined):
        made.frames.run(NEVER)
        assert made.link.take() == []
        assert [when for when, _ in made.tcp.later] == [DELAY_OF_MANY_SECONDS]
        made.sockets.end(joined[0].connection)
        made.link.take()
        answers = made.wait(DELAY_OF_MANY_SECONDS)
        assert [answer.source[1] for answer in answers] == [one.port for one in joined[1:]]
        for one in joined[1:]:
            assert one.connection.socket is not None
            peek_from_start(one.connection.socket)
            with pytest.raises(BlockingIOError):
                one.connection.socket.recv_into(memoryview(bytearray(1)))


def test_closed_sockets_send_no_acknowledgement_any_more() -> None:
    with many_requests() as (made, _):
        made.frames.run(NEVER)
        made.sockets.close()
        made.link.take()
        assert made.wait(DELAY_OF_MANY_SECONDS) == []


# --- Upwards ----------------------------------------------------------------------------------------------------------


@FAMILIES
@OFFSETS
def test_data_of_the_remote_end_reaches_the_guest(family: int, offset: bool | None) -> None:
    data = noise(100_000)
    with house(peek_offset=offset) as made:
        joined = made.join(family)
        joined.remote.sendall(data)
        got = joined.hear(made.event((joined, EPOLLIN)))
        while len(got) < len(data):
            joined.say()
            got += joined.hear(made.run())
        assert got == data
        joined.say()
        assert made.run() == []
        assert made.counters.drops == {}


@OFFSETS
def test_what_was_lost_is_sent_again(offset: bool | None) -> None:
    data = noise(5 * LARGE)
    with house(peek_offset=offset) as made:
        joined = made.join()
        joined.remote.sendall(data)
        first = made.event((joined, EPOLLIN))
        assert b"".join(segment.payload for segment in first) == data
        joined.say(acknowledges=LARGE)
        made.run()
        joined.say(acknowledges=LARGE)
        joined.say(acknowledges=LARGE)
        joined.expected += LARGE
        assert joined.hear(made.run()) == data[LARGE:]


def test_a_connection_with_much_to_send_lets_others_go_first() -> None:
    """It sends some superframes, and goes to the end of the queue."""
    with house(Small()) as made:
        bulk, other = made.join(), made.join()
        bulk.remote.sendall(noise(3 * RUNS * LARGE))
        other.remote.sendall(b"hello")
        segments = made.event((bulk, EPOLLIN), (other, EPOLLIN))
        order = [segment.source[1] for segment in segments]
        assert order == [bulk.port] * RUNS + [other.port] + [bulk.port] * 2 * RUNS


def test_nothing_is_peeked_while_the_link_is_full() -> None:
    with house() as made:
        joined = made.join()
        joined.remote.sendall(b"data")
        made.link.full = True
        assert made.event((joined, EPOLLIN)) == []
        for _ in range(5):
            made.sockets.mark(joined.connection, SEND)
            assert made.run() == []
        assert list(made.tcp.writer.waiting) == [joined.connection], "it waits once, however often it tried"
        made.link.full = False
        asked = made.tcp.asked
        made.sockets.resume()
        assert made.tcp.asked == asked + 1
        assert joined.hear(made.run()) == b"data"
        assert not made.tcp.writer.waiting


def test_a_connection_that_ended_meanwhile_is_passed_over() -> None:
    """In whatever it waited."""
    with house() as made:
        joined = made.join()
        made.link.full = True
        joined.remote.sendall(b"data")
        made.event((joined, EPOLLIN))
        joined.tell(b"request")
        made.sockets.mark(joined.connection, SEND)
        assert len(made.sockets.queue) == 1
        made.sockets.end(joined.connection)
        assert [segment.flags for segment in made.link.take()] == [TCP_RST | TCP_ACK]
        made.link.full = False
        made.sockets.resume()
        assert made.run() == []
        assert made.wait(1.0) == []
        assert len(made.sockets.queue) == 0
        made.sockets.end(joined.connection)
        assert made.link.take() == []


# --- The end ----------------------------------------------------------------------------------------------------------


@FAMILIES
@OFFSETS
def test_the_remote_end_ends_first(family: int, offset: bool | None) -> None:
    with house(peek_offset=offset) as made:
        joined = made.join(family)
        joined.remote.sendall(b"last words")
        joined.remote.shutdown(socket.SHUT_WR)
        segments = made.event((joined, EPOLLIN | EPOLLRDHUP))
        assert [segment.payload for segment in segments] == [b"last words"], "no FIN while data is in flight"
        joined.hear(segments)
        joined.say()
        (fin,) = made.run()
        assert (fin.flags, fin.sequence) == (TCP_FIN | TCP_ACK, joined.expected)
        joined.expected += 1
        joined.tell(b"still here")
        assert joined.remote.recv(99) == b"still here"
        joined.tell(b"", TCP_FIN | TCP_ACK)
        assert made.run()[-1].acknowledgement == joined.sequence
        assert joined.remote.recv(99) == b""
        assert len(made.tcp.table) == 0
        assert not was_reset(joined.remote)


def test_the_guest_ends_first() -> None:
    with house() as made:
        joined = made.join()
        joined.tell(b"last words", TCP_FIN | TCP_ACK)
        (answer,) = made.run()
        assert answer.acknowledgement == joined.sequence
        assert joined.connection.state is State.CLOSE_WAIT
        assert joined.remote.recv(99) + joined.remote.recv(99) == b"last words"
        joined.remote.sendall(b"goodbye")
        assert joined.hear(made.event((joined, EPOLLIN))) == b"goodbye"
        joined.remote.close()
        joined.say()
        made.run()
        (fin,) = made.event((joined, EPOLLIN | EPOLLRDHUP))
        assert fin.flags == TCP_FIN | TCP_ACK
        joined.expected += 1
        joined.say()
        assert made.run() == []
        assert len(made.tcp.table) == 0


def test_a_fin_waits_for_what_the_socket_did_not_take() -> None:
    with house() as made:
        joined = made.join()
        broken = breaks(joined)
        broken.takes = [3, 0]
        joined.tell(b"last words", TCP_FIN | TCP_ACK)
        assert made.run() == []
        assert joined.connection.state is State.ESTABLISHED
        (answer,) = made.event((joined, EPOLLOUT))
        assert answer.acknowledgement == joined.sequence
        assert joined.remote.recv(99) == b"", "the socket was shut"
        assert b"".join(broken.sent) == b"last words"


def test_a_reset_of_the_remote_end_is_one_for_the_guest() -> None:
    with house() as made:
        joined = made.join()
        joined.remote.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        joined.remote.close()
        (answer,) = made.event((joined, EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP))
        assert (answer.flags, answer.sequence) == (TCP_RST | TCP_ACK, joined.expected)
        assert len(made.tcp.table) == 0


def test_a_reset_of_the_guest_is_one_for_the_remote_end() -> None:
    with house() as made:
        joined = made.join()
        joined.say(TCP_RST)
        joined.tell(b"more")
        assert made.run() == []
        assert was_reset(joined.remote)
        assert len(made.tcp.table) == 0


def test_all_sockets_are_closed_in_the_end() -> None:
    with house() as made:
        joined = [made.join(), made.join()]
        joined[0].tell(b"request")
        made.sockets.mark(joined[1].connection, SEND)
        made.close()
        assert [one.connection.socket for one in joined] == [None, None]
        assert len(made.tcp.table) == 0
        assert made.tcp.opener.held() == 0
        assert made.wait(1.0) == []
        made.close()


def test_the_end_may_come_in_the_middle_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody reacts to a line of the log."""
    with house() as made:
        joined = [made.join() for _ in range(3)]
        numbers = Connection.numbers

        def closes(connection: Connection) -> tuple[int, int, int]:
            made.sockets.close()
            return numbers(connection)

        monkeypatch.setattr(Connection, "numbers", closes)
        for one in joined:
            one.tell(noise(LARGE))
        assert len(made.run()) == 1
        assert [one.connection.socket for one in joined] == [None] * 3
        assert not made.sockets.queue
        assert made.run() == []


# --- What goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["recv_into", "recvmsg_into", "setsockopt"])
def test_a_call_that_fails_ends_both_sides(call: str) -> None:
    """Peeking, discarding, and beginning to peek anew."""
    with house(peek_offset=call != "recvmsg_into" and None) as made:
        joined = made.join()
        joined.remote.sendall(noise(3 * LARGE))
        made.event((joined, EPOLLIN))
        if call == "setsockopt" and not made.tcp.writer.peek_offset:
            pytest.skip("needs SO_PEEK_OFF of TCP sockets (Linux 6.9)")
        breaks(joined, **{call: errno.EIO})
        if call == "recvmsg_into":
            made.sockets.mark(joined.connection, SEND)
        for _ in range(3 if call == "setsockopt" else 1):
            joined.say(acknowledges=0 if call == "setsockopt" else 100)
        answers = made.run()
        assert [answer.flags for answer in answers] == [TCP_RST | TCP_ACK]
        assert (len(made.tcp.table), made.counters.socket_errors) == (0, 1)


def test_an_internal_error_ends_the_connection_that_met_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with house() as made:
        joined = [made.join() for _ in range(3)]
        numbers = Connection.numbers

        def fails(connection: Connection) -> tuple[int, int, int]:
            if connection is joined[1].connection:
                raise ZeroDivisionError
            return numbers(connection)

        monkeypatch.setattr(Connection, "numbers", fails)
        for one in joined:
            one.tell(noise(LARGE))
        asked = made.tcp.asked
        with pytest.raises(ZeroDivisionError):
            made.run()
        assert made.tcp.asked == asked + 1, "for those behind it"
        made.run()
        assert joined[1].remote.recv(9999) == noise(LARGE)
        assert was_reset(joined[1].remote)
        assert [one.connection.socket is None for one in joined] == [False, True, False]
        assert not any(one.connection.receiver.owes for one in (joined[0], joined[2]))


def test_the_events_behind_an_internal_error_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are reported once."""
    with house() as made:
        joined = [made.join() for _ in range(3)]
        monkeypatch.setattr(made.sockets, "_event", _fails_for(made, joined[0]))
        for one in joined:
            one.remote.sendall(b"data")
        made.ready.events = [(one.fd, EPOLLIN) for one in joined]
        with pytest.raises(ZeroDivisionError):
            made.sockets.step()
        segments = made.run()
        assert [segment.payload for segment in segments] == [b"data"] * 2
        assert joined[0].connection.socket is None


def _fails_for(made: House, joined: Joined) -> Any:
    event = made.sockets._event  # noqa: SLF001

    def fails(connection: Connection, happened: int) -> int:
        if connection is joined.connection:
            raise ZeroDivisionError
        return event(connection, happened)

    return fails


def test_events_of_an_unknown_descriptor_are_passed_over() -> None:
    with house() as made:
        joined = made.join()
        made.sockets.end(joined.connection)
        made.link.take()
        assert made.event((joined, EPOLLIN | EPOLLHUP)) == []


def test_work_is_bounded_in_time() -> None:
    with house() as made:
        joined = [made.join() for _ in range(20)]
        for one in joined:
            one.tell(noise(LARGE))
        made.lap = STEP_SECONDS
        asked = made.tcp.asked
        made.ready.events = []
        made.sockets.step()
        answered = len(made.link.take())
        assert 0 < answered < len(joined)
        assert made.tcp.asked == asked + 1
        while made.sockets.queue:
            made.sockets.step()
        assert answered + len(made.link.take()) == len(joined)
        assert not made.counters.drops.get(Drop.INTERNAL)


def test_a_keep_alive_lets_the_host_send_them_too() -> None:
    with house() as made:
        joined = made.join()
        sock = joined.connection.socket
        assert sock is not None
        joined.say(ahead=-1)
        (answer,) = made.run()
        assert (answer.flags, answer.acknowledgement) == (TCP_ACK, joined.sequence)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_data_before_the_handshake_waits_in_the_socket() -> None:
    with house() as made:
        joined = made.join()
        sock, remote = made.accepted()
        remote.sendall(b"early")
        made.tcp.opener.inbound(sock, 4, b"\xc6\x33\x64\x09", 999, 0, 80, b"")
        fd = sock.fileno()
        made.ready.events.append((fd, EPOLLIN))
        made.sockets.step()
        (syn,) = made.link.take()
        joined.port, joined.expected = 999, syn.sequence + 1
        joined.sequence = 77
        joined.say(0x12)
        acknowledgement, data = made.run()
        assert (acknowledgement.payload, acknowledgement.flags) == (b"", TCP_ACK), "alone, as some stacks want it"
        assert (data.payload, data.flags) == (b"early", TCP_ACK | TCP_PSH)
