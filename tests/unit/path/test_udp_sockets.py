"""UDP between a guest and the host's sockets, which are real ones on loopback."""

from __future__ import annotations

import socket
import struct

import pytest

from gpasst.counters import Drop
from gpasst.features import ALL, Feature
from gpasst.link.port import RunHeader
from gpasst.linux import SOL_UDP, UDP_SEGMENT
from gpasst.path.budget import BATCHES_PER_STEP, STEP_SECONDS
from gpasst.testing import free_port
from gpasst.udp.mapping import Listener
from tests.support.addresses import ip
from tests.support.bench import GATEWAY, GUEST, Bench, bench, server, udp_packet
from tests.support.families import ANY, FAMILIES, FAMILY, LOOPBACK
from tests.support.replies import refused

TARGET = 7000  # port of the guest that the listener leads to


def listener(it: Bench, family: int) -> Listener:
    """A forwarded port on the host, bound to every address."""
    sock = socket.socket(FAMILY[family], socket.SOCK_DGRAM)
    sock.setblocking(False)
    if family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    sock.bind((ANY[family], 0))
    opened = Listener(family, sock.getsockname()[1], sock, target=TARGET, general=True)
    it.nat.listen(opened)
    return opened


@FAMILIES
def test_there_and_back(family: int) -> None:
    with bench() as it, server(family) as host:
        port = free_port("udp")
        it.send(family, host.getsockname(), b"question", port)
        data, sender = host.recvfrom(99)
        assert (data, sender[1]) == (b"question", port)
        host.sendto(b"answer", sender)
        it.receive()
        ((header, total, segment, payload),) = it.link.runs
        assert (total, segment, payload, header.protocol) == (6, 6, b"answer", "udp")
        assert it.link.flushed == 1
        assert it.counters.udp.down.datagrams == 1


@FAMILIES
@pytest.mark.parametrize("features", [ALL, ALL - {Feature.GSO}], ids=["joined", "each"])
def test_a_superframe_of_the_guest_is_a_datagram_for_each_segment(family: int, features: frozenset[Feature]) -> None:
    with bench(features) as it, server(family) as host:
        it.send(family, host.getsockname(), bytes(2500), segment=1000)
        assert [len(host.recv(9999)) for _ in range(3)] == [1000, 1000, 500]
        assert it.counters.udp.down.datagrams == 3
        assert it.counters.udp.down.superframes == (1 if Feature.GSO in features else 0)


@FAMILIES
@pytest.mark.parametrize("gro", [True, False])
def test_a_superframe_of_the_host_is_a_run(family: int, gro: bool) -> None:
    with bench(ALL if gro else ALL - {Feature.GRO}) as it, server(family) as host:
        it.send(family, host.getsockname())
        _, sender = host.recvfrom(9)
        payload = bytes(i & 0xFF for i in range(2500))
        host.sendmsg([payload], [(SOL_UDP, UDP_SEGMENT, struct.pack("@H", 1000))], 0, sender)
        it.receive()
        if gro:
            assert [(total, segment) for _, total, segment, _ in it.link.runs] == [(2500, 1000)]
        assert it.link.payloads == [payload[:1000], payload[1000:2000], payload[2000:]]


@FAMILIES
def test_one_guest_port_has_one_socket(family: int) -> None:
    with bench() as it, server(family) as one, server(family) as other:
        port = free_port("udp")
        for host in (one, other):
            it.send(family, host.getsockname(), port=port)
        assert one.recvfrom(9)[1] == other.recvfrom(9)[1]
        assert len(it.watched) == 1


