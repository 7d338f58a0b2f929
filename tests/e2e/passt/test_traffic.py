"""Passt mode end to end: a scripted guest on a UNIX socket, its host and a remote machine."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import gpasst
from gpasst.linux import UDP_SEGMENT
from tests.support.engines import bursts, datagrams, send_all
from tests.support.families import FAMILY, LOOPBACK
from tests.support.guests import expire
from tests.support.lab import FAR, FAR4, HOST, HOST4, REMOTE4, UPSTREAM, Remote, bound, host_socket
from tests.support.passt import ENGINE_PORT, EPHEMERAL, GATEWAY, PORT, greeted
from tests.support.scripted import Guest

pytestmark = pytest.mark.usefixtures("remote")

SIZES = (0, 1, 17, 18, 19, 1472, 1473, 8000, 65472, 65473, 65492, 65493, 65507)


def test_guest_to_a_remote_machine_and_back(guest: Guest, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server:
        guest.sendto(EPHEMERAL, server.getsockname()[:2], b"question")
        data, sender = server.recvfrom(99)
        assert (data, sender[:2]) == (b"question", (HOST[family], EPHEMERAL))
        server.sendto(b"answer", sender)
        assert guest.recv() == (b"answer", server.getsockname()[:2], EPHEMERAL)


def test_the_gateway_leads_to_the_hosts_loopback(guest: Guest, family: int) -> None:
    with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as server:
        port = server.getsockname()[1]
        guest.sendto(EPHEMERAL, (GATEWAY[family], port), b"question")
        data, sender = server.recvfrom(99)
        assert (data, sender[1]) == (b"question", EPHEMERAL)
        server.sendto(b"answer", sender)
        assert guest.recv() == (b"answer", (GATEWAY[family], port), EPHEMERAL)


@pytest.mark.parametrize(("port", "target"), [(PORT, PORT), (8053, 53)])
def test_a_forwarded_port(guest: Guest, remote: Remote, family: int, port: int, target: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as client:
        client.sendto(b"in", (HOST[family], port))
        data, sender, guest_port = guest.recv()
        assert (data, sender, guest_port) == (b"in", client.getsockname()[:2], target)
        guest.sendto(target, sender, b"out")
        data, answered = client.recvfrom(9)
        assert (data, answered[:2]) == (b"out", (HOST[family], port))


def test_a_local_client_is_shown_as_the_gateway(guest: Guest) -> None:
    with bound(host_socket(socket.AF_INET), "127.0.0.1") as client:
        client.sendto(b"in", ("127.0.0.1", PORT))
        data, sender, _ = guest.recv()
        assert (data, sender) == (b"in", (REMOTE4, client.getsockname()[1]))
        guest.sendto(PORT, sender, b"out")
        assert client.recvfrom(9) == (b"out", ("127.0.0.1", PORT))


@pytest.mark.parametrize("size", SIZES)
def test_sizes(guest: Guest, remote: Remote, family: int, size: int) -> None:
    """The guest's MTU is 65520: what is larger comes from it in fragments, and goes to it whole."""
    payload = bytes(at * 7 & 0xFF for at in range(size))
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server:
        guest.sendto(EPHEMERAL, server.getsockname()[:2], payload)
        data, sender = server.recvfrom(65535)
        assert data == payload
        server.sendto(data, sender)
        assert guest.recv().payload == payload


def test_small_fragments_out_of_order(guest: Guest, remote: Remote, family: int) -> None:
    payload = bytes(at * 7 & 0xFF for at in range(5000))
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server:
        fragments = guest.datagrams(EPHEMERAL, server.getsockname()[:2], payload, mtu=1280)
        assert len(fragments) >= 4
        guest.send(*reversed(fragments))
        assert server.recv(65535) == payload


