"""What is shown of TCP: flows with their states, counters, drops, and the capture file."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import machines
from tests.support.lab import FAR4, HOST, Remote
from tests.support.machines import Machine
from tests.support.need import need
from tests.support.ready import until
from tests.support.streams import FORWARD, IN, MEBI, PORT, WAYS, carried, connected, noise, received, reset

pytestmark = pytest.mark.usefixtures("tun", "remote")

both_links = pytest.mark.parametrize("make", [machines.tap, machines.stream], ids=["tap", "stream"])
BULK = 3 * MEBI + 1
MSS = {1500: {4: 1460, 6: 1440}, 65520: {4: 65480, 6: 65460}}


def states(machine: Machine) -> list[str]:
    return [flow.state for flow in machine.net.flows() if flow.protocol == "tcp"]


@both_links
def test_a_flow_of_the_guests(make: Any, remote: Remote, family: int) -> None:
    with make() as machine, connected(machine, remote, family) as (guest, far):
        assert carried(guest, far, b"once")
        (flow,) = (flow for flow in machine.net.flows() if flow.protocol == "tcp")
        assert (flow.state, flow.spliced, flow.idle) == ("ESTABLISHED", False, 0)
        assert flow.guest == guest.getsockname()[:2]
        assert flow.shown == flow.remote == far.getsockname()[:2]
        assert (HOST[family], flow.port) == far.getpeername()[:2]


@both_links
def test_a_flow_of_a_forward(make: Any, remote: Remote, family: int) -> None:
    with make(tcp_ports=FORWARD) as machine, connected(machine, remote, family, IN) as (guest, far):
        assert carried(guest, far, b"once")
        (flow,) = (flow for flow in machine.net.flows() if flow.protocol == "tcp")
        assert (flow.state, flow.guest, flow.port) == ("ESTABLISHED", (HOST[family], PORT), PORT)
        assert flow.shown == flow.remote == far.getsockname()[:2] == guest.getpeername()[:2]


@both_links
def test_the_states_of_a_connection(make: Any, remote: Remote) -> None:
    with make() as machine:
        with connected(machine, remote, 4) as (guest, far):
            guest.shutdown(socket.SHUT_WR)
            until(lambda: states(machine) == ["CLOSE-WAIT"], "the guest's end")
            far.close()
            assert received(guest) == b""
            until(lambda: states(machine) == [], "the end of both")
        with connected(machine, remote, 4) as (guest, far):
            far.shutdown(socket.SHUT_WR)
            until(lambda: states(machine) == ["FIN-WAIT-2"], "the remote machine's end")
            guest.close()
            until(lambda: states(machine) == [], "the end of both")
        with connected(machine, remote, 4) as (guest, far):
            reset(guest)
            until(lambda: states(machine) == [], "the reset")
        with machine.socket(4) as waiting:
            waiting.setblocking(False)
            # The remote machine has no neighbour of that address.
            waiting.connect_ex(("192.0.2.77", 80))
            until(lambda: states(machine) == ["CONNECTING"], "the guest's SYN")


@both_links
@pytest.mark.parametrize("mtu", MSS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_counted(make: Any, remote: Remote, family: int, mtu: int, way: str) -> None:
    with make(mtu=mtu, tcp_ports=FORWARD) as machine, connected(machine, remote, family, way) as (guest, far):
        before = machine.net.statistics()
        assert carried(guest, far, noise(BULK))
        assert carried(far, guest, noise(BULK))
        guest.close()
        assert received(far) == b""
        far.close()
        until(lambda: states(machine) == [], "the end of both")
        after = machine.net.statistics()
        assert after.tcp_bytes_down - before.tcp_bytes_down == BULK
        # What had to be sent again counts again.
        assert after.tcp_bytes_up - before.tcp_bytes_up >= BULK
        fewest = -(-BULK // MSS[mtu][family])
        assert after.segments_up - before.segments_up >= fewest
        assert after.segments_down > before.segments_down
        assert (after.tcp_superframes_up > before.tcp_superframes_up) == (mtu == 1500)
        assert after.drops == before.drops
        assert (before.connections, after.connections) == (1, 0)
        assert (after.bytes_up, after.bytes_down) == (before.bytes_up, before.bytes_down), "of UDP"


FIELDS = ("tcp.srcport", "tcp.seq", "tcp.len", "tcp.flags.fin", "tcp.checksum.status", "ip.checksum.status")


def decoded(path: Path, only: str, *fields: str) -> list[list[str]]:
    """Return fields of the packets in a capture file, as tshark sees them."""
    command = [need("tshark"), "-r", str(path), "-Y", only, "-T", "fields"]
    command += [part for field in fields for part in ("-e", field)]
    command += [
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-o",
        "tcp.relative_sequence_numbers:TRUE",
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split("\t") for line in text.splitlines()]


def whole(rows: Sequence[Sequence[str]], size: int) -> bool:
    """Return whether the segments of one direction say all of a stream, without a hole."""
    expected = 1
    for _, sequence, length, *_ in rows:
        assert not int(length) or int(sequence) <= expected, "a hole"
        expected = max(expected, int(sequence) + int(length) if int(length) else 0)
    return expected == size + 1


@both_links
@pytest.mark.parametrize("options", [{}, {"no_offload": True}], ids=["superframes", "one-by-one"])
def test_the_capture_file_holds_segments(
    make: Any, options: dict[str, bool], remote: Remote, family: int, tmp_path: Path
) -> None:
    """Those of superframes too, cut as the kernel does it."""
    path = tmp_path / "guest.pcap"
    size = 300_000
    with make(mtu=1500, pcap=str(path), **options) as machine, connected(machine, remote, family) as (guest, far):
        assert carried(guest, far, noise(size))
        assert carried(far, guest, noise(size))
        port = far.getsockname()[1]
        guest.close()
        assert received(far) == b""
        far.close()
        until(lambda: states(machine) == [], "the end of both")
    assert decoded(path, "_ws.malformed", "frame.number") == []
    rows = decoded(path, f"tcp.port == {port}", *FIELDS)
    up = [row for row in rows if row[0] == str(port)]
    down = [row for row in rows if row[0] != str(port)]
    assert whole(up, size) and whole(down, size)
    assert max(int(row[2]) for row in rows) == MSS[1500][family]
    for row in up:
        assert row[4:6] == (["1", "1"] if family == 4 else ["1", ""])
    for ends in (up, down):
        assert [row[3] for row in ends].count("True") + [row[3] for row in ends].count("1") == 1


def test_nothing_is_dropped_in_ordinary_use(remote: Remote) -> None:
    with machines.tap(tcp_ports=FORWARD) as machine:
        for family in (4, 6):
            for way in WAYS:
                with connected(machine, remote, family, way) as (guest, far):
                    assert carried(guest, far, noise(MEBI))
                    assert carried(far, guest, noise(MEBI))
                until(lambda: states(machine) == [], "the end")
        assert machine.net.statistics().drops == {}
        # A port that refuses is the target's own answer.
        with machine.socket(4) as sock:
            assert sock.connect_ex((FAR4, 9))
        assert machine.net.statistics().drops == {}