@FAMILIES
def test_a_port_that_the_host_uses_is_changed_and_logged(family: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with bench() as it, server(family) as host, server(family) as taken:
        port = taken.getsockname()[1]
        it.send(family, host.getsockname(), port=port)
        assert host.recvfrom(9)[1][1] != port
        assert f"IPv{family} source port {port} is taken on the host" in caplog.text


@FAMILIES
def test_a_new_sender_to_a_listener_is_shown_to_the_guest(family: int) -> None:
    with bench() as it, server(family) as client:
        opened = listener(it, family)
        client.sendto(b"in", (LOOPBACK[family], opened.port))
        assert it.udp.step(opened) == 1
        assert it.link.payloads == [b"in"]
        (peer,) = opened.peers()
        assert peer.shown == (ip(GATEWAY[family]), client.getsockname()[1])
        # The guest's answer leaves from the listener.
        it.udp.outbound(udp_packet(family, TARGET, client.getsockname()[1], b"out"))
        data, sender = client.recvfrom(9)
        assert (data, sender[:2]) == (b"out", (LOOPBACK[family], opened.port))
        assert list(it.nat.retire(opened)) == [None]
        assert opened.socket is not None
        opened.socket.close()


@FAMILIES
def test_known_senders_go_before_new_ones(family: int) -> None:
    """Setting a peer up costs much more than carrying a run does."""
    with bench() as it, server(family) as known, server(family) as new:
        opened = listener(it, family)
        known.sendto(b"first", (LOOPBACK[family], opened.port))
        it.udp.step(opened)
        new.sendto(b"new", (LOOPBACK[family], opened.port))
        known.sendto(b"known", (LOOPBACK[family], opened.port))
        it.udp.step(opened)
        assert it.link.payloads == [b"first", b"known", b"new"]
        assert list(it.nat.retire(opened)) == [None] * 2
        assert opened.socket is not None
        opened.socket.close()


@FAMILIES
def test_what_answers_count_as_activity_of_their_peer(family: int) -> None:
    with bench() as it, server(family) as host:
        it.send(family, host.getsockname())
        table = it.nat.tables[family]
        (peer,) = table
        table.activity[:] = bytes(len(table.activity))
        host.sendto(b"!", host.recvfrom(9)[1])
        it.receive()
        assert table.activity[peer.byte] == peer.bit
        table.activity[:] = bytes(len(table.activity))
        it.udp.send(peer, memoryview(b"?"), 1)
        assert table.activity[peer.byte] == peer.bit


@FAMILIES
def test_a_step_moves_a_bounded_number_of_batches(family: int) -> None:
    with bench(ALL - {Feature.GRO}) as it, server(family) as host:
        it.send(family, host.getsockname())
        _, sender = host.recvfrom(9)
        (udp_socket,) = it.watched
        # Of changing sizes, so that no two are one run and each batch is full.
        for number in range(64 * BATCHES_PER_STEP + 10):
            host.sendto(bytes(1 + number % 2), sender)
        it.udp.step(udp_socket)
        first = len(it.link.payloads)
        assert 0 < first <= 64 * BATCHES_PER_STEP
        while it.udp.step(udp_socket):
            pass
        assert len(it.link.payloads) == 64 * BATCHES_PER_STEP + 10
        assert it.link.flushed >= BATCHES_PER_STEP


@FAMILIES
def test_a_step_ends_when_its_time_is_over(family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(ALL - {Feature.GRO}) as it, server(family) as host:
        it.send(family, host.getsockname())
        _, sender = host.recvfrom(9)
        (udp_socket,) = it.watched
        for number in range(64 * BATCHES_PER_STEP):
            host.sendto(bytes(1 + number % 2), sender)
        write = it.link.write_run

        def slowly(header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
            it.time += STEP_SECONDS
            write(header, total, segment, payload)

        monkeypatch.setattr(it.link, "write_run", slowly)
        it.udp.step(udp_socket)
        # The clock is looked at after the first batch, and the step ended after the second.
        assert len(it.link.payloads) <= 2 * 64
        assert it.link.payloads
        while it.udp.step(udp_socket):
            pass
        assert len(it.link.payloads) == 64 * BATCHES_PER_STEP


@FAMILIES
def test_an_error_costs_no_datagram_behind_it(family: int) -> None:
    with bench() as it, server(family) as host:
        with server(family) as closed:
            nobody = closed.getsockname()
        port = free_port("udp")
        it.send(family, host.getsockname(), b"?", port)
        _, sender = host.recvfrom(9)
        it.send(family, nobody, b"?", port)
        host.sendto(b"answer", sender)
        it.receive()
        assert it.link.payloads == [b"answer"]
        assert len(it.link.frames) == it.counters.errors_up == 1


@FAMILIES
def test_a_service_comes_before_what_is_carried(family: int) -> None:
    with bench() as it, server(family) as host:
        asked: list[bytes] = []
        port = host.getsockname()[1]
        it.services[family, port] = lambda packet, data: asked.append(bytes(data))
        it.send(family, host.getsockname(), b"for the service")
        assert (asked, it.watched) == ([b"for the service"], [])


@FAMILIES
def test_where_udp_is_switched_off_services_still_are(family: int) -> None:
    with bench(carried=False) as it, server(family) as host:
        with refused(Drop.PROTOCOL_DISABLED):
            it.send(family, host.getsockname())
        asked: list[bytes] = []
        it.services[family, host.getsockname()[1]] = lambda packet, data: asked.append(bytes(data))
        it.send(family, host.getsockname(), b"?")
        assert (asked, it.watched) == ([b"?"], [])


@FAMILIES
def test_a_datagram_that_is_malformed_opens_nothing(family: int) -> None:
    with bench() as it:
        packet = udp_packet(family, 1, 2, b"data")
        for payload in (b"", packet.payload[:7]):
            with refused(Drop.MALFORMED_UDP):
                it.udp.outbound(type(packet)(family, packet.source, packet.destination, 17, memoryview(payload), 64))
        assert it.watched == []
        assert ip(GUEST[family]) == packet.source


@FAMILIES
def test_tos_and_ttl_follow_the_datagrams(family: int) -> None:
    with bench() as it, server(family) as host:
        port = free_port("udp")
        it.send(family, host.getsockname(), port=port)
        _, sender = host.recvfrom(9)
        (peer,) = it.nat.tables[family]
        level, tos, ttl = (0, 1, 2) if family == 4 else (41, 67, 16)
        host.setsockopt(level, tos, 0xB8)
        host.setsockopt(level, ttl, 9)
        host.sendto(b"marked", sender)
        it.receive()
        assert peer.header.tos_ttl == 0xB809


@FAMILIES
def test_closing_twice_is_no_error(family: int) -> None:
    with bench() as it, server(family) as host:
        it.send(family, host.getsockname())
        (udp_socket,) = it.watched
        it.nat.close()
        assert udp_socket.socket is None
        assert it.udp.step(udp_socket) == 0, "a step that was due is no error either"
