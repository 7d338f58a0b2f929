"""The link and addresses that the helper makes, against the real kernel."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from dataclasses import replace
from typing import Any

import pytest

from gpasst.errors import ConfigurationError, PlatformError
from gpasst.helper.client import Helper, Namespace, OpenRequest, Route
from gpasst.linux import IFA_F_TENTATIVE
from tests.support.namespaces import BARE, CONFIGURED, PATIENCE, facts_inside, inside, script

SIOCGIFTXQLEN = 0x8942


def test_configured_link(configured: Namespace) -> None:
    assert configured.name == "eth7"
    assert configured.mac == bytes.fromhex("020000000007")
    assert configured.link_local == "fe80::ff:fe00:7"
    assert "csum" in configured.offloads
    assert not os.get_blocking(configured.tap)
    facts = facts_inside(configured)
    assert facts["links"] == [
        {
            "index": 1,
            "name": "lo",
            "mac": "00:00:00:00:00:00",
            "up": True,
            "mtu": 65536,
            "loopback": True,
        },
        {
            "index": configured.index,
            "name": "eth7",
            "mac": "02:00:00:00:00:07",
            "up": True,
            "mtu": 9000,
            "loopback": False,
        },
    ]
    found = {
        (entry["family"], entry["address"], entry["prefix"])
        for entry in facts["addresses"]
        if entry["index"] == configured.index
    }
    assert found == {(4, "10.1.2.3", 24), (6, "fd11::3", 64), (6, "fe80::ff:fe00:7", 64)}
    assert not any(entry["flags"] & IFA_F_TENTATIVE for entry in facts["addresses"])
    defaults = [
        (route["family"], route["gateway"], route["metric"]) for route in facts["routes"] if not route["prefix"]
    ]
    assert defaults == [(4, "10.1.2.1", 50), (6, "fd11::1", 1024)]


def test_transmit_queue_takes_bursts(configured: Namespace) -> None:
    (descriptor,) = configured.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(fileno=descriptor) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFTXQLEN, struct.pack("16si20x", configured.name.encode(), 0))
    assert struct.unpack_from("i", answer, 16) == (10_000,)


def test_frames_come_out_of_the_tap(configured: Namespace) -> None:
    (descriptor,) = configured.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(fileno=descriptor) as sock:
        sock.sendto(b"?", ("10.1.2.99", 9))
    for _ in range(20):  # multicast listener reports may come first
        assert select.select([configured.tap], [], [], PATIENCE)[0]
        frame = os.read(configured.tap, 65536)[10:]
        if frame[12:14] == b"\x08\x06":
            break
    assert frame[6:12] == configured.mac
    assert frame[38:42] == socket.inet_aton("10.1.2.99")


def test_unconfigured_link_stays_down(helper: Helper, tun: None) -> None:
    with helper.open(OpenRequest(mac="02:00:00:00:00:08", offload=False)) as namespace:
        assert namespace.mac == bytes.fromhex("020000000008")
        assert namespace.offloads == frozenset()
        facts = facts_inside(namespace)
        link = next(entry for entry in facts["links"] if entry["index"] == namespace.index)
        assert (link["up"], link["mac"]) == (False, "02:00:00:00:00:08")
        assert all(entry["index"] == 1 for entry in facts["addresses"])


def test_gateway_outside_of_the_network_gets_a_host_route(helper: Helper, tun: None) -> None:
    request = OpenRequest(
        configure=True,
        addresses=(("10.1.2.3", 32), ("fd11::3", 128)),
        routes=(
            Route(None, 0, "172.16.0.1"),
            Route("192.0.2.0", 24, "172.16.0.1"),
            Route("198.51.100.0", 24, "172.16.0.9", onlink=True),
            Route("203.0.113.0", 24),
            Route(None, 0, "fd22::1", family=6),
            Route("fd33::", 64, "fe80::1", family=6),
        ),
    )
    with helper.open(request) as namespace:
        routes = {
            (route["destination"], route["prefix"], route["gateway"]) for route in facts_inside(namespace)["routes"]
        }
    assert routes >= {
        (None, 0, "172.16.0.1"),
        ("172.16.0.1", 32, None),
        ("192.0.2.0", 24, "172.16.0.1"),
        ("198.51.100.0", 24, "172.16.0.9"),
        ("203.0.113.0", 24, None),
        (None, 0, "fd22::1"),
        ("fd22::1", 128, None),
        ("fd33::", 64, "fe80::1"),
    }
    assert ("172.16.0.9", 32, None) not in routes


BOTH = OpenRequest(
    ifname="eth7",
    configure=True,
    addresses=(("10.1.2.3", 24), ("fd11::3", 64)),
    routes=(Route(None, 0, "10.1.2.1"), Route(None, 0, "fe80::1", family=6)),
    optional=(4, 6),
)


def joining(made: Namespace, **changes: Any) -> OpenRequest:
    """Return a request to join a namespace."""
    own = f"/proc/{os.getpid()}/fd"
    return replace(BOTH, netns=f"{own}/{made.netns}", userns=f"{own}/{made.userns}", **changes)


def families_of(namespace: Namespace) -> set[int]:
    return {entry["family"] for entry in facts_inside(namespace)["addresses"] if entry["index"] == namespace.index}


def test_a_link_too_narrow_for_ipv6_has_ipv4(helper: Helper, tun: None) -> None:
    with helper.open(replace(BOTH, mtu=1000)) as namespace:
        assert namespace.lacking == {6}
        assert namespace.notes == ("the namespace goes without IPv6: the MTU of eth7 is below 1280",)
        assert families_of(namespace) == {4}


def test_a_namespace_with_ipv6_switched_off_has_ipv4(helper: Helper, tun: None) -> None:
    switch = "open('/proc/sys/net/ipv6/conf/default/disable_ipv6', 'w').write('1')"
    with helper.open(BARE) as made:
        assert inside(made, *script(switch)).returncode == 0
        request = joining(made)
        with helper.open(request) as namespace:
            assert namespace.lacking == {6}
            assert namespace.notes == (
                "the namespace goes without IPv6: it is switched off there (sysctl net.ipv6.conf.eth7.disable_ipv6)",
            )
            assert families_of(namespace) == {4}
        with pytest.raises(PlatformError, match=r"^cannot add the address fd11::3/64: Permission denied; IPv6 may be"):
            helper.open(replace(request, optional=(4,)))


def test_copies_that_the_kernel_refuses_are_left_out(helper: Helper, tun: None) -> None:
    routes = (Route("10.1.2.0", 24, metric=0), Route("10.9.0.1", 16), *BOTH.routes)
    with helper.open(replace(BOTH, addresses=(*BOTH.addresses, ("10.0.0.1", 33)), routes=routes)) as namespace:
        assert not namespace.lacking
        assert families_of(namespace) == {4, 6}
        assert namespace.notes == (
            "left out in the namespace: cannot add the address 10.0.0.1/33: Invalid argument",
            "left out in the namespace: cannot add the route 10.9.0.1/16: Invalid argument",
        )
        defaults = {route["family"] for route in facts_inside(namespace)["routes"] if not route["prefix"]}
        assert defaults == {4, 6}


def test_facts_prefer_local_addresses_first_hops_and_low_metrics(helper: Helper, tun: None) -> None:
    more = """
