"""A QUIC connection survives the way from one network to another, as of a laptop that is carried from home to a café.

    pip install gpasst pytest aioquic
    pytest test_quic_roaming.py

The server is on the internet, which is a network of this test. The laptop is behind one router, then behind another
one; both translate addresses, so the server sees it come from somewhere else (RFC 9000, section 9).
"""

import asyncio
import ssl
import subprocess

import pytest
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived

import gpasst

PORT = 4433
WORDS = [b"word %d " % number for number in range(20)]


clients = []  # the addresses that the server has seen


class Server(QuicConnectionProtocol):
    """Sends back what it receives in capitals."""

    def datagram_received(self, data, addr):
        if addr[0] not in clients:
            clients.append(addr[0])
        super().datagram_received(data, addr)

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, event.data.upper(), end_stream=event.end_stream)
            self.transmit()


class Client(QuicConnectionProtocol):
    """Has what it receives in a queue."""

    def __init__(self, *args):
        super().__init__(*args)
        self.received = asyncio.Queue()
        self.stream = self._quic.get_next_available_stream_id()

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self.received.put_nowait(event.data)

    async def ask(self, word):
        """Return what the server makes of a word."""
        self._quic.send_stream_data(self.stream, word)
        self.transmit()
        answer = b""
        while len(answer) < len(word):
            answer += await self.received.get()
        return answer


@pytest.fixture
def certificate(tmp_path):
    """A certificate that nobody else trusts, and its key."""
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, "-nodes", "-subj", "/CN=localhost", "-out", files[0], "-keyout", files[1]],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return files


def test_a_connection_survives_another_network(gpasst_network_factory, certificate):
    internet, home, cafe = map(gpasst_network_factory, ("internet", "home", "cafe"))  # open for this test
    dsl = gpasst.Router("dsl", inside=home, outside=internet, nat=gpasst.Router.HOME)
    wifi = gpasst.Router("wifi", inside=cafe, outside=internet, nat=gpasst.Router.HOME)
    server, laptop = internet.host("server"), home.host("laptop")
    asyncio.run(talk(server, laptop, cafe, certificate))
    assert clients == [dsl.outside_ip4, wifi.outside_ip4]


async def talk(server, laptop, cafe, certificate):
    loop = asyncio.get_running_loop()

    # Both ends run in this process, with sockets that were made on their hosts.
    listening = server.socket()
    listening.bind((server.ip4, PORT))
    configuration = QuicConfiguration(is_client=False)
    configuration.load_cert_chain(*certificate)
    serving, _ = await loop.create_datagram_endpoint(
        lambda: QuicServer(configuration=configuration, create_protocol=Server), sock=listening
    )
    connection = QuicConnection(configuration=QuicConfiguration(verify_mode=ssl.CERT_NONE))
    sending, client = await loop.create_datagram_endpoint(lambda: Client(connection), sock=laptop.socket())
    client.connect((server.ip4, PORT))

    await asyncio.wait_for(client.wait_connected(), 20)
    for number, word in enumerate(WORDS):
        if number == len(WORDS) // 2:
            # Closes its network there, and comes up here with another address.
            await asyncio.to_thread(laptop.move, cafe)
        assert await asyncio.wait_for(client.ask(word), 20) == word.upper()

    client.close()
    await client.wait_closed()
    serving.close()
    sending.close()
