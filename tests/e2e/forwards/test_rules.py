"""Port forwards end to end: every form of specification, and ports that cannot be had."""

from __future__ import annotations

import re
import resource
import socket
import subprocess
import sys

import pytest

import gpasst
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.forwards import ask, can_be_bound, inside, outside, pasta, refused
from tests.support.lab import HOST, HOST4, HOST4_SECOND, HOST6, REMOTE, REMOTE4, REMOTE6, UPSTREAM, Remote, bound
from tests.support.need import need
from tests.support.ready import sleeper

pytestmark = pytest.mark.usefixtures("tun", "remote")

SECOND = {4: "192.0.2.9", 6: "2001:db8::9"}  # address that a namespace is given besides its own
TOO_MANY = """
import re, resource, gpasst
resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))
try:
    gpasst.Pasta(udp_ports="1-3000").open()
except gpasst.PlatformError as error:
    print(error)
    fits = int(re.search("only ([0-9]+) fit", error.message)[1])
# What is said to fit does, give or take what is open by now.
with gpasst.Pasta(udp_ports=f"1-{fits - 16}", ipv4_only=True) as net:
    assert len(net.forwards) == fits - 16
"""


def test_a_target_address_of_the_namespace(remote: Remote, family: int) -> None:
    target = f"[{SECOND[6]}]" if family == 6 else SECOND[4]
    with pasta(udp_ports=f"5000:{target}/6000") as net:
        add = [need("ip"), "address", "add", f"{SECOND[family]}/{32 if family == 4 else 128}", "dev", net.interface]
        net.run([*add, *(["nodad"] if family == 6 else [])], check=True)
        assert [(forward.address, forward.target_address) for forward in net.forwards] == [
            (ANY[family], SECOND[family])
        ]
        with inside(net, family, 6000, SECOND[family]) as service, inside(net, family, 6000, HOST[family]) as other:
            with bound(remote.socket(FAMILY[family]), REMOTE[family]) as client:
                shown = ask(client, service, (HOST[family], 5000))
                assert shown == client.getsockname()[:2], "through the tap, with the sender's own address"
            with outside(family, address=LOOPBACK[family]) as client:
                assert ask(client, service, (LOOPBACK[family], 5000))[0] == SECOND[family], "spliced"
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.recv(9)


def test_a_target_address_of_the_host() -> None:
    with pasta(udp_ns="5000:127.0.0.9/6000") as net:
        with outside(4, 6000, "127.0.0.9") as service, inside(net, 4, 0, "127.0.0.1") as client:
            assert ask(client, service, ("127.0.0.1", 5000))[0] == "127.0.0.1"


@pytest.mark.parametrize("place", [f"%{UPSTREAM}", f"*%{UPSTREAM}"])
def test_one_interface(remote: Remote, family: int, place: str) -> None:
    with pasta(udp_ports=f"{place}/5000") as net, inside(net, family, 5000) as service:
        with bound(remote.socket(FAMILY[family]), REMOTE[family]) as client:
            ask(client, service, (HOST[family], 5000))
        with outside(family, address=LOOPBACK[family]) as client:
            assert refused(client, (LOOPBACK[family], 5000))


@pytest.mark.parametrize("place", [HOST4_SECOND, f"[{HOST4_SECOND}]", f"{HOST4_SECOND}%{UPSTREAM}"])
def test_one_ipv4_address(remote: Remote, place: str) -> None:
    with pasta(udp_ports=f"{place}/5000") as net, inside(net, 4, 5000) as service:
        with bound(remote.socket(socket.AF_INET), REMOTE4) as client:
            ask(client, service, (HOST4_SECOND, 5000))
            assert refused(client, (HOST4, 5000))


@pytest.mark.parametrize("place", [HOST6, f"[{HOST6}]", f"[{HOST6}%{UPSTREAM}]", f"[{HOST6}]%{UPSTREAM}"])
def test_one_ipv6_address(remote: Remote, place: str) -> None:
    with pasta(udp_ports=f"{place}/5000") as net, inside(net, 6, 5000) as service:
        assert [forward.address for forward in net.forwards] == [HOST6]
        with bound(remote.socket(socket.AF_INET6), REMOTE6) as client:
            ask(client, service, (HOST6, 5000))


