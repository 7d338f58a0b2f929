"""Port forwards that follow the sockets that are bound."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import pytest

import gpasst
from gpasst.flow.record import Forward
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.forwards import ask, automatic, can_be_bound, inside, outside, pasta, refused
from tests.support.lab import FAR4, HOST, HOST4, HOST4_SECOND, REMOTE, REMOTE4, Remote, bound, host_socket
from tests.support.ready import until

pytestmark = pytest.mark.usefixtures("tun", "remote")

MANY = 1000


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


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_program_in_the_namespace_takes_a_followed_port(family: int, option: int) -> None:
    with pasta(udp_ns="auto") as net, outside(family, 7000), outside(family, 7001):
        until(lambda: {entry[1] for entry in automatic(net, True)} == {7000, 7001}, "followed")
        with net.socket(FAMILY[family]) as program, net.socket(FAMILY[family]) as client:
            program.settimeout(2)
            program.setsockopt(socket.SOL_SOCKET, option, 1)
            program.bind((ANY[family], 7000))
            until(lambda: {entry[1] for entry in automatic(net, True)} == {7001}, "given back")
            client.sendto(b"?", (LOOPBACK[family], 7000))
            assert program.recv(9) == b"?"
        until(lambda: {entry[1] for entry in automatic(net, True)} == {7000, 7001}, "followed again")


def test_a_port_that_the_namespace_uses_is_not_taken(family: int) -> None:
    with pasta(udp_ns="auto") as net, net.socket(FAMILY[family]) as program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        program.bind((ANY[family], 7000))
        with outside(family, 7000), outside(family, 7001):
            until(lambda: {entry[1] for entry in automatic(net, True)} == {7001}, "followed")


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
