"""The command line when the kernel refuses its calls, by `strace -e inject`: the rows of docs/faults.md.

Only the proxy itself is traced: neither its helpers nor the command. Takes 15 seconds.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cli import AS_ROOT, GPASST
from tests.support.fault_pages import table
from tests.support.lab import FAR, Remote
from tests.support.need import need

pytestmark = pytest.mark.usefixtures("tun", "remote")

KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
PATIENCE = 15  # seconds; a traced program is slow
# Asks by datagram and by stream, and again where nothing comes or the stream is reset.
ASKING = """
import socket, sys
def ask(kind, port):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.settimeout(0.5)
        sock.connect((sys.argv[1], port))
        sock.send(b"question")
        return sock.recv(100) == b"answer"
for kind, port in ((socket.SOCK_DGRAM, int(sys.argv[2])), (socket.SOCK_STREAM, int(sys.argv[3]))):
    for _ in range(20):
        try:
            if ask(kind, port):
                break
        except OSError as error:
            print(error)
    else:
        sys.exit("no answer")
print("answered")
"""


@dataclass(frozen=True)
class Row:
    call: str
    number: str
    when: str
    file: str
    outcome: str

    def __str__(self) -> str:
        return f"{self.call}-{self.number}-{self.when}"


def rows(heading: str) -> list[Row]:
    return [
        Row(call, number, when, file, outcome)
        for call, numbers, when, file, outcome in table(heading)
        for number in numbers.split(", ")
    ]


@dataclass(frozen=True)
class Traced:
    status: int
    printed: str
    said: str
    injected: int


def traced(row: Row, folder: Path, *command: str) -> Traced:
    """Run the command line with a command, while its calls fail as the row says."""
    log = folder / "trace"
    files = {"the capture file": folder / "frames.pcap", "the PID file": folder / "pid", "the log file": folder / "log"}
    options = {"frames.pcap": "--pcap", "pid": "--pid", "log": "--log-file"}
    which, given = [], []
    if path := files.get(row.file):
        which, given = ["-P", str(path)], [options[path.name], str(path)]
    injection = f"inject={row.call}:error={row.number}:when={row.when}"
    strace = [need("strace"), "-o", str(log), *which, "-e", f"trace={row.call}", "-e", injection]
    done = subprocess.run(
        [*strace, *GPASST, "pasta", *AS_ROOT, "--config-net", "-t", "none", *given, "--", *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return Traced(done.returncode, done.stdout, done.stderr, log.read_text(encoding="utf-8").count("(INJECTED)"))


@contextmanager
def answering(remote: Remote) -> Iterator[tuple[str, str, str]]:
    """Answer every question at the remote machine; yields its address and ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(remote.socket(socket.AF_INET, kind)) for kind in KINDS]
        for sock in sockets:
            sock.bind((FAR[4], 0))
        datagrams, streams = sockets
        streams.listen()
        done, ending = map(stack.enter_context, socket.socketpair())

        def serve() -> None:
            while done not in (ready := select.select([*sockets, done], [], [])[0]):
                if datagrams in ready:
                    _, sender = datagrams.recvfrom(100)
                    datagrams.sendto(b"answer", sender)
                if streams in ready:
                    # The client may have been reset meanwhile.
                    with suppress(OSError), streams.accept()[0] as client:
                        client.settimeout(1)
                        client.recv(100)
                        client.sendall(b"answer")

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(ending.sendall, b"!")
        yield FAR[4], str(datagrams.getsockname()[1]), str(streams.getsockname()[1])


@pytest.mark.parametrize("row", rows("While it runs"), ids=str)
def test_it_goes_on(row: Row, remote: Remote, tmp_path: Path) -> None:
    with answering(remote) as address:
        done = traced(row, tmp_path, sys.executable, "-c", ASKING, *address)
    assert done.injected, "the call was made"
    assert (done.status, done.printed.splitlines()[-1:]) == (0, ["answered"]), done.said
    assert "Traceback" not in done.said and "internal error" not in done.said
    if row.outcome != "carried":
        assert row.outcome in done.said


@pytest.mark.parametrize("row", rows("At the start"), ids=str)
def test_it_does_not_begin(row: Row, tmp_path: Path) -> None:
    done = traced(row, tmp_path, "true")
    assert done.injected, "the call was made"
    assert (done.status, done.said.count("\n")) == (1, 1), done.said
    assert done.said.startswith("gpasst: ") and row.outcome in done.said
