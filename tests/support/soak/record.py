"""Payloads that say who sent them, to whom, and which one of how many they are.

A record is a head and a body. The body follows from the head, so whoever receives a record knows whether a byte of it
was changed, cut off, or is another record's.
"""

from __future__ import annotations

import random
import struct
from typing import Any, NamedTuple

HEAD = struct.Struct("!HHIQI")
BODY_LIMIT = 1 << 18  # bytes
DATAGRAM_BYTES = 1200  # of the body of each datagram
NOISE = random.Random(9293).randbytes(4 * BODY_LIMIT)
STEPS = 7919, 104729, 15485863, 32452843  # primes, one for each field, so that neighbours have other bodies


class Fault(Exception):
    """What was received is not what was sent, or not here."""


class Record(NamedTuple):
    """A payload.

    :ivar sender: the number of the machine that sent it.
    :ivar receiver: the number of the machine that it is for.
    :ivar flow: the flow that it belongs to, which no other pair of machines has.
    :ivar number: counts the records of a flow, or of a connection, from 1 on.
    :ivar size: bytes of the body.
    """

    sender: int
    receiver: int
    flow: int
    number: int
    size: int

    def answer(self) -> Record:
        """Return the record that answers it."""
        return self._replace(sender=self.receiver, receiver=self.sender)

    def body(self) -> bytes:
        """Return the body."""
        at = sum(step * value for step, value in zip(STEPS, self, strict=False)) % (len(NOISE) - BODY_LIMIT)
        return NOISE[at : at + self.size]

    def written(self) -> bytes:
        """Return head and body."""
        return HEAD.pack(*self) + self.body()


class Flow:
    """What one client asks of one server.

    :ivar exchanged: records that were answered.
    :ivar lost: datagrams that were not.
    """

    def __init__(self, sender: int, asks: dict[str, Any]) -> None:
        self.sender = sender
        self.kind = str(asks["kind"])
        self.peer, self.number = int(asks["peer"]), int(asks["flow"])
        self.host, self.port = str(asks["host"]), int(asks["port"])
        self.rough = bool(asks.get("rough"))
        self.exchanged = self.lost = 0
        self._chance = random.Random(self.number)

    def record(self, number: int, size: int) -> Record:
        return Record(self.sender, self.peer, self.number, number, size)

    def size(self, limit: int) -> int:
        return self._chance.randint(1, limit)


def head_of(data: bytes, receiver: int) -> Record:
    """Return the record of a head.

    :param receiver: the number of the machine that got it.
    :raises Fault: if it is for another one, or no head.
    """
    record = Record(*HEAD.unpack_from(data))
    if record.receiver != receiver:
        raise Fault(f"{record} came to machine {receiver}")
    if record.size > BODY_LIMIT:
        raise Fault(f"no head: {record}")
    return record


def whole(data: bytes, receiver: int) -> Record:
    """Return the record of head and body.

    :raises Fault: as `head_of`, or if the body is not the one that belongs to the head.
    """
    if len(data) < HEAD.size:
        raise Fault(f"cut off: {data!r}")
    record = head_of(data, receiver)
    check_body(record, data[HEAD.size :])
    return record


def check_body(record: Record, body: bytes) -> None:
    """Compare the body that came with that which was sent.

    :raises Fault: if they differ.
    """
    if body != record.body():
        raise Fault(f"{record} came with another body, of {len(body)} bytes")
