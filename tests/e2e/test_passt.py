"""Passt mode end to end: a scripted guest on a UNIX socket, its host and a remote machine."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, given, settings

import gpasst
from gpasst.commands.process import choose_identity
from gpasst.link.stream import Stream
from gpasst.linux import UDP_SEGMENT
from tests.support.cli import AS_ROOT, GPASST, cli, ended
from tests.support.engines import ENGINES, bursts, datagrams, send_all
from tests.support.families import FAMILY, LOOPBACK
from tests.support.guests import expire, proxy_of, scan
from tests.support.lab import (
    FAR,
    FAR4,
    FAR6,
    HOST,
    HOST4,
    HOST6,
    REMOTE4,
    REMOTE6,
    UPSTREAM,
    Remote,
    bound,
    host_socket,
)
from tests.support.need import need, need_module
from tests.support.ready import unix_listening, until
from tests.support.scripted import ARP, BROADCAST, HOST_MAC, MAC, Guest

pytestmark = pytest.mark.usefixtures("remote")

OTHER_MAC = bytes.fromhex("5254006789ab")
PORT, ENGINE_PORT, PROGRAM_PORT = 5000, 5001, 5002  # forwarded
EPHEMERAL = 45678  # of the guest
GATEWAY = {4: REMOTE4, 6: REMOTE6}
SIZES = (0, 1, 17, 18, 19, 1472, 1473, 8000, 65472, 65473, 65492, 65493, 65507)
FORWARDS = (str(PORT), "8053:53")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, closed to nobody."""
    with tempfile.TemporaryDirectory(prefix="gpasst-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture(scope="module")
def link(folder: Path, remote: Remote) -> Iterator[gpasst.Passt]:
    """What most tests share; each connects a guest of its own."""
    del remote
    with gpasst.Passt(socket=str(folder / "link"), udp_ports=FORWARDS) as opened:
        yield opened


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest, folder: Path, remote: Remote) -> Iterator[gpasst.Passt]:
    del remote
    with gpasst.Passt(socket=str(folder / "engine"), udp_ports=str(ENGINE_PORT), **ENGINES[request.param]) as opened:
        yield opened


@pytest.fixture
def guest(link: gpasst.Passt) -> Iterator[Guest]:
    with Guest.connect(link.path) as connected:
        greeted(connected)
        yield connected
    expire(link)


def drops(link: gpasst.Passt, reason: gpasst.Drop) -> int:
    return link.statistics().drops.get(reason.value, 0)


def stream_of(link: gpasst.Passt) -> Stream:
    stream = proxy_of(link).link
    assert isinstance(stream, Stream)
    return stream


def greeted(guest: Guest) -> tuple[bytes, bytes]:
    """Read what every guest is asked first."""
    return guest.frame(), guest.frame()


# Traffic.


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


# A few bursts each: with the lab's network underneath, `tests.test_stream_path` looks for the rare ones.
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


# Services, as scapy asks for them and reads what they answer.


@pytest.fixture
def scapy() -> Any:
    return need_module("scapy.layers.all")


def ask(guest: Guest, scapy: Any, packet: Any, answer: str) -> Any:
    """Send a packet of scapy's, and read up to a frame that has the layer `answer`."""
    frame = bytes(scapy.Ether(src=guest.mac.hex(":"), dst=HOST_MAC.hex(":")) / packet)
    guest.send(frame[12:])
    return scapy.Ether(guest.await_frame(lambda read: answer in scapy.Ether(read)))


def test_a_guest_is_asked_who_it_is(link: gpasst.Passt, scapy: Any) -> None:
    for _ in range(2):
        with Guest.connect(link.path) as guest:
            first, second = map(scapy.Ether, greeted(guest))
        assert first.dst == BROADCAST.hex(":")
        assert (first[scapy.ARP].op, first[scapy.ARP].psrc, first[scapy.ARP].pdst) == (1, REMOTE4, HOST4)
        assert second[scapy.ICMPv6ND_NS].tgt == HOST6
        assert second.dst.startswith("33:33:ff"), "to the group that its address makes"
        assert second[scapy.IPv6].hlim == 255


@pytest.mark.parametrize("address", [REMOTE4, "192.0.2.77", FAR4])
def test_arp_is_answered_for_all_but_the_guest(guest: Guest, scapy: Any, address: str) -> None:
    question = scapy.ARP(hwsrc=MAC.hex(":"), psrc=HOST4, pdst=HOST4)
    guest.send(ARP + bytes(question))
    answer = ask(guest, scapy, scapy.ARP(hwsrc=MAC.hex(":"), psrc=HOST4, pdst=address), "ARP")
    while answer[scapy.ARP].op == 1:
        answer = scapy.Ether(guest.await_frame(lambda read: "ARP" in scapy.Ether(read)))
    assert (answer[scapy.ARP].op, answer[scapy.ARP].psrc, answer[scapy.ARP].hwsrc) == (2, address, HOST_MAC.hex(":"))


