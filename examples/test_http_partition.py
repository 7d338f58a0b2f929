"""An HTTP download that is cut off for two seconds in the middle, and goes on.

    pip install gpasst pytest
    pytest test_http_partition.py

The server is Python's own, on this machine. The client is curl in a namespace, whose gateway leads to this machine.
"""

import http.server
import threading
import time

import pytest

SIZE = 4_000_000
CONTENT = bytes(number % 251 for number in range(SIZE))
PARTITION = 2.0  # seconds


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(SIZE))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *arguments):
        """Print nothing."""


@pytest.fixture
def server():
    """The port of a server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_download_survives_a_partition(gpasst_pasta, server, tmp_path):
    net = gpasst_pasta  # the namespace, open for this test
    file = tmp_path / "download"
    url = f"http://{net.gateway4}:{server}/"
    # Slow enough that there is a middle: 4 MB take 1.6 seconds.
    with net.impair("to guest tcp: rate 20mbit continue"):
        began = time.monotonic()
        curl = net.popen(["curl", "--silent", "--fail", "--output", str(file), "--max-time", "30", url])
        while not file.exists() or file.stat().st_size < SIZE / 4:
            assert curl.poll() is None, "curl has ended already"
            time.sleep(0.01)
        with net.impair(partition=True) as partition:
            time.sleep(PARTITION)
            size = file.stat().st_size
            assert size < SIZE, "it was cut off in the middle"
        # curl notices nothing: the kernels on both sides send again what got lost.
        assert curl.wait(timeout=30) == 0
    assert file.read_bytes() == CONTENT
    assert time.monotonic() - began > PARTITION
    assert partition.hits, "somebody tried meanwhile"
