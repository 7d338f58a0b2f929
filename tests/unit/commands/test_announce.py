"""What is said at the start: every fact of the guest's network that was chosen, and nothing that does not hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpasst.api.passt import Passt
from gpasst.commands.announce import ROUTES_SHOWN, describe, qemu_command
from gpasst.config import Config
from gpasst.flow.network import GuestNetwork
from gpasst.flow.record import Forward
from gpasst.helper.request import Route
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST4, GUEST6, HOST_LINK_LOCAL, RESOLVER4, RESOLVER6
from tests.support.networks import NETWORK4, NETWORK6, family_network, guest_network

NAMES = {7: "eth7"}


def said(config: Config | None = None, network: GuestNetwork | None = None) -> list[str]:
    return describe(config or Config(), network or guest_network(), NAMES.__getitem__)


def test_the_whole_of_an_ordinary_network() -> None:
    assert said() == [
        "template interface: eth7 (IPv4), eth7 (IPv6)",
        "MAC address of the host: 9a:55:9a:55:9a:55",
        f"IPv4: address {GUEST4}/24, gateway {GATEWAY4}",
        f"IPv4: {GATEWAY4} leads to the host's loopback",
        f"DHCP: assigns {GUEST4}, mask 255.255.255.0, router {GATEWAY4}",
        f"IPv6: address {GUEST6}/64, gateway {GATEWAY6}",
        f"IPv6: {GATEWAY6} leads to the host's loopback",
        f"DHCPv6: assigns {GUEST6}",
        f"NDP: the router is {HOST_LINK_LOCAL}",
    ]


def test_resolvers_and_search_domains() -> None:
    ip4 = family_network(4, resolvers=(NETWORK4.resolver,), dns_forward="192.0.2.53")
    ip6 = family_network(6, resolvers=(NETWORK6.resolver,), guest_alias="2001:db8::a")
    lines = said(network=guest_network(ip4, ip6, search=("example.org", "example.net")))
    assert f"IPv4: 192.0.2.53 leads to the resolver {RESOLVER4}" in lines
    assert f"IPv4 DNS: {RESOLVER4}" in lines
    assert "IPv6: 2001:db8::a leads to the host's own address" in lines
    assert f"IPv6 DNS: {RESOLVER6}" in lines
    assert "DNS search list: example.org, example.net" in lines


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"no_dhcp": True}, "DHCP:"),
        ({"no_dhcpv6": True}, "DHCPv6:"),
        ({"no_ra": True}, "NDP:"),
        ({"no_ndp": True}, "NDP:"),
        ({"config_net": True}, "NDP:"),
        ({"no_udp": True, "udp_ports": "5000"}, "UDP ports"),
        ({"no_tcp": True, "tcp_ports": "5000"}, "TCP ports"),
    ],
)
def test_what_is_switched_off_is_not_said(options: dict[str, Any], absent: str) -> None:
    assert not [line for line in said(Config(**options)) if line.startswith(absent)]


def test_no_default_route_and_local_mode() -> None:
    local = replace(NETWORK6, local=True, index=0, address=None)
    lines = said(network=guest_network(replace(NETWORK4, routed=False), local))
    assert lines[0] == "template interface: eth7 (IPv4), none, local mode (IPv6)"
    assert f"IPv4: address {GUEST4}/24, gateway none" in lines
    assert f"DHCP: assigns {GUEST4}, mask 255.255.255.0" in lines
    assert f"IPv6: address link-local only, gateway {GATEWAY6}" in lines
    assert not [line for line in lines if line.startswith("DHCPv6")]


def test_routes_are_few() -> None:
    routes = tuple(Route(f"10.{number}.0.0", 16, GATEWAY4) for number in range(ROUTES_SHOWN + 3))
    network = replace(guest_network(), routes=(Route(None, 0, GATEWAY4), *routes, Route(None, 0, "fe80::1", family=6)))
    (four, six) = [line for line in said(Config(config_net=True), network) if "routes" in line]
    assert four.startswith(f"IPv4 routes: default via {GATEWAY4}, 10.0.0.0/16 via {GATEWAY4}, ")
    assert four.endswith(", and 4 more")
    assert six == "IPv6 routes: default via fe80::1"


def test_forwards_are_shown_as_they_were_asked_for() -> None:
    config = Config(tcp_ports="8080:80", udp_ports=("5000-5009:6000-6009", "127.0.0.1/53,auto"), udp_ns=("auto",))
    assert said(config)[-3:] == [
        "TCP ports of the host lead to the guest: 8080:80",
        "UDP ports of the host lead to the guest: 5000-5009:6000-6009; 127.0.0.1/53,auto",
        "UDP ports of the namespace lead to the host: auto",
    ]
    assert said(Config(udp_ports=("all",), splice_only=True)) == ["UDP ports of the host lead to the guest: all"]


def test_a_port_that_the_kernel_chose_is_said_once() -> None:
    listed = [
        Forward("udp", "0.0.0.0", 43210, None, 80, chosen=True),
        Forward("udp", "::", 43210, None, 80, chosen=True),
        Forward("udp", "::", 5000, None, 80),
        Forward("udp", "0.0.0.0", 43211, "lo", 53, inside=True, chosen=True),
    ]
    assert describe(Config(udp_ports=("0:80",)), guest_network(), NAMES.__getitem__, listed)[-3:] == [
        "UDP ports of the host lead to the guest: 0:80",
        "UDP port 43210 of the host leads to port 80 of the guest",
        "UDP port 43211 of the namespace leads to port 53 of the host",
    ]


def test_an_interface_that_has_gone_is_said_by_its_number() -> None:
    def gone(index: int) -> str:
        raise OSError(index)

    (first, *_) = describe(Config(), guest_network(), gone)
    assert first == "template interface: number 7, which is gone (IPv4), number 7, which is gone (IPv6)"


def test_the_line_for_qemu_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comma is doubled for qemu, a blank quoted for the shell, and no byte breaks the line."""
    monkeypatch.setattr(Passt, "path", "/run/a,b c\n")
    line = qemu_command(Passt())
    assert line.endswith("'stream,id=gpasst,server=off,addr.type=unix,addr.path=/run/a,,b c\\n'")
    assert line.startswith("qemu-system-x86_64 -device virtio-net-pci,netdev=gpasst -netdev ")
