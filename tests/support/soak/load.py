"""One machine's part of a mixed load: servers, and clients of the other machines' servers.

    python -m tests.support.soak.load SPECIFICATION

Theory of operation: a server answers each record with one of the same size (`record`); its client knows which to
expect. Over TCP and QUIC records come in order, each once; over UDP some get lost, and come in another order or twice
where there is weather. What differs from that is a fault. Names are asked for in queries of DNS, whose names and
answers carry what the head of a record does.

The specification is JSON: the machine's number, what it serves, and what it asks. The program prints "ready" when it
serves. Lines of its input are orders, each of which it answers with a line of JSON: `go` lets the clients begin, `look`
asks for what they have exchanged so far, and `stop` ends them when their last answers have come. It ends with its
input.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tests.support.soak.datagrams import ANSWER_SECONDS, ZONE, DnsClient, DnsServer, UdpClient, UdpServer
from tests.support.soak.record import BODY_LIMIT, DATAGRAM_BYTES, HEAD, Fault, Flow, Record, check_body, head_of

LIMIT_SECONDS = 40.0  # until an exchange counts as stuck; in bad weather a connection takes some seconds to open
QUIC_SECONDS = 20.0  # until a connection counts as lost
FAULTS_KEPT = 20
STREAM_RECORDS, STREAM_BYTES = 64, 60000  # of a burst
STREAM_PAUSE, SHORT_PAUSE, DATAGRAM_PAUSE, NAME_PAUSE, QUIC_PAUSE = 0.25, 0.01, 0.01, 0.04, 0.1  # seconds
SHORT_BYTES = 20000  # at most
BURST, BURSTS = 40, 50  # datagrams at once, and how often from one socket
QUIC_STREAMS, QUIC_BYTES = 8, 20000  # of a connection
UDP_SEGMENT = 103  # of linux/udp.h
RECEIVE_BYTES = 4 << 20  # of buffers of UDP


class Load:
    """The machine."""

    def __init__(self, me: int) -> None:
        self.me = me
        self.faults: list[str] = []
        self.stopping = asyncio.Event()
        self.keep: set[Any] = set()  # what would be collected otherwise

    def fault(self, what: object) -> None:
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(f"machine {self.me}: {what}")

    async def pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            return

    async def bounded(self, flow: Flow, exchange: Awaitable[object]) -> None:
        """Await an exchange, and take note of its fault."""
        try:
            await asyncio.wait_for(exchange, LIMIT_SECONDS)
        except asyncio.TimeoutError:
            self.fault(f"{flow.kind} {flow.number} is stuck after {flow.exchanged} records")
        except (Fault, OSError, EOFError) as error:
            self.fault(f"{flow.kind} {flow.number}, record {flow.exchanged + 1}: {error!r}")

    # Servers

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the records of one connection or one stream of QUIC."""
        first: Record | None = None
        number = 0
        try:
            while (record := await received(reader, self.me)) is not None:
                first, number = first or record, number + 1
                if record[:3] != first[:3] or record.number != number:
                    raise Fault(f"{record} came as number {number} behind {first}")
                writer.write(record.answer().written())
                await writer.drain()
            writer.write_eof()
        except (Fault, OSError, EOFError) as error:
            self.fault(f"server, behind {first} and {number} records: {error!r}")
        finally:
            writer.close()

    def serve_quic_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self.serve_stream(reader, writer))
        self.keep.add(task)
        task.add_done_callback(self.keep.discard)

    async def serve(self, kind: str, address: str, port: int, certificate: list[str]) -> None:
        loop = asyncio.get_running_loop()
        if kind == "quic":
            from aioquic.asyncio.server import serve
            from aioquic.quic.configuration import QuicConfiguration

            configuration = QuicConfiguration(is_client=False)
            configuration.load_cert_chain(*certificate)
            await serve(address, port, configuration=configuration, stream_handler=self.serve_quic_stream)
        elif kind == "tcp":
            self.keep.add(await asyncio.start_server(self.serve_stream, address, port))
        else:
            protocol = {"udp": UdpServer, "dns": DnsServer}[kind]
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            transport, _ = await loop.create_datagram_endpoint(lambda: protocol(self.me, self.fault), sock=sock)
            roomy(transport)
            self.keep.add(transport)

    # Clients

    async def ask_stream(self, flow: Flow) -> None:
        """Send bursts of records over one connection to the end."""
        reader, writer = await asyncio.open_connection(flow.host, flow.port)
        number = 0
        while not self.stopping.is_set():
            await self.bounded(flow, self.burst(flow, reader, writer, number))
            if self.faults:
                break
            number += STREAM_RECORDS
            await self.pause(STREAM_PAUSE)
        await self.bounded(flow, finished(reader, writer))

    async def burst(self, flow: Flow, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        async def send() -> None:
            for number in range(before + 1, before + STREAM_RECORDS + 1):
                writer.write(flow.record(number, STREAM_BYTES).written())
                await writer.drain()

        sending = asyncio.ensure_future(send())
        try:
            for number in range(before + 1, before + STREAM_RECORDS + 1):
                await answered(flow, reader, flow.record(number, STREAM_BYTES))
            await sending
        finally:
            sending.cancel()

    async def ask_short(self, flow: Flow) -> None:
        """Exchange a few records over each of many connections."""
        while not self.stopping.is_set():
            await self.bounded(flow, self.visit(flow))
            await self.pause(SHORT_PAUSE)

    async def visit(self, flow: Flow) -> None:
        reader, writer = await asyncio.open_connection(flow.host, flow.port)
        try:
            for number in range(1, flow.size(3) + 1):
                record = flow.record(number, flow.size(SHORT_BYTES))
                writer.write(record.written())
                await answered(flow, reader, record)
            await finished(reader, writer)
        finally:
            writer.close()

    async def ask_quic(self, flow: Flow) -> None:
        """Exchange records over the streams of one connection after the other."""
        while not self.stopping.is_set():
            await self.bounded(flow, self.try_quic(flow))
            await self.pause(QUIC_PAUSE)

    async def try_quic(self, flow: Flow) -> None:
        """Visit; a rebinding before the end of its handshake ends a connection (RFC 9000, section 9)."""
        try:
            await asyncio.wait_for(self.visit_quic(flow), QUIC_SECONDS)
        except asyncio.TimeoutError:
            flow.lost += 1

    async def visit_quic(self, flow: Flow) -> None:
        from aioquic.asyncio.client import connect
        from aioquic.quic.configuration import QuicConfiguration

        configuration = QuicConfiguration(is_client=True, verify_mode=ssl.CERT_NONE)
        async with connect(flow.host, flow.port, configuration=configuration) as connection:
            for _ in range(QUIC_STREAMS):
                reader, writer = await connection.create_stream()
                record = flow.record(1, flow.size(QUIC_BYTES))
                writer.write(record.written())
                writer.write_eof()
                await answered(flow, reader, record)

    async def ask_datagrams(self, flow: Flow) -> None:
        """Send bursts of datagrams, which cross as superframes where they can, and await the answers."""
        loop = asyncio.get_running_loop()
        number = 0
        while not self.stopping.is_set():
            transport, client = await loop.create_datagram_endpoint(
                lambda: UdpClient(self.fault, flow), remote_addr=(flow.host, flow.port)
            )
            sock = roomy(transport)
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, HEAD.size + DATAGRAM_BYTES)
            for _ in range(BURSTS):
                if self.stopping.is_set():
                    break
                records = [flow.record(number + more, DATAGRAM_BYTES) for more in range(1, BURST + 1)]
                number += BURST
                await client.exchange(transport, records)
                await self.pause(DATAGRAM_PAUSE)
            transport.close()

    async def ask_names(self, flow: Flow) -> None:
        """Ask for names, each from a port of its own."""
        loop = asyncio.get_running_loop()
        number = 0
        while not self.stopping.is_set():
            number += 1
            name = f"n{number}.f{flow.number}.m{flow.sender}.to{flow.peer}.{ZONE}"
            transport, client = await loop.create_datagram_endpoint(
                partial(DnsClient, self.fault, name), remote_addr=(flow.host, flow.port)
            )
            transport.sendto(client.query.to_wire())
            try:
                await asyncio.wait_for(client.answered.wait(), ANSWER_SECONDS)
                flow.exchanged += 1
            except asyncio.TimeoutError:
                flow.lost += 1
            transport.close()
            await self.pause(NAME_PAUSE)

    async def ask(self, flow: Flow) -> None:
        clients: dict[str, Callable[[Flow], Awaitable[None]]] = {
            "stream": self.ask_stream,
            "short": self.ask_short,
            "quic": self.ask_quic,
            "datagrams": self.ask_datagrams,
            "names": self.ask_names,
        }
        try:
            await clients[flow.kind](flow)
        except Exception as error:
            self.fault(f"{flow.kind} {flow.number}: {error!r}")


