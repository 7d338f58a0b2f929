"""UDP end to end: a guest, its host and a remote machine, with real sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import gpasst
from gpasst.linux import UDP_GRO, UDP_SEGMENT
from tests.support.engines import ENGINES
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.guests import expire, gateway, guest_socket, resolve_gateway, tap_index
from tests.support.lab import (
    FAR,
    FAR4,
    FAR6,
    HOST,
    HOST4,
    HOST4_SECOND,
    HOST6,
    HOST_LINK_LOCAL,
    REMOTE,
    REMOTE4,
    REMOTE6,
    REMOTE_LINK_LOCAL,
    UPSTREAM,
    Remote,
    bound,
    host_socket,
)

pytestmark = pytest.mark.usefixtures("tun", "remote")

SIZES = (0, 1, 2, 63, 1472, 1473, 8000, 65479, 65480, 65487, 65488, 65507)


@pytest.fixture(params=ENGINES, scope="module")
def net(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    """A guest with the host's configuration; port 5000 leads to it, 8053 to its port 53, 6053 too, all by the tap."""
    del tun
    ports = ("5000-5004", "8053:53", "6053:53", f"{HOST4}/7001:7000", f"%{UPSTREAM}/7100:7100")
    with gpasst.Pasta(config_net=True, udp_ports=ports, no_splice=True, **ENGINES[request.param]) as opened:
        resolve_gateway(opened, remote)
        yield opened


def test_the_guest_has_the_hosts_configuration(net: gpasst.Pasta) -> None:
    assert net.interface == UPSTREAM
    assert (net.gateway4, net.gateway6) == (REMOTE4, REMOTE6)
    with guest_socket(net, 4) as v4, guest_socket(net, 6) as v6:
        v4.connect((FAR4, 9))
        v6.connect((FAR6, 9))
        assert v4.getsockname()[0] == HOST4
        assert v6.getsockname()[0] == HOST6


def test_guest_to_a_remote_machine_and_back(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        guest.sendto(b"question", (FAR[family], server.getsockname()[1]))
        data, sender = server.recvfrom(99)
        assert data == b"question"
        assert sender[:2] == (HOST[family], guest.getsockname()[1]), "the source port is kept"
        server.sendto(b"answer", sender)
        data, sender = guest.recvfrom(99)
        assert (data, sender[:2]) == (b"answer", server.getsockname()[:2])


def test_an_answer_from_another_port_reaches_the_guest(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family]))
        other = stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family]))
        guest = stack.enter_context(guest_socket(net, family))
        guest.sendto(b"?", server.getsockname()[:2])
        other.sendto(b"!", server.recvfrom(9)[1])
        data, sender = guest.recvfrom(9)
        assert (data, sender[:2]) == (b"!", other.getsockname()[:2])


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.5", HOST4])
def test_the_gateway_is_the_host_and_answers_find_their_way(net: gpasst.Pasta, address: str) -> None:
    with bound(host_socket(socket.AF_INET), address) as client, guest_socket(net, 4, 5001) as guest:
        client.sendto(b"in", (address, 5001))
        data, sender = guest.recvfrom(9)
        assert (data, sender) == (b"in", (net.gateway4, client.getsockname()[1]))
        guest.sendto(b"out", sender)
        data, sender = client.recvfrom(9)
        assert (data, sender) == (b"out", (address, 5001)), "from the address that was addressed"


def test_the_gateway_leads_to_the_hosts_loopback(net: gpasst.Pasta, family: int) -> None:
    with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as server, guest_socket(net, family) as guest:
        target = socket.getaddrinfo(gateway(net, family), server.getsockname()[1], type=socket.SOCK_DGRAM)[0][4]
        guest.sendto(b"question", target)
        data, sender = server.recvfrom(99)
        assert (data, sender[1]) == (b"question", guest.getsockname()[1])
        server.sendto(b"answer", sender)
        data, sender = guest.recvfrom(99)
        assert (data, sender[:2]) == (b"answer", (gateway(net, family), server.getsockname()[1]))


def test_forwards_are_listed(net: gpasst.Pasta) -> None:
    listed = {(f.address, f.port, f.interface, f.target) for f in net.forwards}
    assert {("0.0.0.0", 5000, None, 5000), ("::", 8053, None, 53), (HOST4, 7001, None, 7000)} <= listed
    assert ("::", 7100, UPSTREAM, 7100) in listed
    assert len(net.forwards) == 2 * (5 + 2 + 1) + 1