def test_ranges_and_remaps_and_exclusions(remote: Remote) -> None:
    with pasta(udp_ports="5000-5004:6000-6004,~5002,5010", ipv4_only=True) as net:
        assert {forward.port: forward.target for forward in net.forwards} == {
            5000: 6000,
            5001: 6001,
            5003: 6003,
            5004: 6004,
            5010: 5010,
        }
        with inside(net, 4, 6003) as service, bound(remote.socket(socket.AF_INET), REMOTE4) as client:
            ask(client, service, (HOST4, 5003))
            assert refused(client, (HOST4, 5002))


def test_a_port_that_the_kernel_chooses(remote: Remote, family: int) -> None:
    with pasta(udp_ports=("0:6000", "0:6001")) as net:
        first, second = ({f.port for f in net.forwards if f.target == target} for target in (6000, 6001))
        assert [forward.chosen for forward in net.forwards] == [True] * 4
        assert (len(first), len(second), first & second) == (1, 1, set())
        with inside(net, family, 6001) as service, bound(remote.socket(FAMILY[family]), REMOTE[family]) as client:
            ask(client, service, (HOST[family], second.pop()))
    with pasta(udp_ns="0:6000", ipv4_only=True) as net, outside(4, 6000) as service:
        (forward,) = net.forwards
        with inside(net, 4, 0, "127.0.0.1") as client:
            ask(client, service, ("127.0.0.1", forward.port))


def test_the_last_option_wins(remote: Remote, family: int) -> None:
    with pasta(udp_ports=("5000-5001:6000-6001", "5000:7000")) as net:
        with inside(net, family, 7000) as last, inside(net, family, 6001) as first:
            with bound(remote.socket(FAMILY[family]), REMOTE[family]) as client:
                ask(client, last, (HOST[family], 5000))
                ask(client, first, (HOST[family], 5001))


def test_on_the_host_all_ports_or_none() -> None:
    with outside(4, 5003):
        with pytest.raises(gpasst.PlatformError, match=r"udp port 5003 on 0\.0\.0\.0 \(rule 5000-5005\)"):
            gpasst.Pasta(udp_ports="5000-5005", udp_ns="5300").open()
        assert [can_be_bound("0.0.0.0", port) for port in range(5000, 5006)] == [True] * 3 + [False] + [True] * 2
    assert can_be_bound("::", 5000)


def test_in_the_namespace_all_ports_or_none() -> None:
    with gpasst.Pasta(ns_ifname="first") as owner, sleeper(owner) as process:
        with inside(owner, 4, 5303, "127.0.0.1"):
            message = r"udp port 5303 on 0\.0\.0\.0%lo in the namespace \(rule 5300-5305\): the port is in use"
            with pytest.raises(gpasst.PlatformError, match=message):
                gpasst.Pasta(pid=process.pid, ns_ifname="second", udp_ports="5100", udp_ns="5300-5305").open()
            assert all(can_be_bound("0.0.0.0", port, owner) for port in (5300, 5301, 5302, 5304, 5305))
        assert can_be_bound("0.0.0.0", 5100)


@pytest.mark.parametrize("specification", ["all,~1-5000,~5010-65535", "~1-5000,~5010-65535"])
def test_all_is_what_can_be_had(specification: str, family: int) -> None:
    with outside(family, 5005, LOOPBACK[family]):
        with pasta(udp_ports=specification) as net:
            ports = {number: {f.port for f in net.forwards if f.address == ANY[number]} for number in (4, 6)}
    assert ports[family] == set(range(5001, 5010)) - {5005}
    assert ports[10 - family] == set(range(5001, 5010))


def test_none_of_all_is_an_error() -> None:
    with outside(4, 5005):
        with pytest.raises(gpasst.PlatformError, match="udp port 5005"):
            gpasst.Pasta(udp_ports="~1-5004,~5006-65535", ipv4_only=True).open()


def test_more_ports_than_open_files() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", TOO_MANY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        "forwarding needs 6000 sockets, one a port and family, but only 2[0-9]{3} fit the limit of 3000 open files; "
        r"raise ulimit -n to [0-9]+, forward fewer ports, or one family only \(-4 or -6\)\n",
        done.stdout,
    )


def test_the_soft_limit_of_open_files_is_no_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("needs ulimit -Hn of 2000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pasta(udp_ports="5000-5999", ipv4_only=True) as net:
            assert len(net.forwards) == 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
