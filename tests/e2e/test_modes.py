"""Options that change the addresses, programs of every kind around a guest, and bad surroundings."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

import gpasst
from tests.support.addresses import HOST_MAC
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.lab import (
    FAR,
    FAR4,
    HOST,
    HOST4,
    HOST6,
    REMOTE,
    REMOTE4,
    REMOTE6,
    UPSTREAM,
    Remote,
    bound,
    host_socket,
)
from tests.support.need import ROOT_ONLY
from tests.support.ready import sleeper, until

pytestmark = pytest.mark.usefixtures("tun", "remote")

LOCAL_MODE = """
import socket, gpasst
with gpasst.Pasta(config_net=True, udp_ports="5000:7000", no_splice=True) as net:
    assert net.network.ip4.local and net.network.ip6.local and net.interface == "tap0"
    assert (net.gateway4, net.gateway6) == ("169.254.2.2", "fe80::1%tap0")
    for family, loopback, any_, gateway in (
        (socket.AF_INET, "127.0.0.1", "0.0.0.0", net.gateway4),
        (socket.AF_INET6, "::1", "::", "fe80::1"),
    ):
        scope = () if family == socket.AF_INET else (0, 2)
        host, guest = socket.socket(family, socket.SOCK_DGRAM), net.socket(family)
        for sock in (host, guest):
            sock.settimeout(2)
        host.bind((loopback, 0))
        guest.bind((any_, 7000))
        host.sendto(b"in", (loopback, 5000))
        data, sender = guest.recvfrom(9)
        assert data == b"in" and sender[0].partition("%")[0] == gateway, sender
        guest.sendto(b"out", sender)
        assert host.recvfrom(9)[0] == b"out"
        guest.sendto(b"question", (gateway, host.getsockname()[1], *scope))
        data, sender = host.recvfrom(9)
        host.sendto(b"answer", sender)
        assert guest.recvfrom(9)[0] == b"answer"
        host.close(), guest.close()
print("good")
"""

GEVENT_PROGRAM = """
from gevent import monkey
monkey.patch_all()
import gevent, socket, subprocess, gpasst
with gpasst.Pasta(config_net=True, udp_ports="5000") as net:
    from gpasst import runtime
    assert runtime._background is None, "a gevent program needs no thread"
    host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    host.bind(("127.0.0.1", 0))
    guest = net.socket(socket.AF_INET, socket.SOCK_DGRAM)
    assert type(guest) is socket.socket is __import__("gevent").socket.socket
    def serve():
        data, sender = host.recvfrom(99)
        host.sendto(data.upper(), sender)
    server = gevent.spawn(serve)
    with gevent.Timeout(5):
        guest.sendto(b"question", (net.gateway4, host.getsockname()[1]))
        assert guest.recv(99) == b"QUESTION"
        assert net.run(["sh", "-c", "exit 3"]).returncode == 3
        assert net.run(["echo", "hello"], stdout=subprocess.PIPE).stdout == b"hello\\n"
    host.close(); guest.close()
print("good")
"""

GREENLET_PROGRAM = """
import gevent, gevent.socket, gpasst
def work():
    with gpasst.Pasta(config_net=True) as net:
        from gpasst import runtime
        assert runtime._background is None
        return net.statistics().mappings
first, second = gevent.spawn(work), gevent.spawn(work)
gevent.joinall([first, second], timeout=10, raise_error=True)
assert first.value == second.value == 0
print("good")
"""

FORKED_PROGRAM = """
import os, gpasst
with gpasst.Pasta() as net:
    net.run(["true"], check=True)
