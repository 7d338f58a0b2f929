"""Forwards of TCP end to end: the forms of a specification, what is followed, and how a client is shown."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import gpasst
from gpasst.flow.record import Forward
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.lab import HOST, HOST4, HOST4_SECOND, REMOTE, REMOTE4, UPSTREAM, Remote, bound
from tests.support.need import need
from tests.support.ready import until

pytestmark = pytest.mark.usefixtures("tun", "remote")

MANY = 1000
SECOND = {4: "192.0.2.9", 6: "2001:db8::9"}  # address that a namespace is given besides its own


@contextmanager
def pasta(**options: Any) -> Iterator[gpasst.Pasta]:
    """A namespace whose host has all its TCP ports again when it ends, connections in TIME-WAIT or not."""
    with gpasst.Pasta(config_net=True, **options) as net:
        yield net
        listed = [forward for forward in net.forwards if not forward.inside]
    for forward in listed:
        with listening(socket.socket(FAMILY[6 if ":" in forward.address else 4]), forward.address, forward.port):
            pass


@contextmanager
def listening(sock: socket.socket, address: str, port: int) -> Iterator[socket.socket]:
    """Let a socket listen."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with bound(sock, address, port):
        sock.listen()
        yield sock


def inside(net: gpasst.Pasta, family: int, port: int, address: str = "") -> Any:
    """A service in the namespace."""
    return listening(net.socket(FAMILY[family], socket.SOCK_STREAM), address or ANY[family], port)


def from_remote(remote: Remote, family: int) -> Any:
    """A client on the remote machine."""
    return bound(remote.socket(FAMILY[family], socket.SOCK_STREAM), REMOTE[family])


def ask(client: socket.socket, service: socket.socket, target: tuple[str, int]) -> tuple[str, int]:
    """Connect to a service and let it answer; return the client's address as the service sees it."""
    client.connect(target)
    accepted, address = service.accept()
    with accepted:
        accepted.settimeout(client.gettimeout())
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert accepted.makefile("rb").read() == b"question"
        accepted.sendall(b"answer")
        accepted.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"answer"
    shown: tuple[str, int] = address[:2]
    return shown


def refused(client: socket.socket, target: tuple[str, int]) -> bool:
    """Whether nothing listens there."""
    try:
        client.connect(target)
    except ConnectionRefusedError:
        return True
    return False


def test_a_client_keeps_its_address(remote: Remote, family: int) -> None:
    with pasta(tcp_ports="8080:80") as net, inside(net, family, 80) as service, from_remote(remote, family) as client:
        assert Forward("tcp", ANY[family], 8080, None, 80) in net.forwards
        assert ask(client, service, (HOST[family], 8080)) == client.getsockname()[:2]


def test_a_client_on_the_hosts_loopback_is_shown_as_the_gateway_where_it_crosses_the_tap(family: int) -> None:
    with pasta(tcp_ports="8080:80", no_splice=True) as net, inside(net, family, 80) as service:
        with socket.socket(FAMILY[family]) as client:
            client.settimeout(2)
            shown, _ = ask(client, service, (LOOPBACK[family], 8080))
        # Of IPv6, the link-local address stands for the host where the gateway is not one.
        ip6 = net.network.ip6
        assert ip6 and ip6.link_local
        assert shown == {4: net.gateway4, 6: socket.inet_ntop(socket.AF_INET6, ip6.link_local)}[family]


def test_a_target_address(remote: Remote, family: int) -> None:
    target = f"[{SECOND[6]}]" if family == 6 else SECOND[4]
    with pasta(tcp_ports=f"5000:{target}/6000") as net:
        add = [need("ip"), "address", "add", f"{SECOND[family]}/{32 if family == 4 else 128}", "dev", net.interface]
        net.run([*add, *(["nodad"] if family == 6 else [])], check=True)
        with inside(net, family, 6000, SECOND[family]) as service, from_remote(remote, family) as client:
            assert ask(client, service, (HOST[family], 5000)) == client.getsockname()[:2]


def test_one_interface(remote: Remote, family: int) -> None:
    with pasta(tcp_ports=f"%{UPSTREAM}/5000") as net, inside(net, family, 5000) as service:
        with from_remote(remote, family) as client:
            ask(client, service, (HOST[family], 5000))
        with socket.socket(FAMILY[family]) as client:
            assert refused(client, (LOOPBACK[family], 5000))


def test_one_address(remote: Remote) -> None:
    with pasta(tcp_ports=f"{HOST4_SECOND}/5000") as net, inside(net, 4, 5000) as service:
        with from_remote(remote, 4) as client:
            ask(client, service, (HOST4_SECOND, 5000))
        with from_remote(remote, 4) as client:
            assert refused(client, (HOST4, 5000))


def test_ranges_remaps_exclusions_and_a_chosen_port(remote: Remote) -> None:
    with pasta(tcp_ports=("5000-5004:6000-6004,~5002,5010", "0:7000"), ipv4_only=True) as net:
        ports = {forward.port: forward.target for forward in net.forwards if not forward.chosen}
        (chosen,) = (forward.port for forward in net.forwards if forward.chosen)
        assert ports == {5000: 6000, 5001: 6001, 5003: 6003, 5004: 6004, 5010: 5010}
        for port, target in ((5003, 6003), (chosen, 7000)):
            with inside(net, 4, target) as service, from_remote(remote, 4) as client:
                ask(client, service, (HOST4, port))
        with from_remote(remote, 4) as client:
            assert refused(client, (HOST4, 5002))


