"""Guests that come, go and do not read."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

import gpasst
from tests.support.families import FAMILY
from tests.support.guests import expire, scan
from tests.support.lab import FAR, FAR4, HOST4, REMOTE4, Remote, bound
from tests.support.passt import EPHEMERAL, OTHER_MAC, PORT, drops, greeted, stream_of
from tests.support.ready import until
from tests.support.scripted import ARP, BROADCAST, MAC, Guest

pytestmark = pytest.mark.usefixtures("remote")


def test_a_second_guest_is_refused(link: gpasst.Passt, remote: Remote, caplog: pytest.LogCaptureFixture) -> None:
    with Guest.connect(link.path) as guest:
        greeted(guest)
        for _ in range(3):
            with Guest.connect(link.path) as second:
                assert second.ended() and not second.read
        assert caplog.text.count(f"a second guest was refused: process {os.getpid()}") == 3
        with bound(remote.socket(socket.AF_INET), FAR4) as server:
            guest.sendto(EPHEMERAL, server.getsockname(), b"still here")
            assert server.recv(99) == b"still here"
    expire(link)


def test_flows_outlive_a_connection_and_the_next_guest_is_known_by_its_own_address(
    link: gpasst.Passt, remote: Remote, family: int
) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server:
        to = server.getsockname()[:2]
        with Guest.connect(link.path) as first:
            first.sendto(EPHEMERAL, to, b"from the first")
            _, sender = server.recvfrom(99)
        with Guest.connect(link.path, OTHER_MAC) as second:
            request = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + OTHER_MAC + socket.inet_aton(HOST4)
            second.send(ARP + request + bytes(6) + socket.inet_aton(REMOTE4))
            second.await_frame(lambda frame: frame[12:14] == ARP and frame[21] == 2)
            server.sendto(b"to the second", sender)
            assert second.recv() == (b"to the second", to, EPHEMERAL)
            second.sendto(EPHEMERAL, to, b"from the second")
            assert server.recvfrom(99) == (b"from the second", sender)
    expire(link)


def test_the_next_guest_is_addressed_as_everybody_until_it_speaks(folder: Path, remote: Remote) -> None:
    with gpasst.Passt(socket=str(folder / "next"), udp_ports="5004") as link:
        with bound(remote.socket(socket.AF_INET), FAR4) as client:
            with Guest.connect(link.path) as first:
                greeted(first)
                client.sendto(b"one", (HOST4, 5004))
                _, sender, _ = first.recv()
                first.sendto(5004, sender, b"answer")
                assert client.recv(9) == b"answer"
            with Guest.connect(link.path, OTHER_MAC) as second:
                greeted(second)
                client.sendto(b"two", (HOST4, 5004))
                assert second.recv()[0] == b"two"
                assert second.read[-1][:6] == BROADCAST


def test_nothing_is_advertised_to_nobody(folder: Path) -> None:
    with gpasst.Passt(socket=str(folder / "nobody")) as link:
        with Guest.connect(link.path) as guest:
            greeted(guest)
            guest.send(ARP + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + MAC + bytes(10) + socket.inet_aton(REMOTE4))
            guest.await_frame(lambda frame: frame[12:14] == ARP and frame[21] == 2)
        stream = stream_of(link)
        until(lambda: not stream.ready, "the guest missed")
        before = link.statistics().drops
        for later in (0, 20, 40, 4000):
            scan(link, later)
        assert link.statistics().drops == before


def test_a_guest_that_has_not_spoken_is_addressed_as_everybody(folder: Path, remote: Remote) -> None:
    with (
        gpasst.Passt(socket=str(folder / "silent"), udp_ports="5003") as link,
        bound(remote.socket(socket.AF_INET), FAR4) as client,
        Guest.connect(link.path) as guest,
    ):
        greeted(guest)
        for spoken in (False, True):
            client.sendto(b"in", (HOST4, 5003))
            _, sender, _ = guest.recv()
            assert guest.read[-1][:6] == (MAC if spoken else BROADCAST)
            guest.sendto(EPHEMERAL, sender, b"out")
            assert client.recv(9) == b"out"


def test_between_two_guests_datagrams_are_dropped_and_counted(folder: Path, remote: Remote) -> None:
    with (
        gpasst.Passt(socket=str(folder / "between"), udp_ports="5003", no_ra=True) as link,
        bound(remote.socket(socket.AF_INET), FAR4) as client,
    ):
        with Guest.connect(link.path) as first:
            greeted(first)
        stream = stream_of(link)
        until(lambda: stream.socket is None, "the guest is missed")
        for _ in range(3):
            client.sendto(b"lost", (HOST4, 5003))
        until(lambda: drops(link, gpasst.Drop.NO_GUEST) == 3, "counted")
        with Guest.connect(link.path) as second:
            greeted(second)
            client.sendto(b"found", (HOST4, 5003))
            assert second.recv().payload == b"found"


def test_what_a_guest_sent_last_is_delivered(link: gpasst.Passt, remote: Remote) -> None:
    last_words = [str(number).encode() for number in range(150)]
    with bound(remote.socket(socket.AF_INET), FAR4) as server:
        with Guest.connect(link.path) as guest:
            guest.sendto(EPHEMERAL, server.getsockname(), *last_words)
            # And the beginning of a frame, which nobody can complete.
            guest.socket.send(b"\0\0\1\0and so on")
        assert [server.recv(99) for _ in last_words] == last_words
    expire(link)


def test_bytes_that_make_no_sense_do_no_harm(link: gpasst.Passt, guest: Guest, remote: Remote) -> None:
    before = drops(link, gpasst.Drop.FRAME_LENGTH)
    with bound(remote.socket(socket.AF_INET), FAR4) as server:
        for length in (0, 13, 65536):
            guest.socket.sendall(length.to_bytes(4, "big") + b"\xff" * length)
        guest.send(b"\x08\x00", b"\x08\x00" + b"\xff" * 100, b"\x08\x06" + b"\xff" * 20, b"\x86\xdd" + b"\xff" * 99)
        guest.sendto(EPHEMERAL, server.getsockname(), b"sense")
        assert server.recv(99) == b"sense"
    assert drops(link, gpasst.Drop.FRAME_LENGTH) == before + 3
    assert not drops(link, gpasst.Drop.INTERNAL)


def test_after_the_only_guest_all_ends(folder: Path) -> None:
    path = folder / "once"
    with gpasst.Passt(socket=str(path), one_off=True) as link:
        assert not link.wait(0)
        with Guest.connect(link.path) as guest:
            greeted(guest)
            assert not link.wait(0)
        assert link.wait(10)
        with pytest.raises(OSError):
            Guest.connect(path)
        assert not path.exists()


def test_a_guest_whose_socket_was_handed_over(remote: Remote) -> None:
    ours, theirs = socket.socketpair()
    with gpasst.Passt(fd=ours.detach()) as link:
        assert link.path == ""
        with Guest(theirs) as guest, bound(remote.socket(socket.AF_INET), FAR4) as server:
            greeted(guest)
            guest.sendto(EPHEMERAL, server.getsockname(), b"question")
            server.sendto(b"answer", server.recvfrom(99)[1])
            assert guest.recv().payload == b"answer"
            assert not link.wait(0)
        assert link.wait(10)


def test_closing_tells_the_guest_and_removes_the_file(folder: Path) -> None:
    with gpasst.Passt(socket=str(folder / "closing")) as link:
        path = Path(link.path)
        guest = Guest.connect(path)
        greeted(guest)
    with guest:
        assert guest.ended()
    assert not path.exists()


def test_a_guest_that_stops_reading_costs_its_own_datagrams_only(link: gpasst.Passt, remote: Remote) -> None:
    def settled() -> bool:
        now = link.statistics()
        return now.datagrams_up - start.datagrams_up + drops(link, gpasst.Drop.STREAM_FULL) - dropped == sent

    with Guest.connect(link.path) as guest, bound(remote.socket(socket.AF_INET), FAR4) as far:
        greeted(guest)
        start, dropped, sent = link.statistics(), drops(link, gpasst.Drop.STREAM_FULL), 0
        while drops(link, gpasst.Drop.STREAM_FULL) < dropped + 20:
            for _ in range(4):
                far.sendto(sent.to_bytes(4, "big") + bytes(60_000), (HOST4, PORT))
                sent += 1
            until(settled, "every datagram written or counted")
        guest.sendto(EPHEMERAL, far.getsockname(), b"I am well")
        data, sender = far.recvfrom(99)
        assert data == b"I am well"
        now = link.statistics()
        lost = drops(link, gpasst.Drop.STREAM_FULL) - dropped
        read = [guest.recv().payload for _ in range(now.datagrams_up - start.datagrams_up)]
        numbers = [int.from_bytes(payload[:4], "big") for payload in read]
        assert all(payload[4:] == bytes(60_000) for payload in read), "whole"
        assert numbers == sorted(set(numbers)), "in order, and none twice"
        assert len(read) + lost == sent
        far.sendto(b"good to hear", sender)
        assert guest.recv().payload == b"good to hear"
        assert drops(link, gpasst.Drop.STREAM_FULL) == dropped + lost
    expire(link)


def test_a_guest_that_goes_without_having_read(link: gpasst.Passt, remote: Remote) -> None:
    with bound(remote.socket(socket.AF_INET), FAR4) as far:
        with Guest.connect(link.path) as guest:
            greeted(guest)
            before = drops(link, gpasst.Drop.STREAM_FULL)
            while drops(link, gpasst.Drop.STREAM_FULL) == before:
                far.sendto(bytes(60_000), (HOST4, PORT))
        with Guest.connect(link.path) as second:
            greeted(second)
            far.sendto(b"for the second", (HOST4, PORT))
            while (payload := second.recv().payload) != b"for the second":
                assert payload == bytes(60_000), "what the host's socket still held"
    expire(link)
