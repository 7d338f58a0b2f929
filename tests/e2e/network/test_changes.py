"""Hosts in several networks, and hosts that move, lose their link, or fail, under programs that run."""

from __future__ import annotations

import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gevent
import pytest

import gpasst
from gpasst.helper.kept import Namespace
from gpasst.testing import assert_flat
from gpasst.testing.flat import usage
from tests.support.hosts import DEADLINE, FAMILIES
from tests.support.need import need
from tests.support.ready import until

HOST_KIB = 300  # of memory for a host at most, the helper's part included

# Answers each name on its standard input with the addresses that it finds.
RESOLVES = """
import socket, sys
print("up", flush=True)
for line in sys.stdin:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(line.strip(), 9, type=socket.SOCK_DGRAM)}
    except OSError:
        found = set()
    print(*sorted(found), flush=True)
"""


@pytest.fixture(name="lans")
def _lans() -> Iterator[tuple[gpasst.Network, gpasst.Network]]:
    with gpasst.Network("left") as left, gpasst.Network("right") as right:
        yield left, right


def addresses(interface: gpasst.Host | Any) -> set[str]:
    return {interface.ip4, interface.ip6}


def links(host: gpasst.Host) -> dict[str, dict[str, Any]]:
    need("ip")
    shown = host.run(["ip", "-json", "address"], check=True, capture_output=True, text=True).stdout
    return {link["ifname"]: link for link in json.loads(shown) if link["ifname"] != "lo"}


def udp(host: gpasst.Host, bind: str = "") -> socket.socket:
    sock = host.socket()
    sock.settimeout(DEADLINE)
    if bind:
        sock.bind((bind, 0))
    return sock


def exchange(client: socket.socket, server: socket.socket) -> str:
    """Send a datagram and its answer; return the client's address as the server sees it."""
    client.sendto(b"?", server.getsockname())
    data, sender = server.recvfrom(100)
    server.sendto(data, sender)
    assert client.recv(100) == data
    return str(sender[0])


class Resolver:
    """A program in a host that finds names."""

    def __init__(self, host: gpasst.Host) -> None:
        argv = [sys.executable, "-u", "-c", RESOLVES]
        self._program = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._say() == {"up"}

    def find(self, name: str) -> set[str]:
        assert self._program.stdin is not None
        self._program.stdin.write(f"{name}\n")
        self._program.stdin.flush()
        return self._say()

    def close(self) -> None:
        self._program.kill()
        self._program.communicate()

    def _say(self) -> set[str]:
        assert self._program.stdout is not None
        assert select.select([self._program.stdout], [], [], DEADLINE)[0]
        return set(self._program.stdout.readline().split())


def test_programs_that_run_find_the_names_of_hosts_that_come_and_go(
    lans: tuple[gpasst.Network, gpasst.Network],
) -> None:
    left, right = lans
    a, c = left.host("a"), right.host("c")
    names = Resolver(a)
    assert names.find("a") == addresses(a)
    assert names.find("b") == set()
    b = left.host("b")
    assert names.find("b") == addresses(b)
    b.close()
    assert names.find("b") == set()
    assert names.find("c") == set()
    joined = right.join(a)
    assert names.find("c") == addresses(c)
    assert names.find("a") == addresses(a)
    joined.close()
    assert names.find("c") == set()
    before = addresses(a)
    a.move(right)
    assert names.find("c") == addresses(c)
    assert names.find("a") == addresses(a) != before
    names.close()


def test_programs_that_run_find_the_resolver_of_the_network_that_their_host_moves_to() -> None:
    with gpasst.Network("left", uplink=True) as left, gpasst.Network("right", uplink=True) as right:
        a = left.host("a")
        script = "while read line; do cat /etc/resolv.conf; echo end; done"
        with a.popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            for network in (left, right):
                if network is right:
                    a.move(right)
                program.stdin.write("\n")
                program.stdin.flush()
                said = "".join(iter(program.stdout.readline, "end\n"))
                assert said == (network.uplink.resolver_file or Path("/etc/resolv.conf").read_text(encoding="utf-8"))
            program.kill()


def test_names_beyond_a_router_are_found_until_it_ends(lans: tuple[gpasst.Network, gpasst.Network]) -> None:
    left, right = lans
    a, server, other = left.host("a"), right.host("server"), right.host("a")
    names = Resolver(a)
    end = left.look_beyond(right)
    assert names.find("server") == addresses(server)
    assert names.find("a") == addresses(a)
    late = right.host("late")
    assert names.find("late") == addresses(late)
    nearer = Resolver(other)
    assert nearer.find("a") == addresses(other)
    end()
    assert names.find("server") == set()
    for program in (names, nearer):
        program.close()


