"""A virtual machine in a network of namespaces, beside hosts, with an uplink. Takes 8 seconds."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

import pytest

import gpasst
from gpasst import Network
from gpasst.api.guest import Guest
from tests.support import vm
from tests.support.lab import REMOTE4, REMOTE6, Remote, bound
from tests.support.streams import accepted, listening, noise, received

pytestmark = pytest.mark.usefixtures("tun", "remote")

MTU = 9000  # bytes, which the machine hears of by its card
DATA_BYTES = 10_000_000
PATIENCE = 60.0  # seconds; for the emulated processor


@pytest.fixture(scope="module")
def lan() -> Iterator[Network]:
    with gpasst.Network("lan", mtu=MTU, uplink=True) as lan:
        lan.host("a")
        yield lan


@pytest.fixture(scope="module")
def machine(lan: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, vm.Guest]]:
    image = vm.build(tmp_path_factory.mktemp("image"))
    port = lan.guest("vm")
    with vm.Guest(image, port.qemu_options) as guest:
        port.wait()
        # Without a second in which it looks whether anybody else has the address.
        guest.run("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad")
        assert guest.run(f"ip addr add {port.ip6}/64 dev eth0").status == 0
        status, output = guest.run("udhcpc -f -q -n -i eth0 -s /bin/lease -O mtu")
        assert (status, f"ip={port.ip4}\n" in output) == (0, True), output
        yield port, guest


def test_the_card_has_the_address_and_mtu_of_the_port(machine: tuple[Guest, vm.Guest]) -> None:
    port, guest = machine
    card = guest.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu").output
    assert card.split() == [port.mac, str(MTU)]


def test_the_machine_reaches_the_outside_by_the_gateway(
    lan: Network, machine: tuple[Guest, vm.Guest], remote: Remote
) -> None:
    _, guest = machine
    # The kernel solicits a router within seconds.
    wait = "for n in $(seq 100); do ip -6 route | grep -q default && break; sleep 0.1; done"
    routes = guest.run(f"{wait}; ip route; ip -6 route").output
    assert f"default via {lan.gateway4} dev eth0" in routes
    assert "default via fe80::1 dev eth0" in routes
    for family, address in ((socket.AF_INET, REMOTE4), (socket.AF_INET6, REMOTE6)):
        with bound(remote.socket(family), address) as server:
            guest.start(f"udptool ask {address} {server.getsockname()[1]} 1000")
            data, sender = server.recvfrom(2000)
            server.sendto(data, sender)
            assert guest.finish() == (0, "ok 1000\n")


def test_a_forward_leads_to_the_machine(machine: tuple[Guest, vm.Guest]) -> None:
    port, guest = machine
    with (
        port.forward("udp", "0:7000") as forward,
        guest.background("udptool echo 0.0.0.0 7000") as server,
        socket.socket(type=socket.SOCK_DGRAM) as client,
    ):
        assert server.greeting == "ready"
        client.settimeout(PATIENCE)
        client.sendto(b"hello", ("127.0.0.1", forward.port))
        assert client.recv(9) == b"hello"


def test_the_machine_has_the_address_of_its_port_by_dhcpv6(machine: tuple[Guest, vm.Guest]) -> None:
    port, guest = machine
    status, output = guest.run("udptool dhcp6 eth0")
    assert (status, f"address {port.ip6}\n" in output) == (0, True), output


def test_machine_and_host_ping_each_other(lan: Network, machine: tuple[Guest, vm.Guest]) -> None:
    port, guest = machine
    host = lan["a"]
    for there, here in ((host.ip4, port.ip4), (host.ip6, port.ip6)):
        status, output = guest.run(f"ping -c1 -W5 -s 8000 {there}")
        assert status == 0, output
        host.run(["ping", "-c1", "-W5", "-s", "8000", here], check=True, capture_output=True, timeout=PATIENCE)


def test_a_stream_of_the_host_reaches_the_machine_whole(lan: Network, machine: tuple[Guest, vm.Guest]) -> None:
    """Its superframes are cut, and their checksums completed."""
    host, (_, guest) = lan["a"], machine
    data = noise(DATA_BYTES)
    with listening(host.socket(type=socket.SOCK_STREAM), host.ip4) as (server, address):
        guest.start(f"nc {host.ip4} {address[1]} </dev/null | sha256sum")
        with accepted(server) as client:
            client.sendall(data)
        status, output = guest.finish(PATIENCE)
    assert (status, output.split()[0]) == (0, hashlib.sha256(data).hexdigest())


def test_a_stream_of_the_machine_reaches_the_host_whole(lan: Network, machine: tuple[Guest, vm.Guest]) -> None:
    host, (_, guest) = lan["a"], machine
    with listening(host.socket(type=socket.SOCK_STREAM), host.ip4) as (server, address):
        guest.start(f"dd if=/dev/zero bs=100000 count=100 2>/dev/null | nc {host.ip4} {address[1]}")
        with accepted(server) as client:
            assert received(client) == bytes(DATA_BYTES)
        assert guest.finish(PATIENCE).status == 0
