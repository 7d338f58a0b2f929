"""Where TCP connections of a guest lead, by the options that change addresses."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import gpasst
from tests.support import machines
from tests.support.families import ANY, FAMILY, LOOPBACK
from tests.support.guests import tap_index
from tests.support.lab import (
    FAR,
    FAR4,
    HOST,
    HOST4,
    HOST4_SECOND,
    HOST_LINK_LOCAL,
    REMOTE,
    REMOTE_LINK_LOCAL,
    UPSTREAM,
    Remote,
)
from tests.support.machines import Machine
from tests.support.passt import stream_of
from tests.support.ready import until
from tests.support.streams import FORWARD, PORT, accepted, carried, connected, is_reset, listening, patient

pytestmark = pytest.mark.usefixtures("tun", "remote")

both_links = pytest.mark.parametrize("make", [machines.tap, machines.stream], ids=["tap", "stream"])
ALIAS = {4: "192.0.2.99", 6: "2001:db8::99"}
DNS = {4: "192.0.2.53", 6: "2001:db8::53"}
DNS_PORT, DNS_TLS_PORT = 53, 853


@contextmanager
def met(client: socket.socket, target: Any, server: socket.socket, address: Any) -> Iterator[Any]:
    """Connect to `target` and meet the server that listens at `address`; yields the address that it sees."""
    with client, listening(server, *address) as (listener, bound):
        client.connect((target, bound[1]))
        assert client.getpeername()[:2] == (target, bound[1])
        other, seen = listener.accept()
        with patient(other):
            assert carried(client, other, b"question")
            assert carried(other, client, b"answer")
            yield seen


def host(family: int) -> socket.socket:
    return socket.socket(FAMILY[family], socket.SOCK_STREAM)


def refuses(machine: Machine, target: str, port: int) -> int:
    """Return the error with which a connect fails."""
    with machine.socket(6 if ":" in target else 4) as sock:
        return sock.connect_ex((target, port))


@both_links
def test_the_gateway_is_the_hosts_loopback(make: Any, family: int) -> None:
    with make() as guest, met(guest.socket(family), REMOTE[family], host(family), (LOOPBACK[family],)) as seen:
        assert seen[0] == LOOPBACK[family]


@both_links
def test_without_that_the_gateway_is_the_machine_that_it_is(make: Any, remote: Remote, family: int) -> None:
    server = remote.socket(FAMILY[family], socket.SOCK_STREAM)
    with make(no_map_gw=True) as guest, met(guest.socket(family), REMOTE[family], server, (REMOTE[family],)) as seen:
        assert seen[0] == HOST[family]


@both_links
def test_a_chosen_address_is_the_hosts_loopback(make: Any, remote: Remote, family: int) -> None:
    with make(map_host_loopback=ALIAS[family]) as guest:
        with met(guest.socket(family), ALIAS[family], host(family), (LOOPBACK[family],)):
            pass
        server = remote.socket(FAMILY[family], socket.SOCK_STREAM)
        with met(guest.socket(family), REMOTE[family], server, (REMOTE[family],)):
            pass


@both_links
def test_a_chosen_address_is_the_hosts_own(make: Any, family: int) -> None:
    """The guest has the host's address, so it needs another one for it."""
    with (
        make(map_guest_addr=ALIAS[family]) as guest,
        met(guest.socket(family), ALIAS[family], host(family), (HOST[family],)) as seen,
    ):
        assert seen[0] == HOST[family]


@both_links
@pytest.mark.parametrize("port", [DNS_PORT, DNS_TLS_PORT])
def test_the_address_of_the_resolver(make: Any, family: int, port: int) -> None:
    """Names over TCP and over TLS go to the host's resolver, all else where the address is."""
    with make(dns_forward=DNS[family], dns_host=LOOPBACK[family]) as guest:
        with met(guest.socket(family), DNS[family], host(family), (LOOPBACK[family], port)):
            pass
        with listening(host(family), LOOPBACK[family]) as (server, address):
            with guest.socket(family) as sock:
                sock.settimeout(0.1)
                # Nobody answers for that address on the remote machine's link.
                assert sock.connect_ex((DNS[family], address[1])) == errno.EAGAIN
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()