child = os.fork()
if child == 0:
    with gpasst.Pasta() as net:
        net.run(["true"], check=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("good")
"""


def python(program: str, run: Any = subprocess.run) -> str:
    """Run a Python program of its own; give what it printed."""
    done = run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


@pytest.mark.parametrize("program", [GEVENT_PROGRAM, GREENLET_PROGRAM, FORKED_PROGRAM])
def test_programs_with_and_without_a_hub(program: str) -> None:
    assert python(program) == "good"


def test_local_mode_on_a_host_without_network() -> None:
    with gpasst.Pasta() as host:
        # Its tap is down, so that this guest, as a host, has nothing but loopback.
        assert python(LOCAL_MODE, host.run) == "good"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with bound(host_socket(socket.AF_INET), "127.0.0.1") as sock:
        yield sock


def ask(net: gpasst.Pasta, address: str, server: socket.socket) -> tuple[str, str] | None:
    """Send from a guest to a server; give whom each took the other for, None if the server heard nothing."""
    with net.socket(server.family) as guest:
        guest.settimeout(2)
        guest.sendto(b"?", (address, server.getsockname()[1]))
        server.settimeout(0.2)
        try:
            _, sender = server.recvfrom(9)
        except TimeoutError:
            return None
        server.sendto(b"!", sender)
        return sender[0], guest.recvfrom(9)[1][0]


def test_without_gateway_mapping(server: socket.socket, remote: Remote) -> None:
    with gpasst.Pasta(config_net=True, no_map_gw=True, udp_ports="5000", no_splice=True) as net, net.socket() as guest:
        assert ask(net, net.gateway4, server) is None, "the gateway is itself"
        with bound(remote.socket(socket.AF_INET), REMOTE4) as gateway:
            assert ask(net, net.gateway4, gateway) == (HOST4, REMOTE4)
        guest.bind(("0.0.0.0", 5000))
        guest.settimeout(2)
        server.sendto(b"in", ("127.0.0.1", 5000))
        _, sender = guest.recvfrom(9)
        assert sender[0] == net.gateway4, "a stand-in for local senders"
        guest.sendto(b"out", sender)
        server.settimeout(2)
        assert server.recv(9) == b"out"


def test_another_address_for_the_hosts_loopback(server: socket.socket) -> None:
    with gpasst.Pasta(config_net=True, map_host_loopback="192.0.2.99") as net:
        assert ask(net, "192.0.2.99", server) == ("127.0.0.1", "192.0.2.99")
        assert ask(net, net.gateway4, server) is None


def test_an_address_for_the_hosts_own_address() -> None:
    with gpasst.Pasta(config_net=True, map_guest_addr="192.0.2.98", udp_ports="5000") as net:
        with bound(host_socket(socket.AF_INET), HOST4) as own, net.socket() as guest:
            assert ask(net, "192.0.2.98", own) == (HOST4, "192.0.2.98")
            guest.bind(("0.0.0.0", 5000))
            guest.settimeout(2)
            own.sendto(b"in", (HOST4, 5000))
            assert guest.recvfrom(9) == (b"in", ("192.0.2.98", own.getsockname()[1]))


@pytest.mark.parametrize("only", [4, 6])
def test_one_family_only(only: int) -> None:
    options: dict[str, Any] = {f"ipv{only}_only": True}
    with gpasst.Pasta(config_net=True, udp_ports="5000", **options) as net:
        assert (net.network.ip4 is None, net.network.ip6 is None) == (only == 6, only == 4)
        assert [forward.address for forward in net.forwards] == ["0.0.0.0" if only == 4 else "::"]


def test_senders_can_be_filtered(remote: Remote) -> None:
    with gpasst.Pasta(config_net=True, udp_filter="address") as net, net.socket() as guest:
        with (
            bound(remote.socket(socket.AF_INET), FAR4) as friend,
            bound(remote.socket(socket.AF_INET), REMOTE4) as alien,
        ):
            guest.settimeout(2)
            guest.sendto(b"?", friend.getsockname())
            hole = friend.recvfrom(9)[1]
            alien.sendto(b"alien", hole)
            friend.sendto(b"friend", hole)
            assert guest.recv(9) == b"friend"
            assert net.statistics().drops == {gpasst.Drop.FILTERED.value: 1}


def test_outgoing_traffic_from_a_chosen_address(remote: Remote) -> None:
    with gpasst.Pasta(config_net=True, outbound="192.0.2.3") as net:
        with bound(remote.socket(socket.AF_INET), FAR4) as far:
            assert ask(net, FAR4, far) == ("192.0.2.3", FAR4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ipv4_only": True},
        {"ipv6_only": True},
        {"no_icmp": True},
        {"no_ndp": True, "no_ra": True},
        {"no_dhcp": True, "no_dhcpv6": True},
        {"no_udp": True, "no_tcp": True},
    ],
)
def test_nothing_is_lost_in_a_fresh_namespace(options: dict[str, Any]) -> None:
    with gpasst.Pasta(config_net=True, **options) as net:
        with net.socket() as four, net.socket(socket.AF_INET6) as six:
            if net.network.ip4:
                four.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), 2))
                group = socket.inet_aton("224.0.0.251")
                four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("=4s4si", group, bytes(4), 2))
            group = socket.inet_pton(socket.AF_INET6, "ff02::fb")
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("=16si", group, 2))
            until(lambda: net.statistics().ignored.get(gpasst.Drop.MEMBERSHIP.value, 0) >= 2, "reported")
        assert not net.statistics().drops


@contextmanager
def no_default_route(family: int) -> Iterator[None]:
    """Take the host's default route of one family away, and bring it back."""
    if os.geteuid():
        pytest.skip(f"{ROOT_ONLY} change the host's routes")
    fields = {"dst": "default", "gateway": REMOTE[family], "family": FAMILY[family]}
    with IPRoute() as ipr:
        ipr.route("del", **fields)
        try:
            yield
        finally:
            ipr.route("add", **fields)


@pytest.mark.parametrize("family", [4, 6])
def test_a_network_without_default_route_is_reached_beside_the_other_familys(remote: Remote, family: int) -> None:
    other = 10 - family
    with no_default_route(family), gpasst.Pasta(config_net=True, udp_ports="5000", no_splice=True) as net:
        with bound(remote.socket(FAMILY[family]), REMOTE[family]) as near:
            assert ask(net, REMOTE[family], near) == (HOST[family], REMOTE[family])
        with bound(remote.socket(FAMILY[other]), FAR[other]) as far:
            assert ask(net, FAR[other], far) == (HOST[other], FAR[other])
        with net.socket(FAMILY[family]) as guest, pytest.raises(OSError, match="Network is unreachable"):
            guest.sendto(b"?", (FAR[family], 9))
        # The host's loopback is shown as an address that the guest has a route to.
        with net.socket(FAMILY[family]) as guest, bound(host_socket(FAMILY[family]), LOOPBACK[family]) as host:
            guest.settimeout(2)
            guest.bind((ANY[family], 5000))
            host.sendto(b"in", (LOOPBACK[family], 5000))
            data, sender = guest.recvfrom(9)
            guest.sendto(b"out", sender)
            assert (data, host.recv(9)) == (b"in", b"out")


def test_the_outbound_interface_of_a_family_is_its_template() -> None:
    if os.geteuid():
        pytest.skip(f"{ROOT_ONLY} make an interface on the host")
    with IPRoute() as ipr:
        ipr.link("add", ifname="aux0", kind="veth", peer={"ifname": "aux1"})
        (index,) = ipr.link_lookup(ifname="aux0")
        try:
            ipr.link("set", index=index, state="up")
            with pytest.raises(gpasst.ConfigurationError, match="--outbound-if4 aux0 has no IPv4 address"):
                gpasst.Pasta(config_net=True, outbound_if4="aux0").open()
            ipr.addr("add", index=index, address="198.18.0.5", prefixlen=24)
            with gpasst.Pasta(config_net=True, outbound_if4="aux0") as net:
                shown = net.run(["ip", "-o", "address", "show", "dev", "aux0"], capture_output=True, text=True).stdout
                assert " inet 198.18.0.5/24 " in shown
                assert f" inet6 {HOST6}/64 " in shown
                route = net.run(["ip", "route"], capture_output=True, text=True).stdout
                assert "default" not in route, "there is none on that interface"
        finally:
            ipr.link("del", index=index)


def test_an_ipv4_default_route_by_an_ipv6_next_hop(remote: Remote) -> None:
    with no_default_route(4), IPRoute() as ipr:
        fields = {"dst": "default", "family": socket.AF_INET, "via": {"family": socket.AF_INET6, "addr": REMOTE6}}
        ipr.route("add", **fields)
        try:
            with gpasst.Pasta(config_net=True) as net, bound(remote.socket(socket.AF_INET), FAR4) as far:
                assert net.gateway4 == "169.254.2.2"
                assert ask(net, FAR4, far) == (HOST4, FAR4)
        finally:
            ipr.route("del", **fields)


def test_ipv4_works_where_the_namespace_is_too_narrow_for_ipv6(remote: Remote) -> None:
    with gpasst.Pasta(config_net=True, mtu=1000, udp_ns="5000") as net:
        assert net.network.ip6 is None
        with bound(remote.socket(socket.AF_INET), FAR4) as far:
            assert ask(net, FAR4, far) == (HOST4, FAR4)


def test_addresses_of_ones_own_choice(server: socket.socket) -> None:
    options: dict[str, Any] = {"address": ("10.77.0.2/24", "fd77::2"), "gateway": ("10.77.0.1", "fd77::1")}
    names: dict[str, Any] = {"ns_ifname": "eth9", "ns_mac_addr": "02:00:00:00:00:99", "mtu": 9000}
    with gpasst.Pasta(config_net=True, mac_addr="02:00:00:00:00:01", **options, **names) as net:
        shown = net.run(["cat", "/proc/net/route", "/proc/net/if_inet6"], capture_output=True, text=True).stdout
        assert "fd770000000000000000000000000002" in shown
        assert "eth9" in shown and "00000000\t01004D0A" in shown
        assert net.interface == "eth9"
        assert ask(net, "10.77.0.1", server) == ("127.0.0.1", "10.77.0.1")


def test_loopback_destinations_do_not_leave_the_namespace(server: socket.socket) -> None:
    """A hostile guest routes loopback addresses to the tap; the host's services stay out of reach (CVE-2020-8558)."""
    with gpasst.Pasta(config_net=True) as net:
        port = server.getsockname()[1]
        header = bytes.fromhex("45000020000000004011 0000 c0000202 7f000001".replace(" ", ""))
        datagram = (9).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes.fromhex("000c0000") + b"evil"
        with net.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind((net.interface, 0))
            raw.send(HOST_MAC + raw.getsockname()[4] + b"\x08\x00" + header + datagram)
        assert ask(net, net.gateway4, server) is not None, "heard first if the other one had passed"
        assert net.statistics().drops[gpasst.Drop.LOOPBACK_ADDRESS.value] == 1


def test_busy_ports_are_named_and_nothing_stays_behind() -> None:
    with bound(host_socket(socket.AF_INET), "0.0.0.0") as taken:
        port = taken.getsockname()[1]
        open_after = []
        for _ in range(3):
            message = rf"cannot forward udp port {port} on 0\.0\.0\.0 \(rule 5000,{port}\): the port is in use"
            with pytest.raises(gpasst.PlatformError, match=message):
                gpasst.Pasta(udp_ports=f"5000,{port}").open()
            open_after.append(len(os.listdir("/proc/self/fd")))
        # The first failure may have started what all namespaces share; no failure leaves more than it found.
        assert open_after == [open_after[0]] * 3
        with bound(host_socket(socket.AF_INET), "0.0.0.0", 5000):
            pass


def test_exclusions_pass_over_busy_ports() -> None:
    with bound(host_socket(socket.AF_INET), "0.0.0.0", 1005):
        with gpasst.Pasta(udp_ports="~1-1000,~1010-65535", ipv4_only=True) as net:
            assert [forward.port for forward in net.forwards] == [
                1001,
                1002,
                1003,
                1004,
                1006,
                1007,
                1008,
                1009,
            ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interface": "nosuch0"}, "--interface nosuch0 does not exist; the host has lo"),
        ({"udp_ports": "%nosuch0/5000"}, "no such interface"),
        ({"udp_ports": "192.0.2.77/5000"}, "the host does not have that address"),
        ({"udp_ports": "1-30000"}, "open files"),
        ({"netns": "/nosuch/file"}, "/nosuch/file"),
        ({"netns": "nosuchname"}, "nosuchname"),
        ({"pid": 4194304}, "4194304"),
        ({"pcap": "/nosuch/file.pcap"}, "--pcap /nosuch/file.pcap: No such file"),
    ],
)
def test_what_does_not_exist_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(gpasst.GpasstError) as caught:
        gpasst.Pasta(**options).open()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_an_address_that_comes_later() -> None:
    with gpasst.Pasta(udp_ports="192.0.2.77/5000", freebind=True) as net:
        assert net.forwards[0].address == "192.0.2.77"


