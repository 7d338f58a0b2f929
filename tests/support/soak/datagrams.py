"""Servers and clients of datagrams in a mixed load (`tests.support.soak.load`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dns.message
import dns.rrset

from tests.support.soak.record import DATAGRAM_BYTES, Fault, Flow, Record, whole

ANSWER_SECONDS = 1.0  # until a datagram counts as lost
ZONE = "soak.example."

Complain = Callable[[object], None]  # takes note of a fault


class UdpServer(asyncio.DatagramProtocol):
    """Answers records."""

    def __init__(self, me: int, fault: Complain) -> None:
        self._me, self._fault = me, fault

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        try:
            self._transport.sendto(whole(data, self._me).answer().written(), addr)
        except Fault as fault:
            self._fault(fault)


class UdpClient(asyncio.DatagramProtocol):
    """Awaits the answers to bursts of one flow."""

    def __init__(self, fault: Complain, flow: Flow) -> None:
        self._fault, self._flow = fault, flow
        self._awaited: set[int] = set()
        self._missing: set[int] = set()
        self._done = asyncio.Event()

    async def exchange(self, transport: asyncio.DatagramTransport, records: list[Record]) -> None:
        self._awaited = {record.number for record in records}
        self._done.clear()
        transport.sendto(b"".join(record.written() for record in records))
        try:
            await asyncio.wait_for(self._done.wait(), ANSWER_SECONDS)
        except asyncio.TimeoutError:
            self._flow.lost += len(self._awaited)
            self._missing |= self._awaited

    def datagram_received(self, data: bytes, addr: Any) -> None:
        flow = self._flow
        try:
            record = whole(data, self._flow.sender)
            if record != flow.record(record.number, DATAGRAM_BYTES).answer():
                raise Fault(f"{record} came to flow {flow.number}")
            if record.number in self._awaited:
                self._awaited.remove(record.number)
                flow.exchanged += 1
                if not self._awaited:
                    self._done.set()
            elif record.number in self._missing:
                self._missing.remove(record.number)  # it was late
                flow.lost -= 1
                flow.exchanged += 1
            elif not flow.rough:
                raise Fault(f"{record} came twice")
        except Fault as fault:
            self._fault(fault)

    def error_received(self, exc: Exception) -> None:
        self._fault(f"datagrams {self._flow.number}: {exc!r}")


class DnsServer(asyncio.DatagramProtocol):
    """Answers each name with itself."""

    def __init__(self, me: int, fault: Complain) -> None:
        self._me, self._fault = me, fault

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        name = query.question[0].name
        if f".to{self._me}.{ZONE}" not in str(name):
            self._fault(f"a query for {name}")
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", f'"{name}"'))
        self._transport.sendto(answer.to_wire(), addr)


class DnsClient(asyncio.DatagramProtocol):
    """Awaits the answer to one query."""

    def __init__(self, fault: Complain, name: str) -> None:
        self._fault, self._name = fault, name
        self.query = dns.message.make_query(name, "TXT")
        self.answered = asyncio.Event()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = dns.message.from_wire(data)
        texts = [str(item) for rrset in answer.answer for item in rrset]
        if not self.query.is_response(answer) or texts != [f'"{self._name}"']:
            self._fault(f"{texts} came as the answer for {self._name}")
        self.answered.set()

    def error_received(self, exc: Exception) -> None:
        self._fault(f"{self._name}: {exc!r}")
