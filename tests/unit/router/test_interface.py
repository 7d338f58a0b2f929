"""The ends of a router, and which of them a packet leaves by."""

from __future__ import annotations

import pytest

from gpasst.router.interface import INSIDE, OUTSIDE, Interface, Route, Routes
from tests.support.addresses import ip


@pytest.mark.parametrize(
    ("destination", "side", "next_hop"),
    [
        ("10.1.2.3", INSIDE, "10.1.2.3"),
        ("10.1.9.3", INSIDE, "10.1.2.9"),
        ("10.9.9.9", OUTSIDE, "192.0.2.1"),
        ("2001:db8::5", OUTSIDE, "2001:db8::5"),
    ],
)
def test_the_longest_prefix_decides(destination: str, side: int, next_hop: str) -> None:
    routes = Routes()
    routes.add(Route("0.0.0.0/0", OUTSIDE, ip("192.0.2.1")))
    routes.add(Route("10.1.2.0/24", INSIDE))
    routes.add(Route("10.1.0.0/16", INSIDE, ip("10.1.2.9")))
    routes.add(Route("2001:db8::/64", OUTSIDE))
    assert routes.find(ip(destination)) == (side, ip(next_hop))
    assert routes.find(ip("2001:db9::1")) is None


def test_a_route_replaces_that_of_its_prefix_and_goes() -> None:
    routes = Routes()
    for hop in ("192.0.2.1", "192.0.2.2"):
        routes.add(Route("0.0.0.0/0", OUTSIDE, ip(hop)))
    assert routes.find(ip("203.0.113.1")) == (OUTSIDE, ip("192.0.2.2"))
    routes.remove("0.0.0.0/0")
    assert routes.find(ip("203.0.113.1")) is None


@pytest.mark.parametrize(
    ("prefix", "broadcast"), [("10.1.2.0/24", ip("10.1.2.255")), ("10.1.2.0/31", None), ("", None)]
)
def test_an_interface_knows_its_other_addresses(prefix: str, broadcast: bytes | None) -> None:
    interface = Interface(bytes.fromhex("02670a010201"), 1500, {}, {4: prefix} if prefix else {6: "fd00::/64"})
    assert interface.broadcast == broadcast
    assert interface.link_local == ip("fe80::67:aff:fe01:201")
