"""Which TCP connections are spliced, where they lead, and which ones are reset."""

from __future__ import annotations

import select
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

import gpasst
from gpasst.counters import Drop
from gpasst.host.socket_pool import READY
from tests.support.cli import AS_ROOT, cli
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.forwards import automatic
from tests.support.lab import HOST, HOST4
from tests.support.ready import PATIENCE, stopped, until
from tests.support.stream_ways import SERVICE, StreamWay, pairs
from tests.support.streams import accepted, carried, listening, patient

pytestmark = pytest.mark.usefixtures("tun", "remote")

PORT = 5000


def inward(net: gpasst.Pasta, port: int = PORT, family: int = 4) -> StreamWay:
    return StreamWay(net, family, False, port)


def outward(net: gpasst.Pasta, port: int = PORT, family: int = 4) -> StreamWay:
    return StreamWay(net, family, True, port)


def exchanged(way: StreamWay, at: str = "", address: str = "") -> str:
    """Carry something both ways with a service at an address; return where that sees the client."""
    with way.service(at) as (server, _), way.client(address) as client, accepted(server) as service:
        assert carried(client, service, b"question") and carried(service, client, b"answer")
        return str(service.getpeername()[0])


def spliced(net: gpasst.Pasta) -> int:
    return net.statistics().tcp_bytes_spliced


def test_what_leads_both_ways_is_no_circle(family: int) -> None:
    with gpasst.Pasta(tcp_ports=str(PORT), tcp_ns=str(PORT), host_lo_to_ns_lo=True) as net:
        for turn, way in enumerate((inward(net, family=family), outward(net, family=family)), 1):
            assert way.is_reset()
            assert net.statistics().drops == {Drop.HAIRPIN.value: turn}
        until(lambda: not pairs(net), "no pair left")


def no_answer(client: socket.socket, target: str) -> bool:
    """Return whether a client is refused or reset."""
    with pytest.raises(ConnectionError):
        client.connect((target, PORT))
        client.recv(1)
    return True


def test_the_namespaces_own_address_is_no_target(family: int) -> None:
    """The kernel refuses, since listeners are bound to `lo`."""
    with gpasst.Pasta(tcp_ns=str(PORT), config_net=True) as net:
        with listening(socket.socket(FAMILY[family]), ANY[family], PORT):
            with patient(net.socket(FAMILY[family], socket.SOCK_STREAM)) as client:
                assert no_answer(client, HOST[family])
        assert net.statistics().drops == {}


def test_the_namespaces_own_address_is_no_source() -> None:
    """Of IPv6, the kernel finds no way back from `::1`."""
    with gpasst.Pasta(tcp_ns=str(PORT), config_net=True) as net:
        with (
            listening(socket.socket(), "0.0.0.0", PORT),
            patient(net.socket(socket.AF_INET, socket.SOCK_STREAM)) as client,
        ):
            client.bind((HOST4, 0))
            assert no_answer(client, "127.0.0.1")
        assert net.statistics().drops == {Drop.SPLICE_ADDRESS.value: 1}
        assert not pairs(net)


def test_services_of_the_host_are_followed(family: int) -> None:
    with gpasst.Pasta(tcp_ns="auto", config_net=True) as net:
        assert automatic(net, inside=True) == set()
        way = outward(net, 7000, family)
        with listening(socket.socket(FAMILY[family]), ANY[family], 7000) as (server, _):
            until(lambda: automatic(net, inside=True) == {(ANY[family], 7000, "lo", 7000)}, "followed")
            with way.client() as client, accepted(server) as service:
                server.close()
                until(lambda: not automatic(net, inside=True), "no longer followed")
                assert carried(client, service, b"the pair") and carried(service, client, b"goes on")


def test_a_port_that_a_program_in_the_namespace_has_is_left_to_it() -> None:
    with gpasst.Pasta(tcp_ns="auto", config_net=True, ipv4_only=True) as net:
        inside = net.socket(socket.AF_INET, socket.SOCK_STREAM)
        with listening(inside, "0.0.0.0", 7000) as (own, _), listening(socket.socket(), "0.0.0.0", 7000):
            with listening(socket.socket(), "0.0.0.0", 7001):
                until(lambda: {port for _, port, _, _ in automatic(net, inside=True)} == {7001}, "the other one alone")
            with outward(net, 7000).client() as client, accepted(own) as service:
                assert carried(client, service, b"within")
        assert spliced(net) == 0


