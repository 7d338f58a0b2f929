"""Hosts of a network reach the outside through one gateway, and are reached by forwards, with real programs."""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

import gpasst
from gpasst.flow.record import Forward
from gpasst.router.behaviour import Preset
from gpasst.testing import assert_flat
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.hosts import DEADLINE
from tests.support.lab import FAR, HOST, REMOTE, Remote, bound
from tests.support.need import need, need_module

pytestmark = pytest.mark.usefixtures("tun", "remote")

PORT = 5555
PIECE = 1 << 16
CLOSED = 9  # of the remote machine


@pytest.fixture(scope="module")
def lan(tun: None, remote: Remote) -> Iterator[gpasst.Network]:
    with gpasst.Network("lan", uplink=True) as network:
        network.hosts("a", "b")
        yield network


def gateway(lan: gpasst.Network, family: int) -> str:
    return lan.gateway4 if family == 4 else lan.gateway6


def inside(host: gpasst.Host, family: int, kind: int = socket.SOCK_DGRAM, port: int = 0) -> socket.socket:
    """A socket in a host, bound to a port."""
    sock = host.socket(FAMILY[family], kind)
    sock.settimeout(DEADLINE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((ANY[family], port))
    return sock


def received(sock: socket.socket, size: int) -> bytes:
    """So many bytes of a stream."""
    got = b""
    while len(got) < size:
        more = sock.recv(size - len(got))
        assert more
        got += more
    return got


def test_two_hosts_ask_from_one_port_and_each_gets_its_answer(lan: gpasst.Network, remote: Remote, family: int) -> None:
    with bound(remote.socket(FAMILY[family]), REMOTE[family]) as server:
        clients = [inside(lan[name], family, port=PORT) for name in ("a", "b")]
        seen = []
        for number, client in enumerate(clients):
            client.sendto(b"%d" % number, server.getsockname()[:2])
            data, sender = server.recvfrom(100)
            assert data == b"%d" % number
            seen.append(sender)
        assert len({sender[:2] for sender in seen}) == 2
        for number, sender in enumerate(seen):
            server.sendto(b"to %d" % number, sender)
        for number, client in enumerate(clients):
            assert client.recvfrom(100)[0] == b"to %d" % number
            client.close()


def test_two_hosts_connect_from_one_port(lan: gpasst.Network, remote: Remote, family: int) -> None:
    sent = bytes(range(256)) * 2048
    with bound(remote.socket(FAMILY[family], socket.SOCK_STREAM), REMOTE[family]) as listener:
        listener.listen()
        for name in ("a", "b"):
            with inside(lan[name], family, socket.SOCK_STREAM, PORT) as client:
                client.connect(listener.getsockname()[:2])
                accepted, _ = listener.accept()
                with accepted:
                    accepted.settimeout(DEADLINE)
                    for sender, receiver in ((client, accepted), (accepted, client)):
                        for at in range(0, len(sent), PIECE):
                            sender.sendall(sent[at : at + PIECE])
                            assert received(receiver, PIECE) == sent[at : at + PIECE]


def test_the_gateway_is_this_machines_loopback(lan: gpasst.Network, family: int) -> None:
    with socket.socket(FAMILY[family], socket.SOCK_DGRAM) as server, inside(lan["a"], family) as client:
        server.bind((LOOPBACK[family], 0))
        server.settimeout(DEADLINE)
        client.sendto(b"hello", (gateway(lan, family), server.getsockname()[1]))
        data, sender = server.recvfrom(100)
        server.sendto(data, sender)
        assert client.recvfrom(100)[1][0] == gateway(lan, family)


def test_what_the_outside_cannot_reach_is_reported_to_the_host_that_asked(lan: gpasst.Network, family: int) -> None:
    with inside(lan["a"], family) as one, inside(lan["b"], family) as other:
        for sock in (one, other):
            sock.connect((REMOTE[family], CLOSED))
        one.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            one.recv(100)
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(100)


def test_a_host_pings_the_outside(lan: gpasst.Network, family: int) -> None:
    need("ping")
    lan["b"].run(["ping", "-c1", "-W5", FAR[family]], check=True, capture_output=True, timeout=DEADLINE)


def test_hosts_reach_each_other_without_the_gateway(lan: gpasst.Network, family: int) -> None:
    before = lan.uplink.statistics().datagrams_down
    b = lan["b"]
    with inside(lan["a"], family) as client, inside(b, family) as server:
        client.sendto(b"hello", (b.ip4 if family == 4 else b.ip6, server.getsockname()[1]))
        assert server.recvfrom(100)[1][0] == (lan["a"].ip4 if family == 4 else lan["a"].ip6)
    assert lan.uplink.statistics().datagrams_down == before


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_forwards_of_two_hosts_lead_to_the_same_port_of_each(
    lan: gpasst.Network, remote: Remote, family: int, kind: int
) -> None:
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    for name in ("a", "b"):
        host = lan[name]
        with host.forward(protocol, "0:80") as forward, inside(host, family, kind, 80) as server:
            for target in (HOST[family], LOOPBACK[family]):
                client = (
                    bound(remote.socket(FAMILY[family], kind), REMOTE[family])
                    if target == HOST[family]
                    else socket.socket(FAMILY[family], kind)
                )
                with client as asking:
                    asking.settimeout(DEADLINE)
                    if kind == socket.SOCK_STREAM:
                        server.listen()
                        asking.connect((target, forward.port))
                        accepted, sender = server.accept()
                    else:
                        asking.connect((target, forward.port))
                        asking.send(b"hello")
                        _, sender = server.recvfrom(100)
                    expected = REMOTE[family] if target == HOST[family] else gateway(lan, family)
                    assert sender[0] == expected
                    if kind == socket.SOCK_STREAM:
                        with accepted:
                            accepted.sendall(name.encode())
                            assert asking.recv(100) == name.encode()
                    else:
                        server.sendto(name.encode(), sender)
                        assert asking.recv(100) == name.encode()
    assert lan.uplink.forwards == ()


def test_forwards_end_with_their_host(lan: gpasst.Network) -> None:
    with lan.host("c") as host:
        forward = host.forward("udp", "0:53")
        assert set(lan.uplink.forwards) == set(forward.forwards)
    assert lan.uplink.forwards == ()
    forward.close()
    with pytest.raises(gpasst.ConfigurationError, match="not open"):
        host.forward("udp", "0:53")


def test_what_leaves_a_forwarded_port_leaves_by_it(lan: gpasst.Network, remote: Remote, family: int) -> None:
    with (
        lan["a"].forward("udp", "0:7000") as forward,
        inside(lan["a"], family, port=7000) as server,
        bound(remote.socket(FAMILY[family]), REMOTE[family]) as peer,
    ):
        server.sendto(b"hello", peer.getsockname()[:2])
        assert peer.recvfrom(100)[1][1] == forward.port


def test_a_forward_has_a_number_in_both_families(lan: gpasst.Network) -> None:
    with lan["b"].forward("tcp", "0:80") as forward:
        assert [listener.target_address for listener in forward.forwards] == [lan["b"].ip4, lan["b"].ip6]
        assert {listener.port for listener in forward.forwards} == {forward.port}
        assert isinstance(lan.uplink.forwards[0], Forward)
    forward.close()


@pytest.mark.parametrize("specification", ["auto", "none", "0:10.77.0.9/80", "70000", "0"])
def test_forwards_that_make_no_sense(lan: gpasst.Network, specification: str) -> None:
    with pytest.raises(gpasst.ConfigurationError, match="forward"):
        lan["a"].forward("tcp", specification)


def test_a_host_that_ends_takes_its_flows_with_it(lan: gpasst.Network, remote: Remote, family: int) -> None:
    with (
        bound(remote.socket(FAMILY[family]), REMOTE[family]) as peer,
        bound(remote.socket(FAMILY[family], socket.SOCK_STREAM), REMOTE[family]) as listener,
    ):
        listener.listen()
        with lan.host("c") as host:
            own = host.ip4 if family == 4 else host.ip6
            datagrams, stream = inside(host, family), inside(host, family, socket.SOCK_STREAM)
            datagrams.sendto(b"hello", peer.getsockname()[:2])
            peer.recv(100)
            stream.connect(listener.getsockname()[:2])
            accepted, _ = listener.accept()
            accepted.settimeout(DEADLINE)
            assert [flow.protocol for flow in lan.uplink.flows() if flow.guest[0] == own] == ["udp", "tcp"]
        with accepted, pytest.raises(ConnectionResetError):
            accepted.recv(100)
        assert [flow for flow in lan.uplink.flows() if flow.guest[0] == own] == []
        datagrams.close()
        stream.close()


def test_a_host_in_two_networks_prefers_the_first_and_one_that_moves_takes_the_new_way(
    lan: gpasst.Network, family: int
) -> None:
    def gateways(host: gpasst.Host) -> list[str]:
        show = host.run(
            ["ip", f"-{family}", "route", "show", "default"], capture_output=True, text=True, check=True
        ).stdout
        return re.findall(r"via (\S+) ", show)

    need("ip")
    with gpasst.Network("other", uplink=True) as other, lan.host("c") as host:
        joined = other.join(host)
        assert gateways(host) == [gateway(lan, family), gateway(other, family)]
        joined.close()
        assert gateways(host) == [gateway(lan, family)]
        host.move(other)
        assert gateways(host) == [gateway(other, family)]
        with socket.socket(FAMILY[family], socket.SOCK_DGRAM) as server, inside(host, family) as client:
            server.bind((LOOPBACK[family], 0))
            server.settimeout(DEADLINE)
            client.sendto(b"hello", (gateway(other, family), server.getsockname()[1]))
            assert server.recv(100) == b"hello"
        with host.forward("udp", "0:53") as forward:
            assert host.ip4 in [listener.target_address for listener in forward.forwards]
        assert other.uplink.forwards == lan.uplink.forwards == ()


def lease(host: gpasst.Host, interface: str, folder: Path) -> dict[str, str]:
    """What udhcpc is told on an interface of a host."""
    script, record = folder / "script", folder / "record"
    script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && env >{record}\nexit 0\n', encoding="utf-8")
    script.chmod(0o755)
    command = [need("udhcpc"), "-f", "-q", "-n", "-t", "3", "-T", "1", "-s", str(script), "-i", interface]
    host.run(command, check=True, capture_output=True, timeout=DEADLINE)
    return dict(line.split("=", 1) for line in record.read_text(encoding="utf-8").splitlines() if "=" in line)


def test_each_mac_address_leases_an_address_of_its_own(lan: gpasst.Network, tmp_path: Path) -> None:
    with lan.host("c", configured=False) as host:
        name = host.interface
        # Not the address that the network has given it: a machine behind its port, as it were.
        host.run(["ip", "link", "set", name, "addrgenmode", "none", "address", "02:00:00:00:00:07"], check=True)
        host.run(["ip", "address", "add", "fe80::7/64", "dev", name, "nodad"], check=True)
        stranger = lease(host, name, tmp_path)
        assert stranger["ip"] not in {one.ip4 for one in (lan["a"], lan["b"], host)}
        assert ipaddress.ip_address(stranger["ip"]) in ipaddress.ip_network(lan.subnet4)
        assert stranger["router"] == stranger["serverid"] == lan.gateway4
        assert lease(host, name, tmp_path)["ip"] == stranger["ip"]
        advertised = host.run([need("rdisc6"), "-1", "-r", "5", "-w", "2000", name], capture_output=True, text=True)
        assert lan.subnet6 in advertised.stdout
    assert lease(lan["a"], "lan", tmp_path)["ip"] == lan["a"].ip4


def test_what_passes_the_gateway_is_captured(lan: gpasst.Network, remote: Remote, family: int, tmp_path: Path) -> None:
    with (
        bound(remote.socket(FAMILY[family]), REMOTE[family]) as server,
        inside(lan["a"], family) as client,
        lan.capture(tmp_path / "lan.pcapng"),
    ):
        client.connect(server.getsockname()[:2])
        client.send(b"hello")
        data, sender = server.recvfrom(100)
        server.sendto(data, sender)
        assert client.recv(100) == data
    command = [need("tshark"), "-r", str(tmp_path / "lan.pcapng"), "-Y", "udp", "-T", "fields", "-e"]
    listed = subprocess.run([*command, "frame.interface_name"], capture_output=True, text=True, check=True).stdout
    assert sorted(listed.split()) == ["a", "a", lan.uplink.name, lan.uplink.name]


def test_no_host_has_the_gateways_name(lan: gpasst.Network) -> None:
    with pytest.raises(gpasst.ConfigurationError, match="the uplink's"):
        lan.host(lan.uplink.name)


@pytest.mark.parametrize("nat", [gpasst.Router.HOME, None], ids=["nat", "routed"])
def test_hosts_behind_a_router_reach_the_outside(
    lan: gpasst.Network, remote: Remote, family: int, nat: Preset | None
) -> None:
    with gpasst.Network("home") as home, gpasst.Router("router", inside=home, outside=lan, nat=nat):
        host = home.host("laptop")
        assert home.resolver_file == lan.resolver_file
        with bound(remote.socket(FAMILY[family]), REMOTE[family]) as server, inside(host, family) as client:
            client.sendto(b"hello", server.getsockname()[:2])
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)
            assert client.recvfrom(100)[1][:2] == server.getsockname()[:2]
    assert home.outside is None


