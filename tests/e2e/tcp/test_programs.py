"""Real programs over TCP: curl, Python's HTTP server, TLS, socat, iperf3, dig with dnsmasq."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import gpasst
from gpasst.testing import free_port
from tests.support.cli import cli
from tests.support.families import FAMILY, LOOPBACK
from tests.support.lab import REMOTE, Remote
from tests.support.need import need
from tests.support.programs import dnsmasq, service, started
from tests.support.ready import until
from tests.support.streams import MEBI, PORT, listening, noise, patient, received

pytestmark = pytest.mark.usefixtures("tun", "remote")

SIZE = 8 * MEBI + 77
FORWARDER = {4: "192.0.2.53", 6: "2001:db8::53"}


@pytest.fixture(scope="module")
def net(tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    del tun, remote
    with gpasst.Pasta(config_net=True, tcp_ports=str(PORT)) as opened:
        yield opened


GEVENT_PROGRAM = """
from gevent import monkey
monkey.patch_all()
import gevent, socket, gpasst

def serve(server):
    client, _ = server.accept()
    with client:
        while data := client.recv(1 << 16):
            client.sendall(data)

with gpasst.Pasta(config_net=True) as net:
    from gpasst import runtime
    assert runtime._background is None, "a gevent program needs no thread"
    for family, loopback, gateway in (
        (socket.AF_INET, "127.0.0.1", net.gateway4),
        (socket.AF_INET6, "::1", net.gateway6),
    ):
        server = socket.create_server((loopback, 0), family=family)
        serving = gevent.spawn(serve, server)
        guest = net.socket(family, socket.SOCK_STREAM)
        assert type(guest) is socket.socket is __import__("gevent").socket.socket
        guest.settimeout(5)
        guest.connect((gateway, server.getsockname()[1]))
        data = bytes(range(256)) * 4096
        sending = gevent.spawn(guest.sendall, data)
        received = b""
        while len(received) < len(data):
            received += guest.recv(1 << 16)
        assert received == data
        sending.get()
        guest.close(), serving.get(), server.close()
print("good")
"""


def url(scheme: str, family: int, address: str, port: int, name: str) -> str:
    return f"{scheme}://{address if family == 4 else f'[{address}]'}:{port}/{name}"


def accepts(family: int, port: int) -> bool:
    with socket.socket(FAMILY[family]) as sock:
        return sock.connect_ex((LOOPBACK[family], port)) == 0


@contextmanager
def running(command: Sequence[str], family: int, port: int, **options: Any) -> Iterator[None]:
    """Run a server on the host's loopback."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **{**quiet, **options}) as program:
        try:
            until(lambda: accepts(family, port), f"{command[0]} at port {port}")
            yield
        finally:
            program.terminate()


@contextmanager
def http(family: int, folder: Path) -> Iterator[int]:
    """Python's HTTP server on the host's loopback; yields its port."""
    port = free_port("tcp")
    command = [sys.executable, "-m", "http.server", str(port), "--bind", LOOPBACK[family], "--directory", str(folder)]
    with running(command, family, port):
        yield port