def test_neighbour_discovery(guest: Guest, scapy: Any) -> None:
    question = scapy.IPv6(src=HOST6, dst="ff02::1:ff00:1", hlim=255) / scapy.ICMPv6ND_NS(tgt=REMOTE6)
    answer = ask(guest, scapy, question, "ICMPv6ND_NA")
    assert answer[scapy.ICMPv6ND_NA].tgt == REMOTE6
    assert answer[scapy.ICMPv6NDOptDstLLAddr].lladdr == HOST_MAC.hex(":")
    question = scapy.IPv6(src="fe80::1234", dst="ff02::2", hlim=255) / scapy.ICMPv6ND_RS()
    answer = ask(guest, scapy, question, "ICMPv6ND_RA")
    assert answer[scapy.ICMPv6NDOptPrefixInfo].prefix == "2001:db8::"
    assert answer[scapy.ICMPv6NDOptMTU].mtu == 65520


@pytest.mark.parametrize("reported", [True, False])
def test_a_lease_tells_address_router_and_resolvers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scapy: Any, reported: bool
) -> None:
    """A namespace has the host's resolver file; a virtual machine has to be told."""
    resolver_file = folder / "resolv.conf"
    resolver_file.write_text("nameserver 198.51.100.53\nsearch example.org\n", encoding="ascii")
    monkeypatch.setattr("gpasst.api.passt.RESOLVER_FILE", str(resolver_file))
    options: dict[str, Any] = {} if reported else {"no_dhcp_dns": True, "no_dhcp_search": True}
    with gpasst.Passt(socket=str(folder / "lease"), **options) as link, Guest.connect(link.path) as guest:
        question = (
            scapy.IP(src="0.0.0.0", dst="255.255.255.255")
            / scapy.UDP(sport=68, dport=67)
            / scapy.BOOTP(chaddr=MAC, xid=7)
            / scapy.DHCP(options=[("message-type", "discover"), "end"])
        )
        answer = ask(guest, scapy, question, "DHCP")
        options4 = {item[0]: item[1] for item in answer[scapy.DHCP].options if isinstance(item, tuple)}
        assert answer[scapy.BOOTP].yiaddr == HOST4
        assert (options4["message-type"], options4["subnet_mask"], options4["router"]) == (2, "255.255.255.0", REMOTE4)
        assert options4.get("name_server") == ("198.51.100.53" if reported else None)
        assert (119 in options4 or "DomainSearch" in str(options4) or "domain" in str(options4).lower()) == reported


@pytest.mark.parametrize("target", [REMOTE4, FAR4])
def test_echo(guest: Guest, scapy: Any, target: str) -> None:
    question = scapy.IP(src=HOST4, dst=target) / scapy.ICMP(id=77, seq=3) / b"payload"
    answer = ask(guest, scapy, question, "ICMP")
    assert (answer[scapy.IP].src, answer[scapy.ICMP].type, answer[scapy.ICMP].id) == (target, 0, 77)
    assert bytes(answer[scapy.ICMP].payload)[:7] == b"payload"


def test_echo_over_ipv6(guest: Guest, scapy: Any) -> None:
    question = scapy.IPv6(src=HOST6, dst=FAR6) / scapy.ICMPv6EchoRequest(id=77, seq=3, data=b"payload")
    answer = ask(guest, scapy, question, "ICMPv6EchoReply")
    assert (answer[scapy.IPv6].src, answer[scapy.ICMPv6EchoReply].data) == (FAR6, b"payload")


def test_tcp_is_refused_at_once(guest: Guest, scapy: Any) -> None:
    question = scapy.IP(src=HOST4, dst=FAR4) / scapy.TCP(sport=1234, dport=80, flags="S", seq=9)
    answer = ask(guest, scapy, question, "TCP")
    assert "R" in str(answer[scapy.TCP].flags)
    assert answer[scapy.TCP].ack == 10


# Guests that come and go.


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


# A guest that does not read.


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


# The capture file.


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


# What cannot be.


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


# The command line as a program.