def test_a_host_may_ask_for_its_addresses_itself(lan: gpasst.Network, tmp_path: Path) -> None:
    def shown(*what: str) -> str:
        return str(host.run(["ip", *what], capture_output=True, text=True, check=True).stdout)

    with lan.host("c", configured=False) as host:
        assert "inet " not in shown("address", "show", "dev", host.interface)
        assert lease(host, host.interface, tmp_path)["ip"] == host.ip4
        # Its kernel asks as well, and may have done so already.
        host.run([need("rdisc6"), "-1", "-r", "5", "-w", "2000", host.interface], check=True, capture_output=True)
        assert "via fe80::1 " in shown("-6", "route", "show", "default")
        assert f"inet6 {lan.subnet6.partition('::')[0]}:" in shown("address", "show", "dev", host.interface)


def test_functions_answer_hosts_for_addresses_that_exist_nowhere(lan: gpasst.Network, family: int) -> None:
    address = {4: "192.0.2.80", 6: "2001:db8::80"}[family]

    def greet(stream: socket.socket, host: tuple[str, int]) -> None:
        stream.sendall(host[0].encode())

    with (
        lan.uplink.serve_udp(address, 9, lambda data, host: host[0].encode()),
        lan.uplink.serve_tcp(address, 9, greet),
    ):
        for name in ("a", "b"):
            own = (lan[name].ip4 if family == 4 else lan[name].ip6).encode()
            with inside(lan[name], family) as client, inside(lan[name], family, socket.SOCK_STREAM) as stream:
                client.sendto(b"?", (address, 9))
                assert client.recv(100) == own
                stream.connect((address, 9))
                assert received(stream, len(own)) == own