def test_programs_that_do_not_exist_and_uses_out_of_order() -> None:
    net = gpasst.Pasta()
    with pytest.raises(gpasst.ConfigurationError, match="not open"):
        net.run(["true"])
    with net:
        with pytest.raises(FileNotFoundError):
            net.run(["/nosuch/program"[1:].replace("/", "-")])
        with pytest.raises(gpasst.ConfigurationError, match="open already"):
            net.open()
        sleeper = net.popen(["sleep", "1000"])
        assert sleeper.args == ["sleep", "1000"]
        done = net.run("exit 5", shell=True)
        assert (done.args, done.returncode) == ("exit 5", 5)
        with pytest.raises(subprocess.CalledProcessError, match="Command 'exit 5' returned"):
            net.run("exit 5", shell=True, check=True)
        with pytest.raises(subprocess.TimeoutExpired, match="'sleep', '1000'"):
            net.run(["sleep", "1000"], timeout=0.01)
    assert sleeper.poll() is not None, "closing the namespace ends its programs"
    net.close()
    with pytest.raises(gpasst.ConfigurationError, match="unknown option nosuch"):
        gpasst.Pasta(nosuch=1)


def test_joining_a_namespace_of_another(server: socket.socket) -> None:
    with gpasst.Pasta(ns_ifname="first") as owner, sleeper(owner) as process:
        with gpasst.Pasta(pid=process.pid, ns_ifname="second", config_net=True) as net:
            assert net.interface == "second"
            assert ask(net, net.gateway4, server) == ("127.0.0.1", net.gateway4)
            assert net.exists()
        path = f"/proc/{process.pid}/ns"
        with gpasst.Pasta(netns=f"{path}/net", userns=f"{path}/user", ns_ifname="third", config_net=True) as net:
            assert ask(net, net.gateway4, server) == ("127.0.0.1", net.gateway4)


@pytest.mark.parametrize("init", [False, True])
def test_a_program_that_was_started_has_arrived(init: bool) -> None:
    with gpasst.Pasta() as net:
        inside = net.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True).stdout.strip()
        program = net.popen(["sleep", "1000"], init=init)
        assert os.readlink(f"/proc/{program.pid}/ns/net") == inside
        running = program.pid
        if init:
            (running,) = map(int, Path(f"/proc/{running}/task/{running}/children").read_text("ascii").split())
        assert Path(f"/proc/{running}/cmdline").read_bytes() == b"sleep\x001000\x00"


def test_several_namespaces_at_once(server: socket.socket) -> None:
    with gpasst.Pasta(config_net=True) as one, gpasst.Pasta(config_net=True) as two:
        assert ask(one, one.gateway4, server) and ask(two, two.gateway4, server)
        assert one.statistics().datagrams_down == two.statistics().datagrams_down == 1


def test_the_host_is_the_lab() -> None:
    with gpasst.Pasta() as net:
        assert net.network.ip6 is not None
        assert net.network.ip6.index == socket.if_nametoindex(UPSTREAM)
        assert net.network.ip6.address == socket.inet_pton(socket.AF_INET6, HOST6)
