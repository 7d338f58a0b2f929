"""The channel of the helper: any packets from its other end are a message, or an error that has a name."""

from __future__ import annotations

import _socket
import socket

from gpasst.errors import GpasstError
from gpasst.helper.channel import Channel
from gpasst.helper.pool import serve_once
from gpasst.helper.request import open_request
from tests.support.fuzz.choices import Choices

HEADS = (b".", b"+", b"", b"\0")
MESSAGES = (
    b'{"do": "open", "seq": 1, "request": {}}',
    b'{"do": "sockets", "family": 2, "type": 2, "proto": 0, "count": 1}',
    b'{"error": {"kind": "configuration"}}',
    b'{"error": 7}',
    b"[" * 100,
    b"7",
    b"null",
    b'"text"',
    b"{",
    b'{"do": "bind", "address": ["127.0.0.1", 0]}',
)
PACKETS = 8


def take(data: bytes) -> None:
    """Send packets to a channel, and to the program that makes sockets."""
    choices = Choices(data)
    packets: list[bytes] = []
    while choices.more and len(packets) < PACKETS:
        body = choices.pick(MESSAGES) if choices.flag() else choices.piece()
        packets.append(choices.pick(HEADS) + body)
    _channel([packet for packet in packets if packet])
    for packet in packets:
        _pool(packet)


def _channel(packets: list[bytes]) -> None:
    """Receive messages until the end, as either side does."""
    ours, theirs = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0)
    for packet in packets:
        theirs.send(packet)
    theirs.shutdown(socket.SHUT_WR)
    channel = Channel(ours)
    try:
        while True:
            try:
                arrived = channel.receive()
            except GpasstError:
                continue
            if arrived is None:
                break
            message, descriptors = arrived
            assert isinstance(message, dict)
            assert descriptors == []
            try:
                open_request(message.get("request", {}))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                continue
    finally:
        channel.close()
        theirs.close()


def _pool(packet: bytes) -> None:
    """Let one packet be answered by the program that keeps a namespace."""
    ours, theirs = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0)
    try:
        theirs.send(packet)
        theirs.shutdown(socket.SHUT_WR)
        while serve_once(ours):
            continue
    finally:
        ours.close()
        theirs.close()