@pytest.mark.parametrize(("port", "target"), [(5000, 5000), (8053, 53), (6053, 53), (7100, 7100)])
def test_forwards_from_a_remote_machine(net: gpasst.Pasta, remote: Remote, family: int, port: int, target: int) -> None:
    with (
        bound(remote.socket(FAMILY[family]), REMOTE[family]) as client,
        guest_socket(net, family, target) as guest,
    ):
        client.sendto(b"in", (HOST[family], port))
        data, sender = guest.recvfrom(9)
        assert (data, sender[:2]) == (b"in", client.getsockname()[:2])
        guest.sendto(b"out", sender)
        data, sender = client.recvfrom(9)
        assert (data, sender[:2]) == (b"out", (HOST[family], port))


@pytest.mark.parametrize("address", [HOST4, HOST4_SECOND])
def test_answers_leave_from_the_address_that_was_addressed(net: gpasst.Pasta, remote: Remote, address: str) -> None:
    with bound(remote.socket(socket.AF_INET), REMOTE4) as client, guest_socket(net, 4, 5002) as guest:
        client.sendto(b"in", (address, 5002))
        guest.sendto(b"out", guest.recvfrom(9)[1])
        assert client.recvfrom(9) == (b"out", (address, 5002))


def test_one_client_port_to_two_addresses_gets_both_answers(net: gpasst.Pasta, remote: Remote) -> None:
    with bound(remote.socket(socket.AF_INET), REMOTE4) as client, guest_socket(net, 4, 5002) as guest:
        for address in (HOST4, HOST4_SECOND):
            client.sendto(address.encode(), (address, 5002))
        for _ in range(2):
            data, sender = guest.recvfrom(99)
            guest.sendto(data, sender)
        answers = dict(client.recvfrom(99) for _ in range(2))
        assert answers == {HOST4.encode(): (HOST4, 5002), HOST4_SECOND.encode(): (HOST4_SECOND, 5002)}


def test_two_host_ports_to_one_guest_port(net: gpasst.Pasta, remote: Remote) -> None:
    with bound(remote.socket(socket.AF_INET), REMOTE4) as client, guest_socket(net, 4, 53) as guest:
        for port in (8053, 6053):
            client.sendto(str(port).encode(), (HOST4, port))
        for _ in range(2):
            data, sender = guest.recvfrom(99)
            guest.sendto(data, sender)
        assert dict(client.recvfrom(99) for _ in range(2)) == {b"8053": (HOST4, 8053), b"6053": (HOST4, 6053)}


def test_a_forward_bound_to_one_address_is_not_reached_by_another(net: gpasst.Pasta, remote: Remote) -> None:
    with bound(remote.socket(socket.AF_INET), REMOTE4) as client, guest_socket(net, 4, 7000) as guest:
        client.sendto(b"wrong", (HOST4_SECOND, 7001))
        client.sendto(b"right", (HOST4, 7001))
        assert guest.recvfrom(9)[0] == b"right"


def test_what_the_guest_sends_from_a_forwarded_port_leaves_from_the_forwarding_one(
    net: gpasst.Pasta, remote: Remote, family: int
) -> None:
    with (
        bound(remote.socket(FAMILY[family]), FAR[family]) as server,
        guest_socket(net, family, 5003) as guest,
    ):
        guest.sendto(b"?", (FAR[family], server.getsockname()[1]))
        data, sender = server.recvfrom(9)
        assert sender[:2] == (HOST[family], 5003)
        server.sendto(b"!", sender)
        data, sender = guest.recvfrom(9)
        assert (data, sender[0]) == (b"!", FAR[family])


def test_two_senders_with_one_port_are_told_apart(net: gpasst.Pasta) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(bound(host_socket(socket.AF_INET), "127.0.0.1"))
        port = one.getsockname()[1]
        two = stack.enter_context(bound(host_socket(socket.AF_INET), HOST4, port))
        guest = stack.enter_context(guest_socket(net, 4, 5000))
        one.sendto(b"one", ("127.0.0.1", 5000))
        two.sendto(b"two", (HOST4, 5000))
        seen = [guest.recvfrom(9) for _ in range(2)]
        assert {sender[0] for _, sender in seen} == {net.gateway4}
        assert len({sender for _, sender in seen}) == 2
        for data, sender in seen:
            guest.sendto(b"to " + data, sender)
        assert one.recvfrom(9)[0] == b"to one"
        assert two.recvfrom(9)[0] == b"to two"


def test_symmetric_ports_do_not_reflect(net: gpasst.Pasta, family: int) -> None:
    with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as server:
        port = server.getsockname()[1]
        with guest_socket(net, family, port) as guest:
            target = socket.getaddrinfo(gateway(net, family), port, type=socket.SOCK_DGRAM)[0][4]
            guest.sendto(b"ping", target)
            data, sender = server.recvfrom(9)
            assert (data, sender[1] != port) == (b"ping", True)
            server.sendto(b"pong", sender)
            data, sender = guest.recvfrom(9)
            assert (data, sender[1]) == (b"pong", port)