def test_a_host_forwards_between_its_networks(lans: tuple[gpasst.Network, gpasst.Network], family: int) -> None:
    need("ip")
    need("ping")
    left, right = lans
    a, router, b = left.host("a"), left.host("router", forwarding=True), right.host("b")
    far = right.join(router)
    assert router.interfaces == (router.interface_in(left), far)
    assert set(links(router)) == {"left", "right"}
    near4, near6 = router.ip4, router.ip6
    for host, subnet, via in (
        (a, right.subnet4 if family == 4 else right.subnet6, near4 if family == 4 else near6),
        (b, left.subnet4 if family == 4 else left.subnet6, far.ip4 if family == 4 else far.ip6),
    ):
        host.run(["ip", f"-{family}", "route", "add", subnet, "via", via], check=True, timeout=DEADLINE)
    target = b.ip4 if family == 4 else b.ip6
    done = a.run(["ping", "-c1", "-W5", target], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stdout
    assert "ttl=63" in done.stdout


def test_a_host_is_in_a_network_until_it_leaves(lans: tuple[gpasst.Network, gpasst.Network]) -> None:
    left, right = lans
    a, c = left.host("a"), right.host("c")
    with right.join(a) as interface, udp(c, c.ip4) as server:
        assert right["a"] is a
        with udp(a) as client:
            assert exchange(client, server) == interface.ip4
    until(lambda: set(links(a)) == {"left"}, "the device gone")
    with pytest.raises(KeyError):
        right["a"]
    interface.close()
    b = left.host("b")
    with udp(a) as client, udp(b, b.ip4) as server:
        assert exchange(client, server) == a.ip4


def test_networks_of_one_name_have_devices_of_several() -> None:
    with gpasst.Network() as one, gpasst.Network() as two, gpasst.Network() as three:
        a = one.host("a")
        assert [two.join(a).name, three.join(a).name] == ["lan2", "lan3"]
        assert set(links(a)) == {"lan", "lan2", "lan3"}


def test_a_network_that_ends_leaves_the_hosts_of_others(lans: tuple[gpasst.Network, gpasst.Network]) -> None:
    left, _ = lans
    a, b = left.hosts("a", "b")
    with gpasst.Network("third") as third:
        third.join(a)
        b.move(third)
        assert set(links(a)) == {"left", "third"}
    until(lambda: set(links(a)) == {"left"}, "the device gone")
    until(lambda: not links(b), "the device gone")
    assert b.interfaces == ()
    left.join(b)
    with udp(a) as client, udp(b, b.ip4) as server:
        assert exchange(client, server) == a.ip4


def test_a_host_moves_under_its_sockets(lans: tuple[gpasst.Network, gpasst.Network]) -> None:
    left, right = lans
    a, b, c = left.host("a"), left.host("b"), right.host("c")
    with udp(a) as roaming, udp(b, b.ip4) as here, udp(c, c.ip4) as there:
        before = a.ip4
        assert exchange(roaming, here) == before
        with udp(a, before) as fixed:
            a.move(right)
            assert a.ip4 != before
            assert a.interface == "right"
            assert exchange(roaming, there) == a.ip4
            with pytest.raises(OSError, match="unreachable"):
                roaming.sendto(b"?", here.getsockname())
            # Its address is no more; what it sends has no way back, or none at all.
            here.setblocking(False)
            with pytest.raises(OSError, match="unreachable"):
                fixed.sendto(b"?", here.getsockname())
        (link,) = links(a).values()
        assert {entry["local"] for entry in link["addr_info"] if entry["scope"] == "global"} == addresses(a)
        a.move(left)
        here.settimeout(DEADLINE)
        assert exchange(roaming, here) == a.ip4 != before


def test_a_host_that_is_in_several_networks_says_which_one_it_leaves(
    lans: tuple[gpasst.Network, gpasst.Network],
) -> None:
    left, right = lans
    a = left.host("a")
    right.join(a)
    with gpasst.Network("third") as third:
        for act, text in (
            (lambda: a.move(third), "host a is in 2 networks"),
            (lambda: a.move(right, leave=left), "host a is in network right already"),
            (lambda: a.move(third, leave=third), "host a is not in network third"),
            (lambda: right.join(a), "host a is in network right already"),
        ):
            with pytest.raises(gpasst.ConfigurationError) as caught:
                act()
            assert caught.value.message == text
            assert caught.value.remedy
        a.move(third, leave=left)
        assert [interface.name for interface in a.interfaces] == ["third", "right"]
        other = gpasst.Network("other")
        with pytest.raises(gpasst.ConfigurationError, match="network other is not open"):
            other.join(a)
    third_host = right.host("b")
    with gpasst.Network("third") as third:
        third.host("b")
        with pytest.raises(gpasst.ConfigurationError, match="the name b is taken in network third"):
            third.join(third_host)
        assert set(links(third_host)) == {"right"}


def test_addresses_come_again_when_there_are_no_others() -> None:
    with gpasst.Network("small", subnet4="10.9.0.0/29", subnet6="") as small, gpasst.Network("home") as home:
        a, _ = home.host("a"), small.host("b")
        for _ in range(20):
            a.move(small)
            assert a.ip4 in {f"10.9.0.{number}" for number in range(3, 7)}
            a.move(home)
        for name in ("c", "d", "e", "f"):
            small.host(name)
        for _ in range(2):
            with pytest.raises(gpasst.ConfigurationError, match="network small has no address left"):
                a.move(small)
        small["c"].close()
        a.move(small)


def test_a_link_that_is_down_carries_nothing(lans: tuple[gpasst.Network, gpasst.Network]) -> None:
    left, right = lans
    a, b, c = left.hosts("a", "b", "c")
    with udp(a) as client, udp(b, b.ip4) as server, udp(c, c.ip4) as witness:
        exchange(client, server)
        b.down()
        until(lambda: "NO-CARRIER" in links(b)["left"]["flags"], "no carrier")
        client.sendto(b"lost", server.getsockname())
        assert exchange(client, witness) == a.ip4
        assert not select.select([server], [], [], 0)[0]
        server.sendto(b"lost", client.getsockname())
        assert left.call(lambda lan: lan.counters.drops[gpasst.Drop.LINK_DOWN]) >= 1
        b.up()
        until(lambda: "NO-CARRIER" not in links(b)["left"]["flags"], "the carrier")
        assert exchange(client, server) == a.ip4
        b.down()
        b.move(right)
        assert b.interfaces[0].is_down
        b.up()
        assert not b.interfaces[0].is_down


def test_a_host_that_is_killed_has_no_last_word(lans: tuple[gpasst.Network, gpasst.Network], family: int) -> None:
    left, _ = lans
    a, b, c = left.hosts("a", "b", "c")
    serves = (
        "import os, socket, sys\n"
        f"listener = socket.create_server(('', 7000), family={FAMILIES[family]})\n"
        "accepted, _ = listener.accept()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "accepted.sendall(b'up')\n"
        "accepted.recv(9)\n"
    )
    program = a.popen([sys.executable, "-c", serves])
    a.wait_bound("tcp", 7000)
    target = (a.ip4 if family == 4 else a.ip6, 7000)
    with b.socket(FAMILIES[family], socket.SOCK_STREAM) as client, a.socket() as held:
        client.settimeout(DEADLINE)
        client.connect(target)
        assert client.recv(2) == b"up"
        assert client.recv(2) == b"up"
        a.kill()
        assert program.wait(DEADLINE) == -9
        with udp(b, b.ip4) as server, udp(c) as witness:
            exchange(witness, server)
        assert not select.select([client], [], [], 0)[0]
        held.close()
        a.up()
        # Its kernel knows nothing of the connection any more.
        client.send(b"?")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with udp(a, a.ip4) as server, udp(b) as again:
            exchange(again, server)
        assert a.run(["true"]).returncode == 0


def test_all_is_returned_at_close() -> None:
    def once() -> None:
        with gpasst.Network("one") as one, gpasst.Network("two") as two:
            a, b = one.hosts("a", "b")
            two.join(a)
            b.popen(["sleep", "100"])
            b.move(two)
            b.kill()
            two.join(one.host("c", forwarding=True)).close()

    assert_flat(once, repeats=10, warm=5)


def test_links_too_narrow_for_ipv6_have_ipv4() -> None:
    with gpasst.Network("lo", mtu=1000) as lan:
        a, b = lan.hosts("a", "b")
        assert (a.ip6, a.interface, links(a)["lo2"]["mtu"]) == ("", "lo2", 1000)
        with udp(a) as client, udp(b, b.ip4) as server:
            assert exchange(client, server) == a.ip4
    with pytest.raises(gpasst.ConfigurationError, match="mtu 1279 is too small for IPv6"):
        gpasst.Network(mtu=1279, subnet6="fd01::/64")


KILLED = """
import os, signal, gpasst
with gpasst.Network() as lan:
    lan.host("a").run(["cat", "/etc/hosts"], check=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_file_of_names_ends_with_a_program_that_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", KILLED]
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert done.returncode == -9
    assert done.stdout.endswith(" a\n")
    until(lambda: not os.listdir(tmp_path), "the file gone")


def test_threads_open_hosts_at_once() -> None:
    with gpasst.Network("lan") as lan, ThreadPoolExecutor(8) as threads:
        hosts = list(threads.map(lan.host, (f"host{number}" for number in range(16))))
        assert len({host.ip4 for host in hosts}) == 16
        with udp(hosts[0], hosts[0].ip4) as server:
            for host in hosts[1:]:
                with udp(host) as client:
                    assert exchange(client, server) == host.ip4


@pytest.mark.parametrize("which", [0, 1])
def test_a_network_that_ends_while_hosts_change_waits_for_them(which: int) -> None:
    networks = [gpasst.Network("left"), gpasst.Network("right")]
    for network in networks:
        network.open()
    a = networks[0].host("a")
    started = threading.Event()

    def move() -> str:
        while True:
            for network in reversed(networks):
                try:
                    a.move(network)
                except gpasst.ConfigurationError as error:
                    return error.message
                started.set()

    with ThreadPoolExecutor(1) as threads:
        moving = threads.submit(move)
        assert started.wait(DEADLINE)
        networks[which].close()
        assert moving.result(DEADLINE).endswith((" is not open", " was closed meanwhile", " is in 0 networks"))
    for network in networks:
        network.close()
    assert a.interfaces == ()


def test_two_hundred_hosts() -> None:
    with gpasst.Network("lan") as lan:
        lan.host("first")
        before = usage()
        hosts = lan.hosts(*(f"host{number}" for number in range(200)))
        assert usage().memory - before.memory < 200 * HOST_KIB
        with udp(hosts[-1], hosts[-1].ip4) as server:
            for host in (hosts[0], hosts[100]):
                with udp(host) as client:
                    assert exchange(client, server) == host.ip4


def test_a_network_may_be_closed_by_two_threads(
    lans: tuple[gpasst.Network, gpasst.Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = lans
    hosts = left.hosts("a", "b")
    right.join(hosts[0])

    def end_programs(host: gpasst.Host) -> None:
        # While this thread has begun to close it, another one closes all that it finds.
        monkeypatch.undo()
        for network in lans:
            closer = threading.Thread(target=network.close, daemon=True)
            closer.start()
            closer.join(DEADLINE)
            assert not closer.is_alive()

    monkeypatch.setattr(gpasst.Host, "_end_programs", end_programs)
    left.close()
    for host in hosts:
        with pytest.raises(gpasst.ConfigurationError, match="is not open"):
            host.run(["true"])


def test_a_host_that_is_closed_meanwhile_is_out_of_the_networks_it_joined(
    lans: tuple[gpasst.Network, gpasst.Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = lans
    a = left.host("a")
    right.join(a)
    change = vars(gpasst.Host)["_change"]

    def close_first(host: gpasst.Host, function: Any) -> Any:
        monkeypatch.undo()
        host.close()
        return change(host, function)

    monkeypatch.setattr(gpasst.Host, "_change", close_first)
    right.close()
    assert a.interfaces == ()


@pytest.mark.parametrize("start", ["run", "popen"])
@pytest.mark.parametrize("where", ["gpasst.Host._live_files", "gpasst.api.inhabited.enter_command"])
def test_a_host_that_is_closed_while_a_program_starts_says_so(
    lans: tuple[gpasst.Network, gpasst.Network], monkeypatch: pytest.MonkeyPatch, start: str, where: str
) -> None:
    a = lans[0].host("a")
    a.run(["true"], check=True)
    function = pkgutil.resolve_name(where)

    def close_first(*args: Any, **options: Any) -> Any:
        done = function(*args, **options)
        a.close()
        return done

    monkeypatch.setattr(where, close_first)
    with pytest.raises(gpasst.ConfigurationError, match="host a is not open"):
        getattr(a, start)(["true"], stderr=subprocess.DEVNULL)


def test_a_host_without_its_process_says_that_it_cannot_be_killed(lans: tuple[gpasst.Network, gpasst.Network]) -> None:
    a = lans[0].host("a")
    keeper = os.pidfd_open(a._namespace.pid)  # type: ignore[union-attr]  # noqa: SLF001
    try:
        signal.pidfd_send_signal(keeper, signal.SIGKILL)
        select.select([keeper], [], [], DEADLINE)
        with pytest.raises(gpasst.PlatformError, match="the process that holds the namespace ended"):
            a.kill()
    finally:
        os.close(keeper)


def test_a_network_may_be_joined_again_after_a_join_that_was_given_up(
    lans: tuple[gpasst.Network, gpasst.Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = lans
    a, b = left.host("a"), right.host("b")
    attach = Namespace.attach

    def give_up(*args: Any) -> None:
        os.close(attach(*args).descriptor)
        raise gevent.GreenletExit

    with monkeypatch.context() as patched, pytest.raises(gevent.GreenletExit):
        patched.setattr(Namespace, "attach", give_up)
        right.join(a)
    interface = right.join(a)
    assert interface.name == "right"
    with udp(b, b.ip4) as server, udp(a) as client:
        assert exchange(client, server) == interface.ip4