async def received(reader: asyncio.StreamReader, me: int) -> Record | None:
    """Receive a record; return None at the end of the stream.

    :raises Fault: if it is none, or not for machine `me`.
    """
    try:
        head = await reader.readexactly(HEAD.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise Fault(f"the stream ended within a head: {error.partial!r}") from None
        return None
    record = head_of(head, me)
    check_body(record, await reader.readexactly(record.size))
    return record


async def answered(flow: Flow, reader: asyncio.StreamReader, record: Record) -> None:
    """Await the answer to a record.

    :raises Fault: if it is another one.
    """
    found = await received(reader, flow.sender)
    if found != record.answer():
        raise Fault(f"{found} is the answer to {record}")
    flow.exchanged += 1


async def finished(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End a connection from this side, and await its end from the other one.

    :raises Fault: if more comes.
    """
    writer.write_eof()
    if rest := await reader.read(BODY_LIMIT):
        raise Fault(f"{len(rest)} bytes more than were asked for")
    writer.close()
    await writer.wait_closed()


def roomy(transport: Any) -> Any:
    """Let a burst of every flow have room in a socket's buffer; return the socket."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return sock


async def main(specification: dict[str, Any]) -> None:
    """Serve, and carry out the orders."""
    load = Load(int(specification["me"]))
    for served in specification["serve"]:
        await load.serve(served["kind"], served["address"], served["port"], specification.get("certificate", []))
    flows = [Flow(load.me, asks) for asks in specification["ask"]]
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print("ready", flush=True)
    tasks: list[asyncio.Task[None]] = []
    while order := (await orders.readline()).decode().strip():
        if order == "go":
            load.stopping.clear()
            tasks = [asyncio.ensure_future(load.ask(flow)) for flow in flows]
        elif order == "stop":
            load.stopping.set()
            for task in tasks:
                await task
        exchanged = {f"{flow.kind} {flow.number}": [flow.exchanged, flow.lost] for flow in flows}
        print(json.dumps({"flows": exchanged, "faults": load.faults}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
