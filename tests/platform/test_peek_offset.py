"""SO_PEEK_OFF on TCP (Linux 6.9, IPv6 6.10): what is in the receive queue can be read piece by piece and stay there.

With it the queue itself is the retransmission buffer: a peek moves the offset on, and only what was acknowledged is
received.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from tests.support.families import FAMILY, LOOPBACK

SO_PEEK_OFF = 42  # asm-generic/socket.h
SINCE = {4: "6.9", 6: "6.10"}
DATA = bytes(range(100))


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair, the first of which peeks from the start of its queue."""
    family = request.param
    with socket.create_server((LOOPBACK[family], 0), family=FAMILY[family]) as server:
        other = socket.create_connection(server.getsockname()[:2], 2)
        one, _ = server.accept()
    with one, other:
        one.settimeout(2)
        try:
            one.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP
            pytest.skip(f"needs Linux {SINCE[family]} (SO_PEEK_OFF on TCP)")
        yield one, other


def arrived(sock: socket.socket, size: int) -> None:
    """Wait until that many bytes are in the queue, from its start on."""
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    while len(sock.recv(1 << 16, socket.MSG_PEEK)) < size:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)


def test_each_peek_goes_on_where_the_last_one_ended(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    other.sendall(DATA)
    arrived(one, 100)
    assert [one.recv(size, socket.MSG_PEEK) for size in (10, 20, 99)] == [DATA[:10], DATA[10:30], DATA[30:]]
    assert one.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 100
    one.setblocking(False)
    with pytest.raises(BlockingIOError):
        one.recv(1, socket.MSG_PEEK)


def test_the_offset_can_be_set_back(ends: tuple[socket.socket, socket.socket]) -> None:
    """As a retransmission needs it."""
    one, other = ends
    other.sendall(DATA)
    arrived(one, 100)
    assert one.recv(50, socket.MSG_PEEK) == DATA[:50]
    one.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 20)
    assert one.recv(50, socket.MSG_PEEK) == DATA[20:70]


def test_a_receive_takes_from_the_start_and_moves_the_offset_with_it(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    other.sendall(DATA)
    arrived(one, 100)
    assert one.recv(60, socket.MSG_PEEK) == DATA[:60]
    assert one.recv(40) == DATA[:40]
    assert one.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 20
    assert one.recv(99, socket.MSG_PEEK) == DATA[60:]


def test_what_arrives_later_is_peeked_at_next(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    other.sendall(DATA)
    arrived(one, 100)
    assert one.recv(100, socket.MSG_PEEK) == DATA
    other.sendall(b"later")
    assert one.recv(100, socket.MSG_PEEK) == b"later"


def test_a_receive_without_a_buffer_discards(ends: tuple[socket.socket, socket.socket]) -> None:
    """MSG_TRUNC on TCP (Linux 2.4.4): bytes that were acknowledged need not be copied once more."""
    one, other = ends
    other.sendall(DATA)
    arrived(one, 100)
    buffer = bytearray(60)
    assert one.recv_into(buffer, 60, socket.MSG_TRUNC) == 60
    assert buffer == bytes(60), "nothing was written"
    assert one.recv(99) == DATA[60:]


def test_a_discard_without_a_buffer_moves_the_offset_back(ends: tuple[socket.socket, socket.socket]) -> None:
    one, other = ends
    other.sendall(DATA)
    arrived(one, 100)
    assert one.recv(60, socket.MSG_PEEK) == DATA[:60]
    assert one.recv_into(bytearray(40), 40, socket.MSG_TRUNC) == 40
    assert one.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 20
    assert one.recv(99, socket.MSG_PEEK) == DATA[60:]


def test_the_end_shows_behind_data_that_was_peeked(ends: tuple[socket.socket, socket.socket]) -> None:
    """Before any of that data is received; and what is in the queue can still be peeked at again."""
    one, other = ends
    other.sendall(DATA)
    arrived(one, 100)
    assert one.recv(100, socket.MSG_PEEK) == DATA
    other.shutdown(socket.SHUT_WR)
    # Blocks until the end is there.
    assert one.recv(1, socket.MSG_PEEK) == b""
    one.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    assert one.recv(999, socket.MSG_PEEK) == DATA
    assert one.recv_into(bytearray(100), 100, socket.MSG_TRUNC) == 100
    assert one.recv(1, socket.MSG_PEEK) == b""


def test_without_the_option_a_peek_shows_no_end_behind_data(ends: tuple[socket.socket, socket.socket]) -> None:
    """It begins with the data again and again, so the end shows when all of it was received."""
    one, other = ends
    one.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, -1)
    other.sendall(DATA)
    other.shutdown(socket.SHUT_WR)
    assert one.recv(100, socket.MSG_PEEK | socket.MSG_WAITALL) == DATA
    assert one.recv(999, socket.MSG_PEEK) == DATA


def test_urgent_data_in_line_is_peeked_like_any_other(ends: tuple[socket.socket, socket.socket]) -> None:
    """SO_OOBINLINE; without it a peek would stop before the urgent byte, and leave it out."""
    one, other = ends
    one.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    other.sendall(DATA[:50])
    other.send(b"!", socket.MSG_OOB)
    other.sendall(DATA[50:])
    peeked = b""
    while len(peeked) < 101:
        peeked += one.recv(999, socket.MSG_PEEK)
    assert peeked == DATA[:50] + b"!" + DATA[50:]