def test_without_a_tap_loopback_is_all_there_is(family: int) -> None:
    with gpasst.Pasta(splice_only=True, tcp_ports=f"{PORT}:{SERVICE}", tcp_ns=f"5001:{SERVICE}") as net:
        for way in (inward(net, PORT, family), outward(net, 5001, family)):
            assert exchanged(way, LOOPBACK[family]) == LOOPBACK[family]


def test_without_a_tap_nothing_leads_in_from_elsewhere() -> None:
    with gpasst.Pasta(splice_only=True, tcp_ports=f"{HOST4}/{PORT}:{SERVICE}") as net:
        with pytest.raises(ConnectionResetError), patient(socket.socket()) as client:
            client.connect((HOST4, PORT))
            client.recv(1)
        until(lambda: net.statistics().drops == {Drop.NO_TAP.value: 1}, "dropped")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.5", "::1"])
def test_the_namespaces_loopback_is_reached_where_that_is_asked_for(address: str) -> None:
    way_of = {"family": 6 if ":" in address else 4}
    with gpasst.Pasta(tcp_ports=f"{PORT}:{SERVICE}", config_net=True, host_lo_to_ns_lo=True) as net:
        assert exchanged(inward(net, **way_of), address, address) == LOOPBACK[way_of["family"]]
    with gpasst.Pasta(tcp_ports=f"{PORT}:{SERVICE}", config_net=True) as net:
        with inward(net, **way_of).service(address):
            assert inward(net, **way_of).is_reset(), "it is not exposed"


def test_from_the_namespace_the_address_is_kept() -> None:
    with gpasst.Pasta(tcp_ns=f"{PORT}:{SERVICE}", config_net=True) as net:
        exchanged(outward(net), "127.0.0.53", "127.0.0.53")


@pytest.mark.parametrize("outwards", [False, True])
def test_a_rules_target_address(outwards: bool) -> None:
    rule = f"{PORT}:127.0.0.7/{SERVICE}"
    options: dict[str, Any] = {"tcp_ns" if outwards else "tcp_ports": rule}
    with gpasst.Pasta(config_net=True, **options) as net:
        exchanged(StreamWay(net, 4, outwards, PORT), "127.0.0.7")


def test_without_splicing_loopback_crosses_the_tap() -> None:
    with gpasst.Pasta(tcp_ports=f"{PORT}:{SERVICE}", config_net=True, no_splice=True) as net:
        assert exchanged(inward(net)) == net.gateway4
        assert spliced(net) == 0
        assert net.statistics().tcp_bytes_up > 0


def test_a_keeper_that_answers_nothing_stops_new_connections_alone() -> None:
    with gpasst.Pasta(tcp_ports=f"{PORT}:{SERVICE}", config_net=True, ipv4_only=True) as net, ExitStack() as stack:
        way = inward(net)
        server, _ = stack.enter_context(way.service())

        def carries() -> bool:
            """Whether a new client reaches the service, or is reset."""
            client = stack.enter_context(patient(socket.socket()))
            try:
                client.connect(("127.0.0.1", PORT))
                client.sendall(b"?")
                # The one or the other comes.
                return server in select.select([server, client], [], [], PATIENCE)[0]
            except ConnectionError:
                return False

        assert carries()
        first = stack.enter_context(accepted(server))
        holder = net._namespace.pid  # type: ignore[union-attr]  # noqa: SLF001
        with stopped(holder):
            count = 0
            while carries():
                count += 1
                stack.enter_context(accepted(server))
            assert count <= READY
            assert net.statistics().drops == {Drop.NO_SOCKET.value: 1}
            assert first.recv(9) == b"?"
        until(carries, "a new client after it went on")


ASKING = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5) as sock:
    sock.sendall(b"question")
    sock.shutdown(socket.SHUT_WR)
    print(sock.makefile().read(), end="")
"""


def test_the_command_line() -> None:
    def serve() -> str:
        with accepted(server) as service:
            question = service.makefile().read()
            service.sendall(b"answer")
            return question

    with listening(socket.socket(), "127.0.0.1") as (server, (_, port)), ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        done = cli("pasta", *AS_ROOT, "-T", f"5001:{port}", "--", sys.executable, "-c", ASKING, "5001")
        assert (done.returncode, done.stdout, done.stderr) == (0, "answer", "")
        assert serving.result() == "question"
