"""Port forwards end to end: every form of specification, and what follows the sockets that are bound."""

from __future__ import annotations

import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

import gpasst
from gpasst.flow.record import Forward
from gpasst.proxy import follower
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.lab import (
    FAR4,
    HOST,
    HOST4,
    HOST4_SECOND,
    HOST6,
    REMOTE,
    REMOTE4,
    REMOTE6,
    UPSTREAM,
    Remote,
    bound,
    host_socket,
)
from tests.support.need import need
from tests.support.ready import sleeper, until

pytestmark = pytest.mark.usefixtures("tun", "remote")

SECOND = {4: "192.0.2.9", 6: "2001:db8::9"}  # address that a namespace is given besides its own
LOOK_SECONDS = 0.01  # between two looks at what is bound, lest tests wait
MANY = 1000

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


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "FOLLOW_SECONDS", LOOK_SECONDS)


@contextmanager
def pasta(**options: Any) -> Iterator[gpasst.Pasta]:
    """A namespace whose host has all its ports again when it ends."""
    with gpasst.Pasta(config_net=True, **options) as net:
        yield net
        listed = [forward for forward in net.forwards if not forward.inside]
    for forward in listed:
        assert can_be_bound(forward.address, forward.port)


def can_be_bound(address: str, port: int, net: gpasst.Pasta | None = None) -> bool:
    """Whether a port is free, on the host or in a namespace."""
    family = FAMILY[6 if ":" in address else 4]
    try:
        with bound(net.socket(family) if net else host_socket(family), address, port):
            return True
    except OSError:
        return False


def inside(net: gpasst.Pasta, family: int, port: int, address: str = "") -> Any:
    """A socket bound in the namespace."""
    return bound(net.socket(FAMILY[family]), address or ANY[family], port)


def outside(family: int, port: int = 0, address: str = "") -> Any:
    """A socket bound on the host."""
    return bound(host_socket(FAMILY[family]), address or ANY[family], port)


def automatic(net: gpasst.Pasta, inside: bool = False) -> set[tuple[str, int, str | None, int]]:
    """Give address, port, interface and target of the listeners that follow bound sockets, on one side."""
    return {
        (forward.address, forward.port, forward.interface, forward.target)
        for forward in net.forwards
        if forward.automatic and forward.inside == inside
    }


def after_a_look(net: gpasst.Pasta, inward: bool) -> set[tuple[str, int, str | None, int]]:
    """Give what is followed once everything that is bound now has been looked at.

    :param inward: whether it is the namespace's sockets that are followed.
    """
    markers = (7996, 7997) if inward else (7998, 7999)

    def is_followed(port: int) -> bool:
        return port in {entry[3] for entry in automatic(net, not inward)}

    # What appears first may have been bound while the list was made; the list with the second began after that.
    for marker in markers:
        with bound(net.socket() if inward else host_socket(socket.AF_INET), "0.0.0.0", marker):
            until(lambda port=marker: is_followed(port), "a look")
    # And once these have gone, so has all that ended before them.
    until(lambda: not any(map(is_followed, markers)), "another look")
    return automatic(net, not inward)


def ask(client: socket.socket, service: socket.socket, target: tuple[str, int]) -> Any:
    """Send to a service and let it answer; give whom it took the client for."""
    client.sendto(b"question", target)
    data, sender = service.recvfrom(99)
    assert data == b"question"
    service.sendto(b"answer", sender)
    data, answerer = client.recvfrom(99)
    assert (data, answerer[:2]) == (b"answer", target)
    return sender[:2]


def refused(client: socket.socket, target: tuple[str, int]) -> bool:
    """Whether nothing listens there."""
    client.connect(target)
    client.send(b"?")
    try:
        client.recv(9)
    except ConnectionRefusedError:
        return True
    return False


# --- Forms of specifications ---------------------------------------------------------------------------------------


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


def test_the_last_option_wins(remote: Remote, family: int) -> None:
    with pasta(udp_ports=("5000-5001:6000-6001", "5000:7000")) as net:
        with inside(net, family, 7000) as last, inside(net, family, 6001) as first:
            with bound(remote.socket(FAMILY[family]), REMOTE[family]) as client:
                ask(client, last, (HOST[family], 5000))
                ask(client, first, (HOST[family], 5001))


# --- Ports that cannot be had --------------------------------------------------------------------------------------


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


# --- What is bound is followed -------------------------------------------------------------------------------------