def test_a_link_local_address_of_the_remote_machine(remote: Remote) -> None:
    with machines.tap() as guest, guest.socket(6) as sock:
        far = remote.socket(socket.AF_INET6, socket.SOCK_STREAM)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"dn0")
        with listening(far, REMOTE_LINK_LOCAL) as (server, address):
            sock.connect((REMOTE_LINK_LOCAL, address[1], 0, tap_index(guest.net)))
            with accepted(server) as other:
                assert other.getpeername()[0].partition("%")[0] == HOST_LINK_LOCAL
                assert carried(sock, other, b"question") and carried(other, sock, b"answer")


def test_a_client_on_the_hosts_loopback_is_shown_as_the_gateway(family: int) -> None:
    with (
        machines.tap(tcp_ports=FORWARD, no_splice=True) as guest,
        listening(guest.socket(family), ANY[family], PORT) as (server, _),
    ):
        with patient(host(family)) as client:
            client.connect((LOOPBACK[family], PORT))
            other, seen = server.accept()
            with patient(other):
                # The gateway if it is link-local, or of IPv4; else what stands for the host on the link.
                assert seen[0].partition("%")[0] == (REMOTE[4] if family == 4 else HOST_LINK_LOCAL)
                assert carried(client, other, b"question") and carried(other, client, b"answer")


@both_links
def test_the_source_address_and_interface_of_outgoing_connections(make: Any, remote: Remote) -> None:
    server = remote.socket(socket.AF_INET, socket.SOCK_STREAM)
    with make(outbound=HOST4_SECOND, outbound_if4=UPSTREAM) as guest:
        with met(guest.socket(4), FAR4, server, (FAR4,)) as seen:
            assert seen[0] == HOST4_SECOND


@pytest.mark.parametrize("only", [4, 6])
def test_one_family_alone(remote: Remote, only: int) -> None:
    other = 10 - only
    with machines.tap(**{f"ipv{only}_only": True}) as guest:
        with connected(guest, remote, only) as (one, far):
            assert carried(one, far, b"?")
        assert refuses(guest, FAR[other], 80) == errno.ENETUNREACH


def test_switched_off_nothing_is_answered(remote: Remote, family: int) -> None:
    with machines.tap(no_tcp=True) as guest, guest.socket(family) as sock:
        sock.settimeout(0.1)
        assert sock.connect_ex((FAR[family], 80)) == errno.EAGAIN
        assert guest.net.statistics().drops[gpasst.Drop.PROTOCOL_DISABLED.value] >= 1


def test_a_forward_to_another_port_of_the_guest_keeps_the_client(remote: Remote, family: int) -> None:
    with machines.tap(tcp_ports="8080:80") as guest, listening(guest.socket(family), HOST[family], 80) as (server, _):
        with patient(remote.socket(FAMILY[family], socket.SOCK_STREAM)) as client:
            client.bind((FAR[family], 0))
            client.connect((HOST[family], 8080))
            other, seen = server.accept()
            with patient(other):
                assert seen[:2] == client.getsockname()[:2]
                assert other.getsockname()[:2] == (HOST[family], 80)
                assert carried(client, other, b"question") and carried(other, client, b"answer")


def test_without_a_guest_a_client_is_reset(remote: Remote) -> None:
    with machines.stream(tcp_ports=FORWARD) as guest:
        guest.unplug()
        until(lambda: not stream_of(guest.net).ready, "the end of the guest's connection")
        with patient(remote.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
            try:
                client.connect((HOST4, PORT))
            except ConnectionResetError:
                return
            assert is_reset(client)
