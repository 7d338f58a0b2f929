"""Forwards that come and go while a namespace is open. Takes 3 seconds."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import gevent
import pytest

import gpasst
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.forwards import ask, can_be_bound, inside, outside, pasta, refused
from tests.support.guests import expire
from tests.support.lab import HOST, PATIENCE, REMOTE, Remote, bound

pytestmark = pytest.mark.usefixtures("tun", "remote")


def streams(server: Any, client: Any, target: tuple[str, int]) -> None:
    """Exchange bytes over a connection to a listening server."""
    server.listen()
    client.settimeout(PATIENCE)
    client.connect(target)
    accepted, _ = server.accept()
    with accepted:
        accepted.settimeout(PATIENCE)
        client.sendall(b"question")
        assert accepted.recv(9) == b"question"
        accepted.sendall(b"answer")
        assert client.recv(9) == b"answer"


def stream(net: gpasst.Pasta | None, family: int, port: int = 0, address: str = "") -> Any:
    """A socket of TCP, bound in the namespace or on the host."""
    sock = net.socket(FAMILY[family], socket.SOCK_STREAM) if net else socket.socket(FAMILY[family])
    return bound(sock, address or ANY[family], port)


def test_udp_of_the_host(remote: Remote, family: int) -> None:
    with pasta() as net, inside(net, family, 53) as service:
        added = net.add_forward("udp", "0:53")
        assert net.port("udp", 53) == added.port
        assert {forward.port for forward in added.forwards} == {added.port}, "one number in both families"
        with outside(family, address=LOOPBACK[family]) as client:
            ask(client, service, (LOOPBACK[family], added.port))
        with bound(remote.socket(FAMILY[family]), REMOTE[family]) as client:
            ask(client, service, (HOST[family], added.port))
        net.remove_forward(added)
        net.remove_forward(added)
        assert not net.forwards
        assert not net.flows()
        with outside(family, address=LOOPBACK[family]) as client:
            assert refused(client, (LOOPBACK[family], added.port))
        assert can_be_bound(ANY[family], added.port)


def test_udp_of_the_namespace(family: int) -> None:
    with pasta() as net, outside(family, address=LOOPBACK[family]) as service:
        port = service.getsockname()[1]
        added = net.add_forward("udp", f"5000:{port}", inside=True)
        with inside(net, family, 0, LOOPBACK[family]) as client:
            ask(client, service, (LOOPBACK[family], 5000))
        net.remove_forward(added)
        with inside(net, family, 0, LOOPBACK[family]) as client:
            assert refused(client, (LOOPBACK[family], 5000))


@pytest.mark.parametrize("listens", ["host", "namespace"])
def test_tcp(family: int, listens: str) -> None:
    with pasta() as net:
        here, there = (None, net) if listens == "host" else (net, None)
        with stream(there, family, 0, ANY[family] if there else LOOPBACK[family]) as server:
            added = net.add_forward("tcp", f"0:{server.getsockname()[1]}", inside=listens == "namespace")
            with stream(here, family, 0, LOOPBACK[family]) as client:
                streams(server, client, (LOOPBACK[family], added.port))
            net.remove_forward(added)
            with stream(here, family, 0, LOOPBACK[family]) as client, pytest.raises(ConnectionRefusedError):
                client.connect((LOOPBACK[family], added.port))


def test_accepted_connections_outlive_their_forward() -> None:
    with pasta() as net, stream(net, 4) as server:
        added = net.add_forward("tcp", f"0:{server.getsockname()[1]}")
        server.listen()
        with socket.create_connection(("127.0.0.1", added.port), PATIENCE) as client, server.accept()[0] as accepted:
            net.remove_forward(added)
            client.sendall(b"still")
            assert accepted.recv(9) == b"still"


def test_without_splice_pairs_forwards_of_the_host_cross_the_tap(family: int) -> None:
    with pasta(no_splice=True) as net, inside(net, family, 53) as service:
        added = net.add_forward("udp", "0:53")
        with outside(family, address=LOOPBACK[family]) as client:
            ask(client, service, (LOOPBACK[family], added.port))
        assert net.statistics().datagrams_spliced == 0
        with outside(family, address=LOOPBACK[family]) as there:
            net.add_forward("udp", f"5000:{there.getsockname()[1]}", inside=True)
            with inside(net, family, 0, LOOPBACK[family]) as client:
                ask(client, there, (LOOPBACK[family], 5000))
        assert net.statistics().datagrams_spliced == 2


def test_a_sender_is_shown_under_the_port_of_a_forward() -> None:
    with pasta() as net, outside(4, address="127.0.0.1") as service, outside(4) as probe:
        number = probe.getsockname()[1]
        probe.close()
        net.add_forward("udp", f"5000:{service.getsockname()[1]}", inside=True)
        added = net.add_forward("udp", f"127.0.0.9/{number}:6000")
        with inside(net, 4, 6000, "127.0.0.1") as client:
            assert ask(client, service, ("127.0.0.1", 5000)) == ("127.0.0.1", number)
        net.remove_forward(added)
        expire(net)
        with inside(net, 4, 6000, "127.0.0.1") as client:
            assert ask(client, service, ("127.0.0.1", 5000)) != ("127.0.0.1", number)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("icmp", "80"), "icmp is no protocol with ports; name one of tcp, udp"),
        (("tcp", "70000"), "add_forward 70000: "),
        (("tcp", "none"), "add_forward none: no port; "),
        (("udp", "auto"), "add_forward auto: automatic forwards are chosen when the namespace opens; "),
        (("udp", 80), "add_forward takes text, not 80; "),
        (("udp", "192.0.2.9/80", True), "add_forward 192.0.2.9/80 is not on the namespace's loopback; "),
        (("udp", "203.0.113.9/80"), "cannot forward udp port 80 on 203.0.113.9 (rule 203.0.113.9/80): the host does"),
        (("tcp", "%nosuch0/80"), "cannot forward tcp port 80 on 0.0.0.0%nosuch0 (rule %nosuch0/80): no such interface"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments: Any, message: str) -> None:
    with pasta() as net:
        with pytest.raises(gpasst.ConfigurationError) as caught:
            net.add_forward(*arguments)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
        assert net.forwards == ()


def test_a_port_that_is_taken_leaves_the_others_free() -> None:
    with pasta() as net, outside(4, address="127.0.0.1") as other, outside(4) as probe:
        free, taken = probe.getsockname()[1], other.getsockname()[1]
        probe.close()
        with pytest.raises(gpasst.PlatformError, match="the port is in use"):
            net.add_forward("udp", f"{free},{taken}")
        assert net.forwards == ()
        assert can_be_bound("0.0.0.0", free)


def test_a_protocol_that_is_switched_off() -> None:
    with pasta(no_udp=True) as net, pytest.raises(gpasst.ConfigurationError, match="--no-udp switches it off"):
        net.add_forward("udp", "5000")


def test_a_closed_namespace() -> None:
    with pasta() as net:
        added = net.add_forward("udp", "0:53")
    with pytest.raises(gpasst.ConfigurationError, match="is not open"):
        net.add_forward("udp", "0:53")
    with pytest.raises(gpasst.ConfigurationError, match="is not open"):
        net.remove_forward(added)


def test_a_virtual_machine(tmp_path: Path) -> None:
    with gpasst.Passt(socket=str(tmp_path / "guest")) as link:
        added = link.add_forward("tcp", "0:22")
        assert link.port("tcp", 22) == added.port
        link.remove_forward(added)
        assert link.forwards == ()
        with pytest.raises(gpasst.ConfigurationError, match="has no loopback to listen on"):
            link.add_forward("tcp", "0:22", inside=True)


CONCURRENT = 8


def test_many_greenlets_may_do_it_at_once() -> None:
    def work(number: int) -> None:
        for _ in range(3):
            added = net.add_forward("tcp" if number % 2 else "udp", f"0:{number + 1},0:{number + 100}")
            net.remove_forward(added)

    def everything() -> None:
        gevent.joinall([gevent.spawn(work, number) for number in range(CONCURRENT)], raise_error=True)

    with pasta() as net:
        everything()
        assert net.forwards == ()