def test_the_host_follows_the_namespace(remote: Remote, family: int) -> None:
    with pasta(udp_ports="auto") as net:
        assert not net.forwards
        with inside(net, family, 7000) as service:
            until(lambda: net.forwards, "followed")
            assert net.forwards == (Forward("udp", ANY[family], 7000, None, 7000, None, inside=False, automatic=True),)
            with bound(remote.socket(FAMILY[family]), REMOTE[family]) as client:
                assert ask(client, service, (HOST[family], 7000)) == client.getsockname()[:2]
            with outside(family, address=LOOPBACK[family]) as client:
                assert ask(client, service, (LOOPBACK[family], 7000))[0] == HOST[family]
        until(lambda: not net.forwards, "no longer followed")
        until(lambda: can_be_bound(ANY[family], 7000), "the port free again")
        assert net.statistics().pairs == 0, "what passed the listener ended with it"


def test_the_namespace_follows_the_host(family: int) -> None:
    with pasta(udp_ns="auto") as net:
        with outside(family, 7000) as service:
            expected = Forward("udp", ANY[family], 7000, "lo", 7000, None, inside=True, automatic=True)
            until(lambda: expected in net.forwards, "followed")
            with inside(net, family, 0, LOOPBACK[family]) as client:
                assert ask(client, service, (LOOPBACK[family], 7000))[0] == LOOPBACK[family]
        until(lambda: expected not in net.forwards, "no longer followed")
        until(lambda: can_be_bound(ANY[family], 7000, net), "the port free again")


def test_a_service_that_comes_back_is_followed_again(remote: Remote) -> None:
    with pasta(udp_ports="auto") as net, bound(remote.socket(socket.AF_INET), REMOTE4) as client:
        for _ in range(3):
            with inside(net, 4, 7000) as service:
                until(lambda: net.forwards, "followed")
                ask(client, service, (HOST4, 7000))
            until(lambda: not net.forwards, "no longer followed")


def test_dual_stack_services_are_followed_in_both_families(remote: Remote) -> None:
    with pasta(udp_ports="auto") as net, net.socket(socket.AF_INET6) as service:
        service.bind(("::", 7000))
        service.settimeout(2)
        until(lambda: len(net.forwards) == 2, "followed")
        for family in (4, 6):
            with bound(remote.socket(FAMILY[family]), REMOTE[family]) as client:
                ask(client, service, (HOST[family], 7000))


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ("auto", {(6999, 6999), (7000, 7000), (7010, 7010), (7011, 7011)}),
        ("7000-7010,7996-7999,auto", {(7000, 7000), (7010, 7010)}),
        ("~7000-7010,auto", {(6999, 6999), (7011, 7011)}),
        ("8000-8010:7000-7010,7996-7999,auto", {(8000, 7000), (8010, 7010)}),
    ],
)
@pytest.mark.parametrize("inward", [True, False])
def test_which_ports_are_followed(specification: str, expected: set[tuple[int, int]], inward: bool) -> None:
    with pasta(**{"udp_ports" if inward else "udp_ns": specification}) as net, ExitStack() as stack:
        for port in (6999, 7000, 7010, 7011):
            stack.enter_context(inside(net, 4, port) if inward else outside(4, port))
        found = after_a_look(net, inward)
        # Where nothing restricts it, what other tests left to the kernel to choose is followed too.
        assert {(port, target) for _, port, _, target in found if port < 32768} == expected


def test_a_remapped_port_leads_to_what_is_followed(remote: Remote) -> None:
    with pasta(udp_ports="8000-8010:7000-7010,auto") as net, inside(net, 4, 7005) as service:
        until(lambda: net.forwards, "followed")
        with bound(remote.socket(socket.AF_INET), REMOTE4) as client:
            ask(client, service, (HOST4, 8005))


def test_one_place_can_be_followed_to(remote: Remote) -> None:
    with pasta(udp_ports=f"{HOST4_SECOND}/auto") as net, inside(net, 4, 7000) as service:
        until(lambda: net.forwards, "followed")
        with bound(remote.socket(socket.AF_INET), REMOTE4) as client:
            ask(client, service, (HOST4_SECOND, 7000))
            assert refused(client, (HOST4, 7000))


def test_services_on_the_namespaces_loopback_are_not_followed(family: int) -> None:
    with pasta(udp_ports="auto") as net, inside(net, family, 7000, LOOPBACK[family]):
        assert after_a_look(net, inward=True) == set()


def test_but_they_are_where_loopback_leads_to_loopback(family: int) -> None:
    with pasta(udp_ports="auto", host_lo_to_ns_lo=True) as net:
        with inside(net, family, 7000, LOOPBACK[family]) as service:
            assert after_a_look(net, inward=True) == {(LOOPBACK[family], 7000, None, 7000)}
            with outside(family, address=LOOPBACK[family]) as client:
                assert ask(client, service, (LOOPBACK[family], 7000))[0] == LOOPBACK[family]


def test_services_on_the_hosts_loopback_are_followed_address_by_address() -> None:
    with pasta(udp_ns="auto") as net, outside(4, 7000, "127.0.0.53") as resolver, outside(4, 7001, HOST4):
        found = after_a_look(net, inward=False)
        assert {entry for entry in found if entry[1] in (7000, 7001)} == {("127.0.0.53", 7000, None, 7000)}
        with inside(net, 4, 0, "127.0.0.1") as client:
            ask(client, resolver, ("127.0.0.53", 7000))
            assert refused(client, ("127.0.0.1", 7000))


