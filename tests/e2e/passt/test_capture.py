"""The capture file of passt mode, and sockets that no guest can have."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import gpasst
from gpasst.linux import UDP_SEGMENT
from tests.support.families import FAMILY
from tests.support.lab import FAR, Remote, bound, host_socket
from tests.support.need import need
from tests.support.passt import EPHEMERAL, greeted
from tests.support.scripted import HOST_MAC, MAC, Guest

pytestmark = pytest.mark.usefixtures("remote")


def records(path: Path) -> list[bytes]:
    """The frames of a capture file, in its own words (pcap-savefile(5))."""
    data = path.read_bytes()
    magic, major, minor, _, _, snap, kind = struct.unpack("<IHHiIII", data[:24])
    assert (magic, major, minor, kind) == (0xA1B2C3D4, 2, 4, 1)
    found, at = [], 24
    while at < len(data):
        _, microseconds, captured, length = struct.unpack("<IIII", data[at : at + 16])
        assert microseconds < 1_000_000
        assert captured == length <= snap
        found.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return found


def test_the_capture_file_holds_what_crossed(folder: Path, remote: Remote) -> None:
    path = folder / "guest.pcap"
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1000))]
    with gpasst.Passt(socket=str(folder / "captured"), pcap=str(path)) as link, Guest.connect(link.path) as guest:
        greeted(guest)
        for family in (4, 6):
            with bound(remote.socket(FAMILY[family]), FAR[family]) as far:
                guest.sendto(EPHEMERAL, far.getsockname()[:2], *[bytes(100)] * 10, b"")
                (sender,) = {far.recvfrom(999)[1] for _ in range(11)}
                far.sendmsg([bytes(10_500)], control, 0, sender)
                assert sum(len(guest.recv().payload) for _ in range(11)) == 10_500
        now = link.statistics()
    assert (now.datagrams_up, now.bytes_up, now.datagrams_down) == (22, 21_000, 22)
    assert path.stat().st_mode & 0o777 == 0o600
    found = records(path)
    assert [frame for frame in found if frame[6:12] == MAC] == guest.sent
    assert [frame for frame in found if frame[6:12] == HOST_MAC] == guest.read
    assert len(found) == len(guest.sent) + len(guest.read)
    command = [need("tshark"), "-r", str(path), "-Y", "udp", "-T", "fields", "-e", "udp.checksum.status"]
    command += ["-o", "udp.check_checksum:TRUE"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Right (1) or not computed (3).
    assert set(text.split()) == {"1", "3"}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_no_guests_socket_is_one_line(link: gpasst.Passt, folder: Path) -> None:
    del link  # what all of them share is open
    (folder / "file").touch()
    with ExitStack() as stack:
        other = stack.enter_context(bound(host_socket(socket.AF_INET), "127.0.0.1"))
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in pair:
            stack.enter_context(sock)
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(folder / "in-use"))
        listening.listen()
        cases: list[tuple[Any, str]] = [
            ({"fd": 9999}, "--fd 9999: Bad file descriptor"),
            ({"fd": os.dup(other.fileno())}, "is not a connected stream socket"),
            ({"fd": os.dup(pair[0].fileno())}, "is not a connected stream socket"),
            ({"fd": os.dup(listening.fileno())}, "is not a connected stream socket"),
            ({"fd": os.dup(pair[0].fileno()), "udp_ports": "5005"}, "is not a connected stream socket"),
            ({"socket": str(folder / "in-use")}, "in-use is in use"),
            ({"socket": str(folder / "file")}, "file exists and is no socket"),
            ({"socket": str(folder / "new"), "pcap": "/nosuch/file"}, "--pcap /nosuch/file"),
            ({"socket": str(folder / "new"), "udp_ports": f"127.0.0.1/{other.getsockname()[1]}"}, "in use"),
        ]
        for options, message in cases:
            before = descriptors()
            with pytest.raises(gpasst.GpasstError, match=message) as caught:
                gpasst.Passt(**options).open()
            assert "\n" not in str(caught.value)
            assert caught.value.remedy
            assert descriptors() == before - (0 < options.get("fd", 0) < 9999), options
        assert not (folder / "new").exists()
        with bound(host_socket(socket.AF_INET), "0.0.0.0", 5005):
            pass


def test_a_file_that_is_handed_over_for_a_socket_stays_its_owners(link: gpasst.Passt) -> None:
    del link
    with tempfile.TemporaryFile() as file:
        with pytest.raises(gpasst.ConfigurationError, match="Socket operation on non-socket"):
            gpasst.Passt(fd=file.fileno()).open()
        file.write(b"still open")