def test_a_resolver_of_the_uplink_is_that_of_all_hosts_while_it_is_open(lan: gpasst.Network) -> None:
    need_module("dns")
    look = 'import socket; print(socket.getaddrinfo("web.example", 80, type=1)[0][4][0])'
    before = lan.resolver_file
    program = lan["a"].popen(["sh", "-c", "read line; cat /etc/resolv.conf"], stdin=PIPE, stdout=PIPE, text=True)
    with lan.uplink.dns({"web.example": "192.0.2.80"}) as resolver:
        found = lan["b"].run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
        assert found == "192.0.2.80\n"
        assert program.communicate("\n", DEADLINE)[0] == resolver.file
        assert {query.peer[0] for query in resolver.queries} <= {lan["b"].ip4, lan["b"].ip6}
    assert lan.resolver_file == before


def test_parts_of_a_network_may_each_have_an_uplink(tmp_path: Path, family: int) -> None:
    subnet4, subnet6 = "10.50.0.0/16", "fd50::/64"
    with (
        gpasst.Network("one", subnet4=subnet4, subnet6=subnet6, part=0, uplink=True) as one,
        gpasst.Network("two", subnet4=subnet4, subnet6=subnet6, part=1, uplink=True) as two,
        socket.socket(FAMILY[family], socket.SOCK_DGRAM) as server,
    ):
        one.trunk(listen=tmp_path / "trunk")
        two.trunk(connect=tmp_path / "trunk")
        server.bind((LOOPBACK[family], 0))
        server.settimeout(DEADLINE)
        a, b = one.host("a"), two.host("b")
        for part, host in ((one, a), (two, b)):
            with inside(host, family) as client:
                client.sendto(b"hello", (gateway(part, family), server.getsockname()[1]))
                server.sendto(b"hello", server.recvfrom(100)[1])
                client.recv(100)
            assert part.uplink.statistics().datagrams_up == 1
        with inside(a, family) as client, inside(b, family) as there:
            client.sendto(b"hello", (b.ip4 if family == 4 else b.ip6, there.getsockname()[1]))
            assert there.recv(100) == b"hello"
        for part in (one, two):
            part.assert_no_drops()


