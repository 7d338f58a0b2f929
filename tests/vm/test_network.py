"""A virtual machine in a network of namespaces, beside hosts. Takes 8 seconds."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

import pytest

import gpasst
from gpasst import Network
from gpasst.api.guest import Guest
from tests.support import vm
from tests.support.streams import accepted, listening, noise, received

pytestmark = pytest.mark.usefixtures("tun", "remote")

MTU = 9000  # bytes, which the machine hears of by its card
DATA_BYTES = 10_000_000
PATIENCE = 60.0  # seconds; for the emulated processor


@pytest.fixture(scope="module")
def lan() -> Iterator[Network]:
    with gpasst.Network("lan", mtu=MTU) as lan:
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
        for prefix in (f"{port.ip4}/24", f"{port.ip6}/64"):
            assert guest.run(f"ip addr add {prefix} dev eth0").status == 0
        yield port, guest


def test_the_card_has_the_address_and_mtu_of_the_port(machine: tuple[Guest, vm.Guest]) -> None:
    port, guest = machine
    card = guest.run("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu").output
    assert card.split() == [port.mac, str(MTU)]


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