def test_neither_direction_follows_the_other() -> None:
    """Or a port that is bound once would be held on both sides for ever."""
    with pasta(udp_ports="auto", udp_ns="auto") as net, inside(net, 4, 7000), outside(4, 7001):
        for _ in range(3):
            outward, inward = after_a_look(net, inward=False), after_a_look(net, inward=True)
            assert {entry for entry in inward if entry[1] in (7000, 7001)} == {("0.0.0.0", 7000, None, 7000)}
            assert {entry for entry in outward if entry[1] in (7000, 7001)} == {("0.0.0.0", 7001, "lo", 7001)}


def test_two_namespaces_that_follow_everything_do_not_feed_each_other() -> None:
    """A service of one is seen by the other as the host's; when it ends, so does all that stood for it."""
    both: dict[str, Any] = {"udp_ports": "auto", "udp_ns": "auto"}
    with pasta(**both) as one, pasta(**both) as two:
        with inside(one, 4, 7000) as service:
            until(lambda: ("0.0.0.0", 7000, "lo", 7000) in automatic(two, inside=True), "followed twice over")
            with inside(two, 4, 0, "127.0.0.1") as client:
                ask(client, service, ("127.0.0.1", 7000))
            assert after_a_look(two, inward=True) == set()
        for net in (one, two):
            for side in (False, True):
                until(lambda n=net, s=side: 7000 not in {entry[1] for entry in automatic(n, s)}, "no longer followed")


def test_a_named_port_comes_before_a_followed_one(remote: Remote) -> None:
    with pasta(udp_ports=("7000:7001", "auto"), ipv4_only=True) as net:
        with inside(net, 4, 7000), inside(net, 4, 7001) as named:
            assert after_a_look(net, inward=True) == {("0.0.0.0", 7001, None, 7001)}
            with bound(remote.socket(socket.AF_INET), REMOTE4) as client:
                ask(client, named, (HOST4, 7000))
                ask(client, named, (HOST4, 7001))
        assert after_a_look(net, inward=True) == set()
        assert [(forward.port, forward.automatic) for forward in net.forwards] == [(7000, False)]


def test_the_proxys_own_listeners_are_not_followed() -> None:
    with pasta(udp_ns="5300:53", udp_ports="auto") as net:
        assert after_a_look(net, inward=True) == set()
    with pasta(udp_ns="auto", udp_ports="5300:53") as net:
        assert {entry for entry in after_a_look(net, inward=False) if entry[1] in (53, 5300)} == set()


def test_nor_are_the_sockets_that_carry_the_namespaces_traffic(remote: Remote) -> None:
    with pasta(udp_ns="auto") as net, bound(remote.socket(socket.AF_INET), FAR4) as far:
        with inside(net, 4, 7000) as guest:
            ask(guest, far, far.getsockname())
            assert 7000 not in {entry[1] for entry in after_a_look(net, inward=False)}


def test_a_port_that_becomes_free_is_followed_then(remote: Remote) -> None:
    with pasta(udp_ports="auto") as net, inside(net, 4, 7000) as service:
        with outside(4, 7001), inside(net, 4, 7001):
            assert {port for _, port, _, _ in after_a_look(net, inward=True)} == {7000}
        with outside(4, 7002) as taken, inside(net, 4, 7002) as late:
            assert 7002 not in {port for _, port, _, _ in after_a_look(net, inward=True)}
            taken.close()
            until(lambda: 7002 in {forward.port for forward in net.forwards}, "followed once it is free")
            with bound(remote.socket(socket.AF_INET), REMOTE4) as client:
                ask(client, late, (HOST4, 7002))
                ask(client, service, (HOST4, 7000))


@pytest.mark.parametrize("inward", [True, False])
def test_a_thousand_sockets_at_once(inward: bool) -> None:
    first, last = 10_000, 10_000 + MANY - 1
    specification = f"{first}-{last},auto"
    with pasta(**{"udp_ports" if inward else "udp_ns": specification}) as net:
        with ExitStack() as stack:
            for port in range(first, last + 1):
                stack.enter_context(inside(net, 4, port) if inward else outside(4, port))
            until(lambda: len(net.forwards) == MANY, "all followed")
            assert {forward.port for forward in net.forwards} == set(range(first, last + 1))
            with outside(4, address="127.0.0.1") if inward else inside(net, 4, 0, "127.0.0.1") as client:
                client.sendto(b"?", ("127.0.0.1", last))
                until(lambda: net.statistics().datagrams_spliced == 1, "carried")
        until(lambda: not net.forwards, "none left")
