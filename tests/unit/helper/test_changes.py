"""Changes of a namespace that is kept: further taps, other addresses, forwarding."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from gpasst.errors import ConfigurationError, PlatformError
from gpasst.helper.client import Helper, Namespace, OpenRequest, Route
from gpasst.helper.kept import LateError
from tests.support.namespaces import CONFIGURED, PATIENCE, facts_inside, inside
from tests.support.ready import stopped, until

SECOND = OpenRequest(
    ifname="lan2",
    mac="02:67:0a:02:00:02",
    mtu=1500,
    configure=True,
    addresses=(("10.2.0.2", 24), ("fd22::2", 64)),
    routes=(Route("10.3.0.0", 24, "10.2.0.1"),),
)


@pytest.fixture(name="host")
def _host(helper: Helper, tun: None) -> Iterator[Namespace]:
    with helper.open(CONFIGURED) as namespace:
        yield namespace


def links(namespace: Namespace) -> dict[str, tuple[str | None, bool, int]]:
    return {
        link["name"]: (link["mac"], link["up"], link["mtu"])
        for link in facts_inside(namespace)["links"]
        if not link["loopback"]
    }


def addresses(namespace: Namespace, index: int) -> set[str]:
    return {entry["address"] for entry in facts_inside(namespace)["addresses"] if entry["index"] == index}


def send(namespace: Namespace, target: str) -> None:
    (descriptor,) = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(fileno=descriptor) as sock:
        sock.sendto(b"?", (target, 9))


def asks_for(descriptor: int, target: str) -> bool:
    """Return whether the question for a neighbour crosses a tap."""
    while select.select([descriptor], [], [], PATIENCE)[0]:
        if socket.inet_aton(target) in os.read(descriptor, 65536):
            return True
    return False


def test_a_further_tap(host: Namespace) -> None:
    made = host.attach(SECOND)
    try:
        assert (made.name, made.mac, made.notes) == ("lan2", bytes.fromhex("02670a020002"), ())
        assert "csum" in made.offloads
        assert not os.get_blocking(made.descriptor)
        assert links(host) == {
            "eth7": ("02:00:00:00:00:07", True, 9000),
            "lan2": ("02:67:0a:02:00:02", True, 1500),
        }
        assert addresses(host, made.index) == {"10.2.0.2", "fd22::2", "fe80::67:aff:fe02:2"}
        for tap, target in ((host.tap, "10.1.2.99"), (made.descriptor, "10.2.0.99")):
            send(host, target)
            assert asks_for(tap, target)
        host.detach("lan2")
    finally:
        os.close(made.descriptor)
    until(lambda: set(links(host)) == {"eth7"}, "the tap gone")
    host.detach("lan2")  # which is what was asked for


def test_a_tap_that_is_refused_leaves_nothing(host: Namespace) -> None:
    with pytest.raises(ConfigurationError, match="eth7 is in use"):
        host.attach(CONFIGURED)
    with pytest.raises(ConfigurationError, match=r"cannot add the address 10.2.0.2/33"):
        host.attach(replace(SECOND, addresses=(("10.2.0.2", 33),)))
    until(lambda: set(links(host)) == {"eth7"}, "no other tap")
    send(host, "10.1.2.99")
    assert asks_for(host.tap, "10.1.2.99")


def test_a_tap_of_another_network(host: Namespace) -> None:
    send(host, "10.1.2.98")  # whose question is not to reach the other network
    host.change("eth7", SECOND)
    assert links(host) == {"lan2": ("02:67:0a:02:00:02", True, 1500)}
    assert addresses(host, host.index) == {"10.2.0.2", "fd22::2", "fe80::67:aff:fe02:2"}
    routes = {(route["destination"], route["gateway"]) for route in facts_inside(host)["routes"]}
    assert ("10.3.0.0", "10.2.0.1") in routes
    assert not any(gateway in ("10.1.2.1", "fd11::1") for _, gateway in routes)
    send(host, "10.2.0.99")
    while True:
        assert select.select([host.tap], [], [], PATIENCE)[0]
        frame = os.read(host.tap, 65536)
        assert socket.inet_aton("10.1.2.98") not in frame
        if socket.inet_aton("10.2.0.99") in frame:
            break
    host.change("lan2", SECOND)  # the same network anew


def test_forwarding(host: Namespace) -> None:
    paths = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
    assert inside(host, "cat", *paths).stdout.split() == ["0", "0"]
    host.forward()
    assert inside(host, "cat", *paths).stdout.split() == ["1", "1"]


def test_routes_come_and_go(host: Namespace) -> None:
    def gateways() -> set[str]:
        return {route["gateway"] for route in facts_inside(host)["routes"] if route["gateway"]}

    before = gateways()
    routes = Route("203.0.113.0", 24, "10.1.2.77"), Route("2001:db8::", 32, "fd11::77", family=6)
    for _ in range(2):
        host.route(host.name, routes)
        assert gateways() == before | {"10.1.2.77", "fd11::77"}
    for _ in range(2):
        host.route(host.name, (), routes)
        assert gateways() == before
    with pytest.raises(ConfigurationError, match=r"cannot add the route default via 192\.0\.2\.1"):
        host.route(host.name, [Route(None, 0, "192.0.2.1", metric=7)])


@pytest.mark.parametrize(("family", "loopback"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connections_are_aborted(host: Namespace, family: int, loopback: str) -> None:
    listener, client = (
        socket.socket(fileno=descriptor) for descriptor in host.sockets(family, socket.SOCK_STREAM, 0, 2)
    )
    with listener, client:
        listener.bind((loopback, 0))
        listener.listen()
        client.connect(listener.getsockname()[:2])
        accepted, _ = listener.accept()
        with accepted:
            host.abort_connections()
            for sock in (client, accepted):
                with pytest.raises((ConnectionAbortedError, ConnectionResetError)):
                    sock.recv(1)
    send(host, "10.1.2.99")


def test_sockets_are_late_while_a_change_awaits_its_answer(host: Namespace) -> None:
    refused: list[type[Exception]] = []

    def wait(descriptor: int) -> None:
        for ask in (lambda: host.sockets(socket.AF_INET, socket.SOCK_DGRAM), host.forward):
            try:
                ask()
            except LateError as error:
                refused.append(type(error))
        asleep.close()
        select.select([descriptor], [], [], PATIENCE)

    # Else the answer may be there before anybody waits for it.
    with ExitStack() as asleep:
        asleep.enter_context(stopped(host.pid))
        made = host.attach(SECOND, wait)
    os.close(made.descriptor)
    assert set(refused) == {LateError}
    send(host, "10.1.2.99")


def test_files_end_with_a_namespace(helper: Helper, tun: None, tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "other"]
    with helper.open(CONFIGURED) as namespace:
        for path in paths:
            path.touch()
            namespace.delete_at_end(str(path))
        paths[0].unlink()
        send(namespace, "10.1.2.99")
        assert paths[1].exists()
    until(lambda: not paths[1].exists(), "the file gone")


def test_a_caller_in_a_sandbox_has_no_file_deleted_and_gets_sockets_that_are_carried(tun: None, tmp_path: Path) -> None:
    path = tmp_path / "of somebody"
    path.touch()
    # A process of its own, since what others keep is confined with it.
    with Helper.start() as helper, helper.open(CONFIGURED) as namespace:
        namespace.confine()
        with pytest.raises(PlatformError, match="names no file"):
            namespace.delete_at_end(str(path))
        for family in (socket.AF_UNIX, socket.AF_VSOCK, socket.AF_PACKET):
            with pytest.raises(PlatformError, match="not carried"):
                namespace.sockets(family, socket.SOCK_DGRAM)
        send(namespace, "10.1.2.99")
        pid = namespace.pid
    until(lambda: not os.path.exists(f"/proc/{pid}"), "the keeper gone")
    assert path.exists()


def test_a_namespace_that_is_closed_takes_no_changes(helper: Helper, tun: None) -> None:
    namespace = helper.open(CONFIGURED)
    namespace.close()
    with pytest.raises(PlatformError, match="the namespace was closed"):
        namespace.attach(SECOND)
