"""Routers between networks: real stacks on both sides, and an independent client that names their behaviours."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import gpasst
from gpasst.router.behaviour import DEPENDENCES
from gpasst.testing import assert_flat
from tests.support.hosts import DEADLINE, FAMILIES, address, carried, connected
from tests.support.need import need
from tests.support.ready import until

DISCOVERY_SECONDS = 60.0  # an answer that is filtered costs the client three
SECOND = "198.51.100.200"  # of the STUN server, which needs two addresses to see what depends on them (RFC 5780)
BYTES = 4 << 20


@pytest.fixture(name="wan", scope="module")
def _wan() -> Iterator[gpasst.Network]:
    with gpasst.Network("wan", subnet4="198.51.100.0/24") as network:
        network.host("server")
        yield network


@pytest.fixture(name="lan")
def _lan(wan: gpasst.Network) -> Iterator[gpasst.Network]:
    with gpasst.Network("lan") as network:
        network.host("a")
        yield network


def exchange(inside: gpasst.Host, outside: gpasst.Host, family: int = 4) -> tuple[str, int]:
    """Send a datagram out and its answer back; return whom the outside saw."""
    with inside.socket(FAMILIES[family]) as client, outside.socket(FAMILIES[family]) as server:
        for sock in (client, server):
            sock.settimeout(DEADLINE)
        server.bind((address(outside, family), 0))
        client.sendto(b"question", server.getsockname()[:2])
        data, sender = server.recvfrom(100)
        server.sendto(data + b" answered", sender)
        assert client.recv(100) == b"question answered"
        return sender[0], sender[1]


@pytest.mark.parametrize("nat", [None, "endpoint-independent"])
def test_both_families_cross(lan: gpasst.Network, wan: gpasst.Network, family: int, nat: str | None) -> None:
    with gpasst.Router("home", inside=lan, outside=wan, nat=nat) as home:
        seen, _ = exchange(lan["a"], wan["server"], family)
        translated = nat is not None and family == 4
        assert seen == (home.outside_ip4 if translated else address(lan["a"], family))


def test_what_is_not_translated_is_reached_from_outside(lan: gpasst.Network, wan: gpasst.Network, family: int) -> None:
    with gpasst.Router("home", inside=lan, outside=wan, nat=None):
        assert exchange(wan["server"], lan["a"], family)[0] == address(wan["server"], family)


def test_hosts_that_open_later_find_the_router_and_names(lan: gpasst.Network, wan: gpasst.Network) -> None:
    need("ping")
    with gpasst.Router("home", inside=lan, outside=wan), lan.host("late") as late:
        for name in ("server", "home", "a"):
            late.run(["ping", "-c1", "-W5", name], check=True, capture_output=True, timeout=DEADLINE)


def test_the_route_ends_with_the_router(lan: gpasst.Network, wan: gpasst.Network, family: int) -> None:
    for _ in range(2):
        with gpasst.Router("home", inside=lan, outside=wan):
            exchange(lan["a"], wan["server"], family)
        with lan["a"].socket(FAMILIES[family]) as sock, pytest.raises(OSError, match="unreachable"):
            sock.sendto(b"", (address(wan["server"], family), 9))


def test_a_stream_crosses_in_superframes(lan: gpasst.Network, wan: gpasst.Network, family: int) -> None:
    sent = bytes(range(256)) * (BYTES // 256)
    a, server = lan["a"], wan["server"]
    with gpasst.Router("home", inside=lan, outside=wan, port_preservation=False):
        with connected(a, server, family) as (client, accepted):
            for source, sink in ((client, accepted), (accepted, client)):
                assert carried(sent, source, sink) == sent


@pytest.mark.parametrize("nat", [None, "HOME"])
def test_large_datagrams_cross_in_fragments(
    lan: gpasst.Network, wan: gpasst.Network, family: int, nat: str | None
) -> None:
    a, server = lan["a"], wan["server"]
    with gpasst.Router("home", inside=lan, outside=wan, nat=nat), server.socket(FAMILIES[family]) as receiver:
        receiver.settimeout(DEADLINE)
        receiver.bind((address(server, family), 0))
        with a.socket(FAMILIES[family]) as sender:
            sender.settimeout(DEADLINE)
            sender.sendto(bytes(20_000), receiver.getsockname()[:2])
            data, back = receiver.recvfrom(1 << 16)
            receiver.sendto(data, back)
            assert sender.recv(1 << 16) == bytes(20_000)


def test_a_path_is_traced_and_its_mtu_is_found(wan: gpasst.Network, family: int) -> None:
    """ICMP errors of the router's own, and those that it passes on, reach the kernels of hosts."""
    with gpasst.Network("narrow", mtu=1400) as narrow, gpasst.Router("home", inside=narrow, outside=wan):
        a, server = narrow.host("a"), wan["server"]
        with a.socket(FAMILIES[family]) as sock:
            level, recverr, hops = {
                4: (socket.IPPROTO_IP, 11, socket.IP_TTL),
                6: (socket.IPPROTO_IPV6, 25, socket.IPV6_UNICAST_HOPS),
            }[family]
            sock.settimeout(DEADLINE)
            sock.setsockopt(level, recverr, 1)
            sock.setsockopt(level, hops, 1)
            sock.connect((address(server, family), 9))
            sock.send(b"expires at the router")
            with pytest.raises(OSError, match="No route to host"):
                sock.recv(1)
            sock.setsockopt(level, hops, 64)
            sock.send(b"to a closed port")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(1)
        with server.socket(FAMILIES[family]) as large, a.socket(FAMILIES[family]) as client:
            large.settimeout(DEADLINE)
            large.bind((address(server, family), 0))
            client.sendto(b"opens the way", large.getsockname()[:2])
            _, back = large.recvfrom(100)
            discover = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}[family]  # IP_MTU_DISCOVER
            large.setsockopt(*discover, 2)  # IP_PMTUDISC_DO: no fragments
            large.connect(back)
            large.send(bytes(1440))
            mtu = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}[family]  # IP_MTU
            until(lambda: large.getsockopt(*mtu) == 1400, "the path MTU")