def test_all_ports_or_none() -> None:
    with listening(socket.socket(), "0.0.0.0", 5003):
        with pytest.raises(gpasst.PlatformError, match=r"tcp port 5003 on 0\.0\.0\.0 \(rule 5000-5005\)"):
            gpasst.Pasta(tcp_ports="5000-5005").open()
        with socket.socket() as client:
            assert refused(client, ("127.0.0.1", 5000))
        with pasta(tcp_ports="~1-4999,~5006-65535", ipv4_only=True) as net:
            assert {forward.port for forward in net.forwards} == {5000, 5001, 5002, 5004, 5005}


def test_a_service_that_listens_is_followed(remote: Remote, family: int) -> None:
    with pasta(tcp_ports="auto") as net:
        with inside(net, family, 7000) as service:
            expected = Forward("tcp", ANY[family], 7000, None, 7000, automatic=True)
            until(lambda: net.forwards == (expected,), "followed")
            with from_remote(remote, family) as client:
                ask(client, service, (HOST[family], 7000))
        until(lambda: not net.forwards, "no longer followed")


@pytest.mark.parametrize(("options", "followed"), [({}, [7001]), ({"host_lo_to_ns_lo": True}, [7000, 7001])])
def test_a_service_on_the_namespaces_loopback_is_followed_where_that_is_reached(
    options: dict[str, Any], followed: list[int]
) -> None:
    with pasta(tcp_ports="auto", **options) as net, inside(net, 4, 7000, "127.0.0.1"), inside(net, 4, 7001):
        until(lambda: len(net.forwards) >= len(followed), "followed")
        assert sorted(forward.port for forward in net.forwards) == followed


def test_sockets_of_the_other_protocol_are_not_followed() -> None:
    with pasta(tcp_ports="auto", udp_ports="auto", ipv4_only=True) as net:
        with inside(net, 4, 7000), bound(net.socket(), "0.0.0.0", 7001):
            until(lambda: len(net.forwards) == 2, "followed")
            assert {(forward.protocol, forward.port) for forward in net.forwards} == {("tcp", 7000), ("udp", 7001)}


def test_a_forward_to_a_port_that_is_closed(remote: Remote, family: int) -> None:
    """The host's kernel accepts a client before the guest is asked, so it is reset."""
    with pasta(tcp_ports="8080:80"), from_remote(remote, family) as client:
        with pytest.raises(ConnectionError):
            client.connect((HOST[family], 8080))
            client.recv(1)


def test_connections_are_listed(remote: Remote) -> None:
    with pasta(tcp_ports="8080:80", ipv4_only=True) as net, inside(net, 4, 80) as service:
        with from_remote(remote, 4) as client:
            client.connect((HOST4, 8080))
            accepted, _ = service.accept()
            with accepted:
                (flow,) = net.flows()
                shown = client.getsockname()[:2]
                assert (flow.protocol, flow.guest[1], flow.shown, flow.remote) == ("tcp", 80, shown, shown)
                assert (flow.port, flow.state, flow.spliced) == (8080, "ESTABLISHED", False)
                assert net.statistics().connections == 1
                client.sendall(b"12345")
                assert accepted.recv(9) == b"12345"
                until(lambda: net.statistics().tcp_bytes_up == 5, "counted")
        until(lambda: net.flows() == (), "ended")


def test_without_tcp_nothing_listens() -> None:
    with pasta(tcp_ports=("5000", "auto"), no_tcp=True) as net, socket.socket() as client:
        assert net.forwards == ()
        assert refused(client, ("127.0.0.1", 5000))


def test_the_same_port_of_both_protocols(remote: Remote) -> None:
    with pasta(tcp_ports="5000", udp_ports="5000", ipv4_only=True) as net:
        assert {forward.protocol for forward in net.forwards} == {"tcp", "udp"}
        with inside(net, 4, 5000) as service, from_remote(remote, 4) as client:
            ask(client, service, (HOST4, 5000))
        with bound(net.socket(), "0.0.0.0", 5000) as service, bound(remote.socket(socket.AF_INET), REMOTE4) as client:
            client.sendto(b"?", (HOST4, 5000))
            assert service.recv(9) == b"?"


def test_without_a_guest_a_client_is_reset(tmp_path: Path) -> None:
    with gpasst.Passt(socket=str(tmp_path / "guest"), tcp_ports="0:80", ipv4_only=True) as vm:
        (forward,) = vm.forwards
        with socket.socket() as client:
            client.settimeout(2)
            with pytest.raises(ConnectionResetError):
                client.connect(("127.0.0.1", forward.port))
                client.recv(1)
        until(lambda: vm.statistics().drops.get(gpasst.Drop.NO_GUEST.value) == 1, "counted")


def test_a_thousand_services_at_once() -> None:
    first, last = 10_000, 10_000 + MANY - 1
    with pasta(tcp_ports=f"{first}-{last},auto") as net:
        with ExitStack() as stack:
            services = {port: stack.enter_context(inside(net, 4, port)) for port in range(first, last + 1)}
            until(lambda: len(net.forwards) == MANY, "all followed")
            with socket.socket() as client:
                client.settimeout(2)
                ask(client, services[last], ("127.0.0.1", last))
        until(lambda: not net.forwards, "none left")
