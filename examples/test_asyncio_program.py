"""A program of asyncio: a client and a server talk while the network loses and delays what they say.

    pip install gpasst pytest pytest-xdist
    pytest -n 2 test_gevent_program.py test_asyncio_program.py

Under pytest-xdist each worker has namespaces of its own. Tests share no port and no name, so their order and number do
not matter.
"""

import asyncio
import socket

import gpasst

PORT = 7000  # the same in every test and worker: each namespace has its own ports
LINES = 50


def test_a_conversation_in_bad_weather():
    asyncio.run(converse())


async def converse():
    # With `async with` opening and closing do not block the event loop.
    async with gpasst.Pasta(config_net=True, tcp_ports=f"0:{PORT}", no_splice=True) as net:
        with net.impair("tcp: loss 5% delay 2ms±1ms seed 3"):
            # The server is in the namespace. The port that leads to it on this machine was chosen by the kernel.
            inside = net.socket(type=socket.SOCK_STREAM)
            inside.bind(("0.0.0.0", PORT))
            server = await asyncio.start_server(shout, sock=inside)
            reader, writer = await asyncio.open_connection("127.0.0.1", net.port("tcp", PORT))
            for number in range(LINES):
                writer.write(b"line %d\n" % number)
                assert await asyncio.wait_for(reader.readline(), timeout=10) == b"LINE %d\n" % number
            writer.close()
            await writer.wait_closed()
            server.close()


async def shout(reader, writer):
    """Send each line back in capitals."""
    async for line in reader:
        writer.write(line.upper())
        await writer.drain()
    writer.close()