def test_an_independent_client_names_the_behaviours(wan: gpasst.Network) -> None:
    """Each mapping with each filtering behaviour, as coturn's client of RFC 5780 sees it. Takes 8 seconds."""
    discovery, stun = need("turnutils_natdiscovery"), need("turnserver")
    server = wan["server"]
    need("ip")
    server.run(["ip", "address", "add", f"{SECOND}/24", "dev", server.interface], check=True)
    arguments = ["-n", "--no-tls", "--no-dtls", "--no-cli", "--log-file=stdout", "--pidfile=", "-L", server.ip4, "-L"]
    with ExitStack() as stack:
        running = server.popen([stun, *arguments, SECOND], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(running.wait, DEADLINE)
        stack.callback(running.terminate)
        server.wait_bound("udp", 3478)
        clients = {}
        for number, (nat, filtering) in enumerate((nat, other) for nat in DEPENDENCES for other in DEPENDENCES):
            inside = stack.enter_context(gpasst.Network(f"lan{number}"))
            gpasst.Router(f"nat{number}", inside=inside, outside=wan, nat=nat, filtering=filtering)
            host = inside.host("a")
            clients[nat, filtering] = host.popen(
                [discovery, "-m", "-f", server.ip4], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        for (nat, filtering), client in clients.items():
            printed, _ = client.communicate(timeout=DISCOVERY_SECONDS)
            named = re.findall(r"NAT with (.*) (Mapping|Filtering)!", printed)
            found = [(words.lower().replace(" ", "-"), kind) for words, kind in named]
            assert found == [(nat, "Mapping"), (filtering, "Filtering")], printed


def test_two_kernels_open_a_connection_at_once(wan: gpasst.Network) -> None:
    """Behind two NATs neither admits the SYN of the other side before its own has left (RFC 5382, REQ-2)."""
    with gpasst.Network("one") as one, gpasst.Network("two") as two, ExitStack() as stack:
        homes = one, two
        routers = [
            gpasst.Router(f"home{number}", inside=home, outside=wan, nat=gpasst.Router.HOME)
            for number, home in enumerate(homes)
        ]
        ends = [stack.enter_context(home.host("a").socket(type=socket.SOCK_STREAM)) for home in homes]
        for end in ends:
            end.bind(("0.0.0.0", 0))
        # Ports are preserved, so the outside endpoints are known; a STUN server would name them.
        targets = [(router.outside_ip4, end.getsockname()[1]) for router, end in zip(routers, ends, strict=True)]
        with ThreadPoolExecutor(2) as pool:
            for end in ends:
                end.settimeout(DEADLINE)
            list(pool.map(lambda end, target: end.connect(target), ends, reversed(targets)))
        for end, other in (ends, reversed(ends)):
            end.sendall(b"hello")
            assert other.recv(5) == b"hello"


def test_rebinding_changes_the_port_of_a_running_program(lan: gpasst.Network, wan: gpasst.Network) -> None:
    with gpasst.Router("home", inside=lan, outside=wan) as home, lan["a"].socket() as client:
        with wan["server"].socket() as server:
            server.settimeout(DEADLINE)
            server.bind((wan["server"].ip4, 0))
            seen = []
            for _ in range(2):
                client.sendto(b"", server.getsockname())
                seen.append(server.recvfrom(10)[1])
                (mapping,) = home.mappings()
                assert (mapping.protocol, mapping.outside, mapping.remotes) == (
                    "udp",
                    seen[-1],
                    (server.getsockname(),),
                )
                assert mapping.inside == (lan["a"].ip4, client.getsockname()[1])
                home.rebind()
                assert home.mappings() == ()
            assert seen[0][0] == seen[1][0] == home.outside_ip4
            assert seen[0][1] != seen[1][1]


def test_mappings_end_in_time(lan: gpasst.Network, wan: gpasst.Network) -> None:
    with gpasst.Router("home", inside=lan, outside=wan, timeout=0.05) as home:
        with lan["a"].socket() as client, wan["server"].socket() as server:
            server.settimeout(DEADLINE)
            server.bind((wan["server"].ip4, 0))
            client.sendto(b"", server.getsockname())
            assert server.recvfrom(10)[1][0] == home.outside_ip4
        until(lambda: home.mappings() == (), "no mapping")


def test_routers_can_be_chained(lan: gpasst.Network, wan: gpasst.Network, family: int) -> None:
    """Two NATs one behind the other; without NAT routes lead back through both."""
    with gpasst.Network("isp") as isp:
        with gpasst.Router("cgn", inside=isp, outside=wan, nat="CARRIER_GRADE") as cgn:
            with gpasst.Router("home", inside=lan, outside=isp, nat=gpasst.Router.HOME):
                seen, _ = exchange(lan["a"], wan["server"], family)
                assert seen == (cgn.outside_ip4 if family == 4 else lan["a"].ip6)
    for order in (1, -1):
        with gpasst.Network("isp") as isp, ExitStack() as stack:
            for name, inside, outside in (("inner", lan, isp), ("outer", isp, wan))[::order]:
                stack.enter_context(gpasst.Router(name, inside=inside, outside=outside, nat=None))
            assert exchange(lan["a"], wan["server"], family)[0] == address(lan["a"], family)
            assert exchange(wan["server"], lan["a"], family)[0] == address(wan["server"], family)


def test_an_uplink_lies_beyond_a_router(lan: gpasst.Network) -> None:
    """A home whose provider is this machine; of a network that has an uplink no router is the gateway."""
    with gpasst.Network("isp", uplink=True) as isp, gpasst.Router("home", inside=lan, outside=isp):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, lan["a"].socket() as client:
            for sock in (server, client):
                sock.settimeout(DEADLINE)
            server.bind(("127.0.0.1", 0))
            client.sendto(b"question", (isp.gateway4, server.getsockname()[1]))
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)
            assert client.recv(100) == b"question"
        with pytest.raises(gpasst.ConfigurationError, match="network isp has a gateway already"):
            gpasst.Router("other", inside=isp, outside=lan)


def test_a_host_may_ask_the_router_for_its_addresses(lan: gpasst.Network, wan: gpasst.Network, tmp_path: Path) -> None:
    """As a machine that is plugged in, or a virtual one: DHCP, and autoconfiguration of IPv6."""
    script = tmp_path / "script"
    configure = 'ip address add "$ip/$mask" dev "$interface" && ip route add default via "$router"'
    script.write_text(f'#!/bin/sh\n[ "$1" = bound ] || exit 0\n{configure}\n', encoding="utf-8")
    script.chmod(0o755)
    with gpasst.Router("home", inside=lan, outside=wan), lan.host("late", configured=False) as late:
        command = [need("udhcpc"), "-f", "-q", "-n", "-t", "3", "-T", "1", "-s", str(script), "-i", late.interface]
        late.run(command, check=True, capture_output=True, timeout=DEADLINE)
        exchange(late, wan["server"])
        advertised = late.run(
            [need("rdisc6"), "-1", "-r", "5", "-w", "2000", late.interface], capture_output=True, text=True
        )
        assert lan.subnet6 in advertised.stdout


def test_a_firewall_refuses_and_lets_through(lan: gpasst.Network, wan: gpasst.Network, family: int) -> None:
    a, server = lan["a"], wan["server"]
    rules = ["allow out udp", "reject out", "drop in"]
    with gpasst.Router("home", inside=lan, outside=wan, nat=None, firewall=rules):
        exchange(a, server, family)
        with a.socket(FAMILIES[family], socket.SOCK_STREAM) as sock, pytest.raises(OSError, match=r"No route|denied"):
            sock.settimeout(DEADLINE)
            sock.connect((address(server, family), 9))
        with server.socket(FAMILIES[family], socket.SOCK_STREAM) as sock, pytest.raises(TimeoutError):
            sock.settimeout(0.1)
            sock.connect((address(a, family), 9))


def test_what_makes_no_router(lan: gpasst.Network, wan: gpasst.Network) -> None:
    with gpasst.Network("four", subnet6="") as four, gpasst.Network("six", subnet4="") as six:
        with pytest.raises(gpasst.ConfigurationError, match="no address family in common"):
            gpasst.Router("r", inside=four, outside=six)
    with pytest.raises(gpasst.ConfigurationError, match="not open"):
        gpasst.Router("r", inside=four, outside=wan)
    with pytest.raises(gpasst.ConfigurationError, match="to itself"):
        gpasst.Router("r", inside=lan, outside=lan)
    with pytest.raises(gpasst.ConfigurationError, match=r"nat cone is no behaviour; use .*symmetric.*HOME"):
        gpasst.Router("r", inside=lan, outside=wan, nat="cone")
    with pytest.raises(gpasst.ConfigurationError, match="filtering symmetric is no behaviour"):
        gpasst.Router("r", inside=lan, outside=wan, filtering="symmetric")
    with pytest.raises(gpasst.ConfigurationError, match="timeout 0 is no time"):
        gpasst.Router("r", inside=lan, outside=wan, timeout=0)
    with pytest.raises(gpasst.ConfigurationError, match="pass a list"):
        gpasst.Router("r", inside=lan, outside=wan, firewall="drop in")
    with pytest.raises(gpasst.ConfigurationError, match="the name a is taken"):
        gpasst.Router("a", inside=lan, outside=wan)
    with gpasst.Router("r", inside=lan, outside=wan) as router:
        with pytest.raises(gpasst.ConfigurationError, match="network lan has a gateway already"):
            gpasst.Router("s", inside=lan, outside=wan)
    with pytest.raises(gpasst.ConfigurationError, match="router r is closed"):
        router.mappings()
    exchange_refused(lan, wan)


def exchange_refused(lan: gpasst.Network, wan: gpasst.Network) -> None:
    """Nothing of a router that failed to open stays."""
    with lan["a"].socket() as sock, pytest.raises(OSError, match="unreachable"):
        sock.sendto(b"", (wan["server"].ip4, 9))


def test_a_router_ends_with_either_network(wan: gpasst.Network) -> None:
    with gpasst.Network("lan") as lan:
        router = gpasst.Router("home", inside=lan, outside=wan)
        exchange(lan.host("a"), wan["server"])
    with pytest.raises(gpasst.ConfigurationError, match="is closed"):
        router.rebind()
    with gpasst.Network("lan") as lan:
        with gpasst.Network("other") as other:
            router = gpasst.Router("home", inside=lan, outside=other)
        with pytest.raises(gpasst.ConfigurationError, match="is closed"):
            router.rebind()
        gpasst.Router("home", inside=lan, outside=wan)


def test_weather_and_expectations_work_on_the_link_of_a_router(lan: gpasst.Network) -> None:
    with gpasst.Network("net", record=True) as net, gpasst.Router("home", inside=lan, outside=net) as home:
        server = net.host("server")
        exchange(lan["a"], server)
        net.link(home).expect("udp", src=home.outside_ip4, to="host")
        with net.link(home).impair("partition"), lan["a"].socket() as client:
            client.settimeout(0.1)
            client.sendto(b"", (server.ip4, 9))
            with pytest.raises(TimeoutError):
                client.recv(1)
        exchange(lan["a"], server)


def test_nothing_stays_of_routers(lan: gpasst.Network, wan: gpasst.Network) -> None:
    def once() -> None:
        with gpasst.Router("home", inside=lan, outside=wan):
            exchange(lan["a"], wan["server"])

    assert_flat(once, repeats=10)