from pyroute2.iproute import IPRoute
with IPRoute() as ipr:
    index = ipr.link_lookup(ifname="eth7")[0]
    ipr.addr("add", index=index, local="10.7.7.1", address="10.7.7.2", prefixlen=32)
    hops = [{"gateway": "10.1.2.8", "oif": index}, {"gateway": "10.1.2.9", "oif": index}]
    ipr.route("add", family=2, dst="default", priority=10, multipath=hops)
    ipr.route("add", family=2, dst="198.51.100.0/24", priority=7, oif=index, via={"family": 10, "addr": "fe80::9"})
    ipr.route("add", dst="192.0.2.0/24", oif=index, table=100)
    ipr.route("add", dst="192.0.2.0/24", type="blackhole")
"""
    with helper.open(CONFIGURED) as namespace:
        facts = facts_inside(namespace, more)
        index = namespace.index
    assert "10.7.7.1" in {entry["address"] for entry in facts["addresses"]}
    assert "10.7.7.2" not in {entry["address"] for entry in facts["addresses"]}
    first, second = [route for route in facts["routes"] if route["family"] == 4][:2]
    assert (first["gateway"], first["metric"], first["oif"]) == ("10.1.2.8", 10, index)
    assert (second["gateway"], second["metric"]) == ("10.1.2.1", 50)
    assert all(route["destination"] != "192.0.2.0" for route in facts["routes"])
    (via,) = [route for route in facts["routes"] if route["destination"] == "198.51.100.0"]
    assert (via["gateway"], via["metric"], via["oif"]) == ("fe80::9", 7, index)


PREPARED = """
from pyroute2.iproute import IPRoute
with IPRoute() as ipr:
    ipr.link("add", ifname="tap0", kind="tuntap", mode="tap")
    index = ipr.link_lookup(ifname="tap0")[0]
    ipr.link("set", index=index, state="up")
    ipr.addr("add", index=index, address="10.1.2.3", prefixlen=24)
"""


def test_a_tap_that_was_prepared_is_used_and_stays(helper: Helper, tun: None) -> None:
    """As rootlesskit prepares it."""
    with helper.open(BARE) as made:
        done = inside(made, *script(PREPARED))
        assert done.returncode == 0, done.stderr
        for _ in range(2):
            with helper.open(joining(made, ifname="tap0", mac="02:00:00:00:00:09", optional=())) as namespace:
                assert (namespace.name, namespace.mac) == ("tap0", bytes.fromhex("020000000009"))
                assert "csum" in namespace.offloads
                assert families_of(namespace) == {4, 6}
                with socket.socket(fileno=namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)[0]) as sock:
                    sock.sendto(b"?", ("10.1.2.99", 9))
                assert select.select([namespace.tap], [], [], PATIENCE)[0]


def test_a_second_proxy_on_a_namespace_is_one_line(helper: Helper, tun: None) -> None:
    with helper.open(BARE) as made, helper.open(joining(made)), pytest.raises(ConfigurationError) as caught:
        helper.open(joining(made))
    assert str(caught.value) == (
        "the tap device eth7 is in use, perhaps by another gpasst or pasta on this namespace; "
        "end that one, or choose another name: --ns-ifname"
    )