@contextmanager
def serving(path: Path, *options: str, identity: list[str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """The program in the foreground, once it listens at `path` and awaits signals."""
    command = [*GPASST, "passt", *(AS_ROOT if identity is None else identity), "-f", "-s", str(path), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            until(lambda: program.poll() is not None or unix_listening(path), f"listening at {path}")
            until(lambda: program.poll() is not None or catches(program.pid, signal.SIGQUIT), "signals awaited")
            assert program.poll() is None, program.stderr and program.stderr.read()
            yield program
        finally:
            program.kill()


def catches(process: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal (proc_pid_status(5))."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    caught = dict(line.split(":", 1) for line in lines)["SigCgt"]
    return bool(int(caught, 16) >> (number - 1) & 1)


def text(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_well(folder: Path, remote: Remote, number: signal.Signals) -> None:
    path = folder / "program"
    with serving(path, "-u", str(PROGRAM_PORT)) as program, Guest.connect(path) as guest:
        greeted(guest)
        with bound(remote.socket(socket.AF_INET), FAR4) as client:
            client.sendto(b"in", (HOST4, PROGRAM_PORT))
            data, sender, _ = guest.recv()
            guest.sendto(PROGRAM_PORT, sender, b"out")
            assert (data, client.recv(9)) == (b"in", b"out")
        program.send_signal(number)
        assert guest.ended()
        assert program.wait(10) == 0
        assert text(program.stdout) == ""
        log = text(program.stderr)
    assert f"guests connect to {path}" in log
    assert f"a guest has connected: process {os.getpid()}" in log
    assert "Traceback" not in log
    assert not path.exists()


def test_the_program_ends_with_its_only_guest(folder: Path) -> None:
    path = folder / "once"
    with serving(path, "--one-off") as program:
        with Guest.connect(path) as guest:
            greeted(guest)
        assert program.wait(10) == 0
        assert text(program.stdout) == ""
    assert not path.exists()


def test_the_program_takes_an_inherited_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, Guest(theirs) as guest:
        command = [*GPASST, "passt", *AS_ROOT, "-f", "-q", "--fd", str(ours.fileno())]
        program = subprocess.Popen(command, pass_fds=[ours.fileno()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        ours.close()
        with program:
            guest.socket.settimeout(20)
            greeted(guest)
            guest.socket.close()
            assert program.stdout is not None
            assert (program.wait(10), program.stdout.read()) == (0, b"")


def test_the_program_goes_to_the_background_when_it_listens(folder: Path) -> None:
    path, pid_file = folder / "background", folder / "pid"
    done = cli("passt", *AS_ROOT, "-s", str(path), "-P", str(pid_file), "-1")
    assert (done.returncode, done.stdout) == (0, "")
    with Guest.connect(path) as guest:
        handle = os.pidfd_open(int(pid_file.read_text(encoding="ascii")))
        greeted(guest)
        assert not ended(handle)
    until(lambda: ended(handle), "the program ended with its guest")
    os.close(handle)
    assert not path.exists()


def test_what_fails_in_the_background_is_told_in_the_foreground(folder: Path) -> None:
    (folder / "taken").touch()
    done = cli("passt", "-s", str(folder / "taken"), "-P", str(folder / "pid-of-nobody"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists and is no socket" in done.stderr
    assert done.stderr.count("\n") == 1


def test_called_as_passt(folder: Path) -> None:
    program = folder / "passt"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom gpasst.cli import main\nsys.exit(main())\n", encoding="utf-8"
    )
    program.chmod(0o755)
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with ours, theirs:
        theirs.close()
        done = subprocess.run(
            [str(program), *AS_ROOT, "-f", "-q", "-F", str(ours.fileno())],
            pass_fds=[ours.fileno()],
            timeout=30,
            env=environment,
        )
    assert done.returncode == 0


def test_a_program_started_by_root_serves_as_nobody(folder: Path, remote: Remote) -> None:
    path = folder / "nobody"
    with serving(path, "-u", str(PROGRAM_PORT), identity=[]) as program, Guest.connect(path) as guest:
        greeted(guest)
        uid, _ = choose_identity("") or (os.getuid(), os.getgid())
        status = Path(f"/proc/{program.pid}/status")
        until(lambda: f"\nUid:\t{uid}\t" in status.read_text(encoding="utf-8"), "it is who it shall be")
        with bound(remote.socket(socket.AF_INET), FAR4) as far:
            guest.sendto(EPHEMERAL, far.getsockname(), b"out")
            assert far.recv(9) == b"out"
            far.sendto(b"in", (HOST4, PROGRAM_PORT))
            assert guest.recv().payload == b"in"
        program.terminate()
        assert program.wait(10) == 0
        assert "Traceback" not in text(program.stderr)
    assert not path.exists()