# A few bursts each: with the lab's network underneath, `tests.unit.path.test_stream_reader` looks for the rare ones.
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(burst=bursts())
def test_random_bursts(engine: gpasst.Passt, remote: Remote, family: int, burst: list[tuple[int, int, int]]) -> None:
    ports = (46001, 46002, 46003)
    with ExitStack() as stack:
        guest = stack.enter_context(Guest.connect(engine.path))
        greeted(guest)
        far = stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family]))
        clients = [stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family])) for _ in ports]
        sent = send_all(clients, burst, (HOST[family], ENGINE_PORT))
        got: dict[Any, list[bytes]] = {}
        for _ in range(sum(map(len, sent))):
            data, sender, port = guest.recv()
            assert port == ENGINE_PORT
            got.setdefault(sender, []).append(data)
        expected = {client.getsockname()[:2]: data for client, data in zip(clients, sent, strict=True) if data}
        assert got == expected
        frames = []
        for index, size, segment in burst:
            payload = bytes((index * 31 + at) & 0xFF for at in range(size))
            frames += guest.datagrams(ports[index], far.getsockname()[:2], *datagrams(payload, segment))
        guest.send(*frames)
        arrived: dict[int, list[bytes]] = {}
        for _ in frames:
            data, sender = far.recvfrom(65535)
            arrived.setdefault(sender[1], []).append(data)
        wanted: dict[int, list[bytes]] = {}
        for index, size, segment in burst:
            payload = bytes((index * 31 + at) & 0xFF for at in range(size))
            wanted.setdefault(ports[index], []).extend(datagrams(payload, segment))
        assert arrived == wanted
    expire(engine)


def test_superframes_of_a_remote_application(engine: gpasst.Passt, remote: Remote, family: int) -> None:
    payload = bytes(at * 11 & 0xFF for at in range(30 * 1000 + 500))
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1000))]
    with Guest.connect(engine.path) as guest, bound(remote.socket(FAMILY[family]), FAR[family]) as far:
        greeted(guest)
        far.sendmsg([payload], control, 0, (HOST[family], ENGINE_PORT))
        received = [guest.recv() for _ in range(31)]
        assert [datagram.payload for datagram in received] == datagrams(payload, 1000)
        guest.sendto(ENGINE_PORT, received[0].sender, *datagrams(payload, 1000))
        assert [far.recv(65535) for _ in range(31)] == datagrams(payload, 1000)
    expire(engine)


def test_equal_frames_leave_together(guest: Guest, link: gpasst.Passt, remote: Remote) -> None:
    with bound(remote.socket(socket.AF_INET), FAR4) as server:
        guest.sendto(EPHEMERAL, server.getsockname(), b"to be known")
        assert server.recv(99) == b"to be known"
        before = link.statistics()
        guest.sendto(EPHEMERAL, server.getsockname(), *[bytes(100)] * 64)
        assert [server.recv(999) for _ in range(64)] == [bytes(100)] * 64
        after = link.statistics()
    assert after.datagrams_down - before.datagrams_down == 64
    assert after.bytes_down - before.bytes_down == 6400
    assert 0 < after.superframes_down - before.superframes_down < 10


def test_statistics_and_flows(folder: Path, remote: Remote) -> None:
    with gpasst.Passt(socket=str(folder / "counts")) as link, Guest.connect(link.path) as guest:
        with bound(remote.socket(socket.AF_INET), FAR4) as server:
            greeted(guest)
            guest.sendto(EPHEMERAL, server.getsockname(), b"12345")
            _, sender = server.recvfrom(9)
            server.sendto(b"123", sender)
            guest.recv()
            now = link.statistics()
            assert (now.datagrams_down, now.bytes_down, now.frames_down) == (1, 5, 1)
            assert (now.datagrams_up, now.bytes_up, now.frames_up) == (1, 3, 2)
            assert (now.mappings, now.peers, now.pairs, now.drops) == (1, 1, 0, {})
            (flow,) = link.flows()
            assert (flow.guest, flow.shown, flow.remote) == (
                (HOST4, EPHEMERAL),
                server.getsockname(),
                server.getsockname(),
            )
            assert (flow.port, flow.spliced) == (EPHEMERAL, False)


def test_forwards_and_options_are_told(link: gpasst.Passt) -> None:
    assert {(forward.port, forward.target) for forward in link.forwards} == {(PORT, PORT), (8053, 53)}
    assert link.network.ip4 is not None
    assert link.network.ip4.index == socket.if_nametoindex(UPSTREAM)
    assert link.qemu_options == (
        "-device",
        "virtio-net-pci,netdev=gpasst",
        "-netdev",
        f"stream,id=gpasst,server=off,addr.type=unix,addr.path={link.path}",
    )
