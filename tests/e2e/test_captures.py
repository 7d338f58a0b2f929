"""Captures of what crosses a guest's interface, behind either link. Takes 5 seconds."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpasst
from gpasst.packet.frame import Frame
from tests.support import machines
from tests.support.captures import dissected, packets
from tests.support.families import FAMILY
from tests.support.lab import FAR, FAR4, HOST, Remote, bound
from tests.support.ready import until
from tests.support.streams import MEBI, carried, connected, noise

pytestmark = pytest.mark.usefixtures("tun", "remote")

both_links = pytest.mark.parametrize("make", [machines.tap, machines.stream], ids=["tap", "stream"])
CHECKED = ("-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE")
WRONG = "_ws.malformed || _ws.expert.severity == error || ip.checksum.status == 0 || udp.checksum.status == 0"


@both_links
def test_pcapng_has_names_directions_and_times(make: Any, remote: Remote, family: int, tmp_path: Path) -> None:
    path = tmp_path / "guest.pcapng"
    with (
        make(pcap=str(path), mtu=1500) as machine,
        bound(remote.socket(FAMILY[family]), FAR[family]) as far,
        machine.socket(family, socket.SOCK_DGRAM) as guest,
    ):
        guest.sendto(b"question", far.getsockname()[:2])
        data, sender = far.recvfrom(99)
        assert data == b"question"
        far.sendto(b"answer", sender)
        assert guest.recv(99) == b"answer"
        with connected(machine, remote, family) as (near, other):
            assert carried(near, other, noise(MEBI))
            assert carried(other, near, noise(MEBI))
        port = far.getsockname()[1]
        name = machine.net.interface if make is machines.tap else "guest"
    assert path.stat().st_mode & 0o777 == 0o600
    found = packets(path)
    assert {packet.interface for packet in found} == {name}
    for packet in found:
        frame = Frame(packet.frame, packet.direction == 1)
        if frame.dst == HOST[family]:
            assert packet.direction == 1
        if port in (frame.sport, frame.dport) and frame.protocol == "udp":
            assert (packet.direction, frame.payload) == ((2, b"question") if frame.dport == port else (1, b"answer"))
    fields = [part for field in ("frame.interface_name", "frame.packet_flags_direction") for part in ("-e", field)]
    question, answer = dissected(path, "-Y", f"udp.port == {port}", "-T", "fields", *fields)
    assert [line.split("\t")[0] for line in (question, answer)] == [name, name]
    assert [int(line.split("\t")[1], 0) for line in (question, answer)] == [2, 1]
    assert dissected(path, *CHECKED, "-Y", WRONG) == []
    assert len(dissected(path)) == len(found)


@both_links
def test_the_reason_of_a_drop_is_a_comment(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "guest.pcapng"
    with make(pcap=str(path), no_udp=True, ipv4_only=True) as machine:
        with machine.socket(4, socket.SOCK_DGRAM) as guest:
            guest.sendto(b"not carried", (FAR4, 80))
            reason = gpasst.Drop.PROTOCOL_DISABLED.value
            until(lambda: machine.net.statistics().drops.get(reason, 0), "the drop")
    comments = {packet.comment for packet in packets(path) if Frame(packet.frame, False).dport == 80}
    assert comments == {reason}
    shown = dissected(path, "-Y", "udp.port == 80", "-T", "fields", "-e", "frame.comment")
    assert set(shown) == {reason}


KILLED = """
import signal, sys, gpasst
with gpasst.Pasta(config_net=True, pcap=sys.argv[1]) as net, net.socket() as guest:
    guest.connect((net.gateway4, 9))
    guest.send(b"to nobody")
    signal.pause()
"""


@pytest.mark.parametrize("suffix", ["pcap", "pcapng"])
def test_a_killed_program_leaves_a_readable_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"guest.{suffix}"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)]) as program:
        # The ICMP error quotes the datagram.
        until(lambda: path.exists() and path.read_bytes().count(b"to nobody") == 2, "both frames in the file")
        program.kill()
    assert len(dissected(path, "-Y", "udp.port == 9")) == 2
