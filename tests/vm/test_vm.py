"""A virtual machine, its host and a remote machine: passt mode with qemu, Linux and busybox."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import vm
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.lab import (
    BEYOND,
    FAR,
    HOST,
    HOST4,
    HOST6,
    HOST_LINK_LOCAL,
    REMOTE4,
    REMOTE6,
    Remote,
    bound,
    host_socket,
)
from tests.support.programs import dnsmasq, service
from tests.support.streams import accepted, listening, noise, received

FILE_BYTES = 50_000_000
FILE_SECONDS = 60.0  # for the emulated processor
PORT = 5000  # of the host, leads to the guest's
GATEWAY = {4: REMOTE4, 6: REMOTE6}
# The guest's MTU is 65520, so that it sends the largest in two fragments.
SIZES = (0, 1, 1472, 1473, 8000, 65507)
OPTIONS = ("-u", str(PORT), "-t", str(PORT), "-D", REMOTE4, "-D", REMOTE6, "-S", "example.test")
LEASE = "udhcpc -f -q -n -i eth0 -s /bin/lease -O search -O mtu"
# Router advertisements come by themselves; the address is usable when nobody else turned out to have it.
AUTOCONFIGURED = (
    "until ip -6 route | grep -q ^default && ! ip -6 address show dev eth0 | grep -q tentative; do usleep 20000; done"
)


class Link:
    """The program under test, and the guest that it serves."""

    def __init__(self, image: vm.Image, path: Path) -> None:
        self.image = image
        self.path = path
        self.lease: dict[str, str] = {}
        self._guest: vm.Guest | None = None

    def guest(self) -> vm.Guest:
        """Give the guest, with its network configured; boot one if there is none."""
        if self._guest is None or not self._guest.alive:
            self.close()
            self._guest = vm.Guest(self.image, self.path)
            status, output = self._guest.run(LEASE)
            assert status == 0, output
            self.lease = vm.variables(output)
            self._guest.run(AUTOCONFIGURED)
        return self._guest

    def close(self) -> None:
        """Cut the guest's power."""
        if self._guest is not None:
            self._guest.close()


