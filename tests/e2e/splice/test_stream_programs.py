"""Real programs over spliced connections, both ways: curl with Python's HTTP server, and iperf3."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.families import ANY, LOOPBACK
from tests.support.need import need
from tests.support.ready import until
from tests.support.stream_ways import SERVICE, StreamWay, pairs
from tests.support.streams import MEBI, noise

pytestmark = pytest.mark.usefixtures("tun", "remote")

SIZE = 8 * MEBI + 77
# It asks for its own name, which no resolver may know.
HTTP_SERVER = """
import runpy, socket
socket.getfqdn = str
runpy.run_module("http.server", run_name="__main__", alter_sys=True)
"""
LISTENS = "0A"  # state in /proc/net/tcp


def started(way: StreamWay, inside: bool, command: list[str], **options: Any) -> Any:
    """Start a program on one side."""
    return (way.net.popen if inside else subprocess.Popen)(command, text=True, **options)


def serves(way: StreamWay) -> bool:
    """Return whether something listens at the service's port; a trial connection would be its client."""
    command = ["cat", "/proc/net/tcp" if way.family == 4 else "/proc/net/tcp6"]
    with started(way, not way.outward, command, stdout=subprocess.PIPE) as program:
        rows = [line.split() for line in program.communicate()[0].splitlines()]
    return any(row[1].endswith(f":{SERVICE:04X}") and row[3] == LISTENS for row in rows)


def test_curl_fetches_a_file(stream_way: StreamWay, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(noise(SIZE))
    address = LOOPBACK[stream_way.family]
    where = f"http://{address if stream_way.family == 4 else f'[{address}]'}:{stream_way.port}/file"
    server = [sys.executable, "-c", HTTP_SERVER, str(SERVICE), "--bind", ANY[stream_way.family]]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with started(stream_way, not stream_way.outward, [*server, "--directory", str(tmp_path)], **quiet) as serving:
        try:
            until(lambda: serves(stream_way), "the server")
            fetched = tmp_path / "fetched"
            command = [need("curl"), "--silent", "--show-error", "--output", str(fetched), where]
            with started(stream_way, stream_way.outward, command) as fetching:
                assert fetching.wait() == 0
            assert fetched.read_bytes() == noise(SIZE)
        finally:
            serving.terminate()


@pytest.mark.parametrize("option", ["", "--reverse", "--bidir"])
def test_iperf3(stream_way: StreamWay, option: str) -> None:
    server = [need("iperf3"), "--server", "--one-off", "--bind", ANY[stream_way.family], "--port", str(SERVICE)]
    client = ["iperf3", "--client", LOOPBACK[stream_way.family], "--port", str(stream_way.port), "--bytes", "64M"]
    client += ["--parallel", "4", "--json", *([option] if option else [])]
    with started(stream_way, not stream_way.outward, server, stdout=subprocess.DEVNULL) as serving:
        try:
            until(lambda: serves(stream_way), "the server")
            with started(stream_way, stream_way.outward, client, stdout=subprocess.PIPE) as program:
                report = json.loads(program.communicate()[0])
            assert "error" not in report, report["error"]
            assert report["end"]["sum_received"]["bytes"] > 0
        finally:
            serving.terminate()
    until(lambda: not pairs(stream_way.net), "no pair left")