def test_all_is_returned_at_close() -> None:
    def whole() -> None:
        with gpasst.Network("lan", uplink=True) as network:
            network.host("a").forward("tcp", "0:80")

    assert_flat(whole, repeats=20)


def test_a_network_of_one_family_has_an_uplink_of_that_family(family: int) -> None:
    lacking = {4: "subnet6", 6: "subnet4"}[family]
    subnets = {"subnet4": None, "subnet6": None, lacking: ""}
    with gpasst.Network("one", subnet4=subnets["subnet4"], subnet6=subnets["subnet6"], uplink=True) as network:
        host = network.host("a")
        with socket.socket(FAMILY[family], socket.SOCK_DGRAM) as server, inside(host, family) as client:
            server.bind((LOOPBACK[family], 0))
            server.settimeout(DEADLINE)
            client.sendto(b"hello", (gateway(network, family), server.getsockname()[1]))
            assert server.recv(100) == b"hello"
        with host.forward("tcp", "0:80") as forward:
            assert [listener.address for listener in forward.forwards] == [ANY[family]]
        other = LOOPBACK[10 - family]
        with pytest.raises(gpasst.ConfigurationError, match=f"a has no IPv{10 - family}"):
            host.forward("tcp", f"[{other}]/0:80")


def test_a_network_without_uplink_forwards_nothing() -> None:
    with gpasst.Network("lan") as lan:
        host = lan.host("a")
        with pytest.raises(gpasst.ConfigurationError, match="no uplink"):
            host.forward("tcp", "0:80")
        assert host.run(["ip", "route", "show", "default"], capture_output=True, check=True).stdout == b""


def test_programs_ask_the_gateway_for_names_where_this_machine_has_a_resolver(lan: gpasst.Network) -> None:
    expected = lan.uplink.resolver_file or Path("/etc/resolv.conf").read_text(encoding="utf-8")
    found = lan["a"].run(["cat", "/etc/resolv.conf"], capture_output=True, text=True, check=True)
    assert found.stdout == expected