@pytest.fixture(scope="module")
def image(remote: Remote, tmp_path_factory: pytest.TempPathFactory) -> vm.Image:
    return vm.build(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def link(image: vm.Image) -> Iterator[Link]:
    with vm.serving(OPTIONS) as path:
        link = Link(image, path)
        yield link
        link.close()


@pytest.fixture
def guest(link: Link) -> vm.Guest:
    """The guest that all tests share."""
    return link.guest()


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@contextmanager
def answered(guest: vm.Guest, server: socket.socket, address: str, size: int) -> Iterator[tuple[str, int]]:
    """Have the guest ask a server; give by which address and port the server knows the guest."""
    guest.start(f"udptool ask {address} {server.getsockname()[1]} {size}")
    try:
        data, sender = server.recvfrom(65536)
        server.sendto(data, sender)
    finally:
        result = guest.finish()
    assert result == (0, f"ok {size}\n")
    assert data == vm.pattern(size)
    yield sender[:2]


def closed_port(sock: socket.socket, address: str) -> int:
    """Give a port that nothing is bound to."""
    with bound(sock, address):
        return int(sock.getsockname()[1])


def test_dhcp(link: Link, guest: vm.Guest) -> None:
    expected = {
        "ip": HOST4,
        "mask": "24",
        "subnet": "255.255.255.0",
        "router": REMOTE4,
        "dns": REMOTE4,
        "search": "example.test",
        "mtu": "65520",
        "lease": str(0xFFFFFFFF),
        "serverid": REMOTE4,
    }
    assert {name: link.lease.get(name) for name in expected} == expected
    routes = guest.run("ip route").output
    assert f"default via {REMOTE4} dev eth0" in routes
    assert f"192.0.2.0/24 dev eth0 scope link  src {HOST4}" in routes


def test_a_lease_is_renewed(guest: vm.Guest) -> None:
    status, output = guest.run(f"{LEASE} -r {HOST4}")
    assert status == 0
    assert f"lease of {HOST4} obtained from {REMOTE4}" in output


def test_router_advertisement(guest: vm.Guest) -> None:
    routes = guest.run("ip -6 route").output
    assert f"default via {HOST_LINK_LOCAL} dev eth0" in routes
    assert "2001:db8::/64 dev eth0" in routes
    addresses = guest.run("ip -6 address show dev eth0").output
    assert "inet6 2001:db8::5054:ff:fe12:3456/64 scope global" in addresses
    assert "dadfailed" not in addresses
    assert guest.run("cat /proc/sys/net/ipv6/conf/eth0/hop_limit").output == "255\n"


def test_dhcpv6(guest: vm.Guest) -> None:
    status, output = guest.run("udptool dhcp6 eth0")
    assert status == 0, output
    assert output.splitlines() == [f"address {HOST6}", f"resolver {REMOTE6}", "search example.test"]


@pytest.mark.parametrize("target", [GATEWAY, FAR], ids=["gateway", "far"])
def test_ping(guest: vm.Guest, family: int, target: dict[int, str]) -> None:
    status, output = guest.run(f"ping -{family} -c 2 -i 0.01 -W 2 -s 1000 {target[family]}")
    assert status == 0, output
    assert "2 packets transmitted, 2 packets received, 0% packet loss" in output


def test_neighbours(guest: vm.Guest) -> None:
    """Any address of the link but the guest's own is answered for."""
    assert guest.run("arping -f -c 1 -w 2 -I eth0 192.0.2.77").status == 0
    assert guest.run(f"arping -D -c 1 -w 1 -I eth0 {HOST4}").status == 0, "nobody else has it"


def test_names(guest: vm.Guest, family: int) -> None:
    with service(dnsmasq(LOOPBACK[family]), 53):
        status, output = guest.run(f"nslookup -type=a t.example {GATEWAY[family]}")
        assert status == 0, output
        assert "Address: 198.51.100.7" in output


def test_names_by_the_resolver_from_the_lease(guest: vm.Guest) -> None:
    with service(dnsmasq(LOOPBACK[4]), 53):
        status, output = guest.run("nslookup -type=a t.example")
        assert status == 0, output
        assert "Address: 198.51.100.7" in output


@pytest.mark.parametrize("size", SIZES)
def test_guest_to_remote(guest: vm.Guest, remote: Remote, family: int, size: int) -> None:
    with bound(remote.socket(FAMILY[family]), FAR[family]) as far:
        with answered(guest, far, FAR[family], size) as sender:
            assert sender[0] == HOST[family]


@pytest.mark.parametrize("size", SIZES)
def test_guest_to_host(guest: vm.Guest, family: int, size: int) -> None:
    with bound(host_socket(FAMILY[family]), LOOPBACK[family]) as server:
        with answered(guest, server, GATEWAY[family], size) as sender:
            assert sender[0] == LOOPBACK[family]


@pytest.fixture(params=["far", "host"])
def origin(request: pytest.FixtureRequest, remote: Remote, family: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket outside the guest, and the address by which it finds the forwarded port."""
    with ExitStack() as stack:
        if request.param == "far":
            sock = stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family]))
            yield sock, HOST[family]
        else:
            sock = stack.enter_context(bound(host_socket(FAMILY[family]), LOOPBACK[family]))
            yield sock, LOOPBACK[family]


def test_forwarded_port(guest: vm.Guest, family: int, origin: tuple[socket.socket, str]) -> None:
    sock, address = origin
    lost = []
    with guest.background(f"udptool echo {ANY[family]} {PORT}") as server:
        assert server.greeting == "ready"
        for size in SIZES:
            data = vm.pattern(size)
            sock.sendto(data, (address, PORT))
            try:
                answer, sender = sock.recvfrom(65536)
            except TimeoutError:
                lost.append(size)
                continue
            assert answer == data
            assert sender[:2] == (address, PORT)
    assert not lost


def test_a_port_closed_on_the_host(guest: vm.Guest, family: int) -> None:
    port = closed_port(host_socket(FAMILY[family]), LOOPBACK[family])
    assert guest.run(f"udptool ask {GATEWAY[family]} {port} 100").output == "refused\n"


def test_a_port_closed_on_a_remote_machine(guest: vm.Guest, remote: Remote, family: int) -> None:
    port = closed_port(remote.socket(FAMILY[family]), FAR[family])
    assert guest.run(f"udptool ttl {FAR[family]} {port} 64").output == f"refused {FAR[family]}\n"


def test_a_port_closed_in_the_guest(guest: vm.Guest, family: int, origin: tuple[socket.socket, str]) -> None:
    """The guest's complaint does no harm."""
    sock, address = origin
    sock.sendto(b"", (address, PORT))
    with guest.background(f"udptool echo {ANY[family]} {PORT}"):
        sock.sendto(b"again", (address, PORT))
        assert sock.recv(9) == b"again"


def test_a_step_of_traceroute(guest: vm.Guest, family: int) -> None:
    """The remote machine, a router here, says that the guest's TTL of one is used up."""
    assert guest.run(f"udptool ttl {BEYOND[family]} 33434 1").output == f"exceeded {GATEWAY[family]}\n"


def url(family: int, address: str, port: int) -> str:
    return f"http://{address if family == 4 else f'[{address}]'}:{port}/"


def served(server: socket.socket, data: bytes) -> None:
    """Answer one request of HTTP."""
    with accepted(server) as client:
        while b"\r\n\r\n" not in client.recv(4096):
            pass
        client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


@pytest.mark.parametrize("where", ["remote", "host"])
def test_a_file_over_http_and_back(guest: vm.Guest, remote: Remote, family: int, where: str) -> None:
    """By busybox wget, then by nc, hashed at either end."""
    data = noise(FILE_BYTES)
    if where == "remote":
        sock, bind, address = remote.socket(FAMILY[family], socket.SOCK_STREAM), FAR[family], FAR[family]
    else:
        sock, bind, address = socket.socket(FAMILY[family]), LOOPBACK[family], GATEWAY[family]
    with listening(sock, bind) as (server, bound_to), ThreadPoolExecutor(1) as pool:
        serving = pool.submit(served, server, data)
        fetch = f"wget -q -O /tmp/file {url(family, address, bound_to[1])} && sha256sum /tmp/file"
        status, output = guest.run(fetch, FILE_SECONDS)
        assert (status, output.split()[0]) == (0, hashlib.sha256(data).hexdigest()), output
        serving.result()
        guest.start(f"nc {address} {bound_to[1]} </tmp/file")
        with accepted(server) as client:
            assert received(client, FILE_BYTES) == data
        assert guest.finish(FILE_SECONDS).status == 0
    guest.run("rm /tmp/file")


@pytest.mark.parametrize("where", ["remote", "host"])
def test_a_file_to_a_forwarded_port(guest: vm.Guest, remote: Remote, family: int, where: str) -> None:
    data = noise(FILE_BYTES, 1)
    listens = f"netstat -ltn | grep -q ':{PORT} '"
    guest.run(f"nc -l -p {PORT} | sha256sum >/tmp/sum & until {listens}; do usleep 10000; done")
    if where == "remote":
        client, address = remote.socket(FAMILY[family], socket.SOCK_STREAM), HOST[family]
    else:
        client, address = socket.socket(FAMILY[family], socket.SOCK_STREAM), LOOPBACK[family]
    with client:
        client.settimeout(FILE_SECONDS)
        client.connect((address, PORT))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    status, output = guest.run("until [ -s /tmp/sum ]; do usleep 10000; done; cat /tmp/sum", FILE_SECONDS)
    assert (status, output.split()[0]) == (0, hashlib.sha256(data).hexdigest()), output
    guest.run("rm /tmp/sum")


def test_a_closed_port_refuses_tcp_at_once(guest: vm.Guest, remote: Remote, family: int) -> None:
    with listening(remote.socket(FAMILY[family], socket.SOCK_STREAM), FAR[family]) as (_, address):
        port = address[1]
    status, output = guest.run(f"wget -q -O - {url(family, FAR[family], port)}")
    assert status == 1
    assert "Connection refused" in output


def test_one_guest_at_a_time(link: Link, guest: vm.Guest) -> None:
    with socket.socket(socket.AF_UNIX) as second:
        second.settimeout(2)
        second.connect(str(link.path))
        assert second.recv(1) == b""
    assert guest.run(f"ping -c 1 -W 2 {REMOTE4}").status == 0, "the first is not disturbed"


def test_another_guest_after_the_first(link: Link, guest: vm.Guest, remote: Remote) -> None:
    guest.close()
    second = link.guest()
    assert second is not guest
    assert link.lease["ip"] == HOST4
    for family, kind in FAMILY.items():
        with bound(remote.socket(kind), FAR[family]) as far:
            with answered(second, far, FAR[family], 8000):
                pass
            with second.background(f"udptool echo {ANY[family]} {PORT}"):
                far.sendto(b"?", (HOST[family], PORT))
                assert far.recv(9) == b"?"