def test_symmetric_ports_without_a_listener_are_silent(net: gpasst.Pasta) -> None:
    with guest_socket(net, 4) as guest, bound(host_socket(socket.AF_INET), "127.0.0.1") as marker:
        guest.sendto(b"echo?", (net.gateway4, guest.getsockname()[1]))
        # Whatever would have come back is ahead of this.
        guest.sendto(b"mark", (net.gateway4, marker.getsockname()[1]))
        marker.sendto(b"mark", marker.recvfrom(9)[1])
        assert guest.recvfrom(9) == (b"mark", (net.gateway4, marker.getsockname()[1]))


@pytest.mark.parametrize("size", SIZES)
def test_sizes(net: gpasst.Pasta, remote: Remote, family: int, size: int) -> None:
    payload = bytes(i * 7 & 0xFF for i in range(size))
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        guest.sendto(payload, (FAR[family], server.getsockname()[1]))
        data, sender = server.recvfrom(65535)
        assert data == payload
        server.sendto(data, sender)
        assert guest.recvfrom(65535)[0] == payload


def test_the_largest_ipv6_datagram(net: gpasst.Pasta, remote: Remote) -> None:
    payload = bytes(range(256)) * 255 + bytes(65527 - 65280)
    with bound(remote.socket(socket.AF_INET6), "::") as server, guest_socket(net, 6) as guest:
        guest.sendto(payload, (FAR6, server.getsockname()[1]))
        data, sender = server.recvfrom(65535)
        assert data == payload
        server.sendto(data, sender)
        assert guest.recvfrom(65535)[0] == payload


def test_a_zero_ipv6_checksum_arrives(net: gpasst.Pasta, remote: Remote) -> None:
    """One of all two-byte payloads has a checksum of zero, which is sent as 65535 (RFC 8200, section 8.1)."""
    with bound(remote.socket(socket.AF_INET6), REMOTE6) as client, guest_socket(net, 6, 5000) as guest:
        for start in range(0, 65536, 64):
            for value in range(start, start + 64):
                client.sendto(value.to_bytes(2, "big"), (HOST6, 5000))
            assert [guest.recv(9) for _ in range(64)] == [v.to_bytes(2, "big") for v in range(start, start + 64)]


def test_mixed_sizes_arrive_in_order_and_whole(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    payloads = [bytes([i & 0xFF]) * (i * 37 % 1400 if i % 5 else 600) for i in range(400)]
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        for payload in payloads:
            guest.sendto(payload, (FAR[family], server.getsockname()[1]))
        received = [server.recvfrom(65535) for _ in payloads]
        assert [data for data, _ in received] == payloads
        for payload in payloads:
            server.sendto(payload, received[0][1])
        assert [guest.recv(65535) for _ in payloads] == payloads


@pytest.mark.parametrize("gro", [False, True], ids=["split", "joined"])
def test_superframes_of_applications(net: gpasst.Pasta, remote: Remote, family: int, gro: bool) -> None:
    payload = bytes(i * 11 & 0xFF for i in range(30 * 1000 + 500))
    expected = [payload[i : i + 1000] for i in range(0, len(payload), 1000)]

    def receive(sock: socket.socket) -> tuple[list[bytes], Any]:
        got: list[bytes] = []
        sender = None
        while len(got) < 31:
            data, control, _, sender = sock.recvmsg(65535, 64)
            segment = struct.unpack("@i", control[0][2])[0] if control else len(data)
            got += [data[i : i + segment] for i in range(0, len(data), segment)]
        return got, sender

    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        for sock in (server, guest):
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, gro)
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1000))]
        guest.sendmsg([payload], control, 0, (FAR[family], server.getsockname()[1]))
        got, sender = receive(server)
        assert got == expected
        server.sendmsg([payload], control, 0, sender)
        assert receive(guest)[0] == expected


def test_two_hundred_ports_at_once(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family]))
        guests = [stack.enter_context(guest_socket(net, family)) for _ in range(200)]
        for i, guest in enumerate(guests):
            guest.sendto(str(i).encode(), (FAR[family], server.getsockname()[1]))
        ports = {}
        for _ in guests:
            data, sender = server.recvfrom(99)
            ports[int(data)] = sender[1]
            server.sendto(b"re " + data, sender)
        assert [guest.recv(99) for guest in guests] == [f"re {i}".encode() for i in range(200)]
        assert ports == {i: guest.getsockname()[1] for i, guest in enumerate(guests)}


