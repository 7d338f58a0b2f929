"""A QUIC download of 5 MB through bad weather, with a NAT that rebinds in the middle.

    pip install gpasst pytest 'aioquic>=1.7'
    pytest test_quic_transfer.py

The server is an ordinary one on this machine. The client is in a namespace of its own, whose gateway leads to this
machine, so what they exchange passes gpasst and its weather.
"""

import asyncio
import os
import ssl
import subprocess

import pytest
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived

CONTENT = os.urandom(5_000_000)
# Both ways. Rules are asked one after the other, and the first that fits decides; `continue` lets others follow it.
WEATHER = "udp: loss 5% delay 20ms±5ms reorder 2% continue seed 7"
# The next datagram of the client makes the NAT choose another port, as a home router does that has just restarted.
REBIND = "to host udp nth 1: rebind"
# Large ones: with 1200 bytes, QUIC's congestion control takes a minute for 5 MB in this weather.
DATAGRAM = 8192  # bytes


class Server(QuicConnectionProtocol):
    """Answers each stream with the content."""

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, CONTENT, end_stream=True)
            self.transmit()


class Client(QuicConnectionProtocol):
    """Asks for the content."""

    def ask(self):
        self.received = bytearray()
        self.half, self.whole = asyncio.Event(), asyncio.Event()
        self._quic.send_stream_data(self._quic.get_next_available_stream_id(), b"please", end_stream=True)
        self.transmit()

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self.received += event.data
            if len(self.received) > len(CONTENT) / 2:
                self.half.set()
            if event.end_stream:
                self.whole.set()


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


def test_a_download_survives_loss_and_a_rebinding(gpasst_pasta, certificate):
    net = gpasst_pasta  # the namespace, open for this test
    with net.impair(WEATHER) as weather:
        asyncio.run(download(net, certificate))
    lost = sum(fate == "lost" for _, fate in weather.log.fates)
    assert lost, weather.log


async def download(net, certificate):
    loop = asyncio.get_running_loop()

    configuration = QuicConfiguration(is_client=False, max_datagram_size=DATAGRAM)
    configuration.load_cert_chain(*certificate)
    listening, server = await loop.create_datagram_endpoint(
        lambda: QuicServer(configuration=configuration, create_protocol=Server), local_addr=("127.0.0.1", 0)
    )
    port = listening.get_extra_info("sockname")[1]

    # The client's socket was made in the namespace, so what it sends passes the namespace's network.
    connection = QuicConnection(configuration=QuicConfiguration(verify_mode=ssl.CERT_NONE, max_datagram_size=DATAGRAM))
    sending, client = await loop.create_datagram_endpoint(lambda: Client(connection), sock=net.socket())
    client.connect((net.gateway4, port))
    await client.wait_connected()

    client.ask()
    await client.half.wait()
    (before,) = net.flows()
    net.impair(REBIND)
    await client.whole.wait()
    (after,) = net.flows()

    assert client.received == CONTENT
    assert after.guest == before.guest
    assert after.port != before.port, "the server has seen the client move"

    client.close()
    await client.wait_closed()
    server.close()
    listening.close()
    sending.close()