def test_curl_fetches_a_file(net: gpasst.Pasta, family: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(noise(SIZE))
    fetched = tmp_path / "fetched"
    with http(family, tmp_path) as port:
        command = [need("curl"), "--silent", "--show-error", "--output", str(fetched)]
        net.run([*command, url("http", family, REMOTE[family], port, "file")], check=True)
    assert fetched.read_bytes() == noise(SIZE)


def test_curl_of_the_command_line(family: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("what is served\n")
    with http(family, tmp_path) as port:
        where = url("http", family, REMOTE[family], port, "file")
        done = cli("pasta", "--config-net", "--", need("curl"), "--silent", "--show-error", where)
    assert (done.returncode, done.stdout, done.stderr) == (0, "what is served\n", "")


def test_curl_sends_a_file_to_the_guest(net: gpasst.Pasta, family: int, tmp_path: Path) -> None:
    """From the host to a forwarded port."""
    (tmp_path / "file").write_bytes(noise(SIZE))
    server = net.socket(FAMILY[family], socket.SOCK_STREAM)
    with listening(server, "0.0.0.0" if family == 4 else "::", PORT), ThreadPoolExecutor(1) as pool:
        command = [need("curl"), "--silent", "--show-error", "--header", "Expect:", "--upload-file"]
        command += [str(tmp_path / "file"), url("http", family, LOOPBACK[family], PORT, "")]
        uploading = pool.submit(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        with patient(server.accept()[0]) as client:
            data = b""
            while b"\r\n\r\n" not in data:
                data += client.recv(1 << 16)
            body = data.partition(b"\r\n\r\n")[2]
            body += received(client, SIZE - len(body))
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        uploading.result()
    assert body == noise(SIZE)


def test_tls(net: gpasst.Pasta, family: int, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=t.example"]
    command += ["-addext", f"subjectAltName=IP:{REMOTE[family]}"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(server: socket.socket) -> None:
        with context.wrap_socket(patient(server.accept()[0]), server_side=True) as client:
            client.recv(1 << 16)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + noise(SIZE))
            client.unwrap().close()

    fetched = tmp_path / "fetched"
    with listening(socket.socket(FAMILY[family]), LOOPBACK[family]) as (server, address), ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, server)
        command = [need("curl"), "--silent", "--show-error", "--cacert", str(certificate), "--output", str(fetched)]
        net.run([*command, url("https", family, REMOTE[family], address[1], "")], check=True)
        serving.result()
    assert fetched.read_bytes() == noise(SIZE)


def test_a_terminals_exchange_through_socat(net: gpasst.Pasta, family: int) -> None:
    """A line there, a line back, as a login does it."""
    port = free_port("tcp")
    kind = f"TCP{family}"
    server = [need("socat"), f"{kind}-LISTEN:{port},bind={LOOPBACK[family]},reuseaddr,fork", "EXEC:cat"]
    client = [need("socat"), "STDIO", f"{kind}:{REMOTE[family] if family == 4 else f'[{REMOTE[family]}]'}:{port}"]
    with (
        running(server, family, port),
        net.popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as program,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        for number in range(200):
            program.stdin.write(f"line {number}\n")
            assert program.stdout.readline() == f"line {number}\n"
        program.stdin.close()
        assert program.stdout.read() == ""
    assert program.returncode == 0


@pytest.mark.parametrize("option", ["", "--reverse", "--bidir"])
def test_iperf3(net: gpasst.Pasta, family: int, option: str) -> None:
    port = free_port("tcp")
    server = [need("iperf3"), "--server", "--one-off", "--bind", LOOPBACK[family], "--port", str(port)]
    with started([*server, "--forceflush"], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        # A trial connection would be its only client.
        assert any("listening" in line for line in program.stdout)
        client = [
            "iperf3",
            "--client",
            REMOTE[family],
            "--port",
            str(port),
            "--bytes",
            "32M",
            "--parallel",
            "4",
            "--json",
        ]
        done = net.run([*client, *([option] if option else [])], capture_output=True, text=True)
        program.communicate()
    report = json.loads(done.stdout)
    assert "error" not in report, report["error"]
    assert report["end"]["sum_received"]["bytes"] > 0


@pytest.mark.parametrize("resolver", ["gateway", "forwarder"])
def test_names_over_tcp(family: int, resolver: str) -> None:
    loopback = {4: "127.0.0.53", 6: "::1"}[family]
    options: dict[str, Any] = {"dns_host": loopback, "dns_forward": FORWARDER[family]}
    with service(dnsmasq(loopback), 53), gpasst.Pasta(config_net=True, **options) as net:
        address = FORWARDER[family] if resolver == "forwarder" else REMOTE[family]
        command = [need("dig"), "+tcp", "+tries=1", "+time=2", "+short", f"@{address}", "t.example"]
        assert str(net.run(command, capture_output=True, text=True).stdout).strip() == "198.51.100.7"
        assert net.statistics().segments_down > 0


def test_a_gevent_program_on_the_proxys_own_hub() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GEVENT_PROGRAM], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("good\n", "")