def test_a_hundred_senders_to_one_port_in_turns(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(bound(remote.socket(FAMILY[family]), REMOTE[family])) for _ in range(100)]
        ports = [client.getsockname()[1] for client in clients]
        guest = stack.enter_context(guest_socket(net, family, 5004))
        got: dict[int, list[bytes]] = {port: [] for port in ports}
        for turn in range(6):
            # The last come from ten of them alone, which have several in a batch.
            senders = clients if turn < 4 else clients[:10] * 10
            for number, client in enumerate(senders):
                client.sendto(b"%d.%d" % (turn, number), (HOST[family], 5004))
            for _ in senders:
                data, sender = guest.recvfrom(99)
                got[sender[1]].append(data)
        for number, port in enumerate(ports):
            later = [b"%d.%d" % (turn, i) for turn in (4, 5) for i in range(number, 100, 10)] if number < 10 else []
            assert got[port] == [b"%d.%d" % (turn, number) for turn in range(4)] + later
        for port in ports:
            guest.sendto(b"to %d" % port, (REMOTE[family], port))
        assert [client.recv(99) for client in clients] == [b"to %d" % port for port in ports]


def test_a_hundred_ports_that_are_answered_at_once(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family]))
        guests = [stack.enter_context(guest_socket(net, family)) for _ in range(100)]
        ports = []
        for guest in guests:
            guest.sendto(b"?", (FAR[family], server.getsockname()[1]))
            ports.append(server.recvfrom(9)[1])
        for turn in range(3):
            for number, port in enumerate(ports):
                for copy in range(1 + number % 3):
                    server.sendto(b"%d.%d.%d" % (turn, number, copy), port)
            for number, guest in enumerate(guests):
                expected = [b"%d.%d.%d" % (turn, number, copy) for copy in range(1 + number % 3)]
                assert [guest.recv(99) for _ in expected] == expected


def test_a_source_port_that_the_host_uses_is_changed(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with ExitStack() as stack:
        taken = stack.enter_context(bound(host_socket(FAMILY[family]), ANY[family]))
        server = stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family]))
        guest = stack.enter_context(guest_socket(net, family, taken.getsockname()[1]))
        guest.sendto(b"?", (FAR[family], server.getsockname()[1]))
        _, sender = server.recvfrom(9)
        assert sender[1] != taken.getsockname()[1]
        server.sendto(b"!", sender)
        assert guest.recv(9) == b"!"


def test_a_mapping_expires_and_the_port_works_again(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as server, guest_socket(net, family) as guest:
        for turn in (b"first", b"second"):
            guest.sendto(turn, (FAR[family], server.getsockname()[1]))
            data, sender = server.recvfrom(99)
            assert (data, sender[1]) == (turn, guest.getsockname()[1])
            server.sendto(turn, sender)
            assert guest.recv(99) == turn
            before = net.statistics()
            assert before.mappings > 0
            expire(net)
            after = net.statistics()
            assert (after.mappings, after.peers) == (0, 0)
            assert after.expired == before.expired + before.mappings
            assert not net.flows()


def test_flows_show_both_views(net: gpasst.Pasta, remote: Remote) -> None:
    del remote
    with bound(host_socket(socket.AF_INET), "127.0.0.1") as server, guest_socket(net, 4) as guest:
        guest.sendto(b"?", (net.gateway4, server.getsockname()[1]))
        server.recv(9)
        port = guest.getsockname()[1]
        (flow,) = [flow for flow in net.flows() if flow.guest == (HOST4, port)]
        assert flow.shown == (net.gateway4, server.getsockname()[1])
        assert flow.remote == ("127.0.0.1", server.getsockname()[1])
        assert flow.port == port


def test_link_local_addresses_keep_their_interface(net: gpasst.Pasta, remote: Remote) -> None:
    with bound(remote.socket(socket.AF_INET6), "::") as server, guest_socket(net, 6) as guest:
        # A global destination first must not tie the port to global sources.
        guest.sendto(b"global", (FAR6, server.getsockname()[1]))
        assert server.recv(9) == b"global"
        guest.sendto(b"local", (REMOTE_LINK_LOCAL, server.getsockname()[1], 0, tap_index(net)))
        data, sender = server.recvfrom(9)
        assert data == b"local"
        assert sender[0].startswith(HOST_LINK_LOCAL)
        server.sendto(b"back", sender)
        data, sender = guest.recvfrom(9)
        assert (data, sender[0].partition("%")[0]) == (b"back", REMOTE_LINK_LOCAL)
