"""Address rules: tables of what a guest reaches, and of what it sees."""

from __future__ import annotations

from typing import Any

import pytest

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.translation import GuestView, Target
from tests.support.addresses import (
    FORWARDER4,
    FORWARDER6,
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    GUEST_LINK_LOCAL,
    HOST_LINK_LOCAL,
    RESOLVER4,
    RESOLVER6,
    ip,
)
from tests.support.networks import INDEX, NETWORKS, rules

UNMAPPED = {"host_loopback": None}
CHOSEN4 = {"host_loopback": "192.0.2.99", "loopback_chosen": True}
CHOSEN6 = {"host_loopback": "2001:db8::99", "loopback_chosen": True}


@pytest.mark.parametrize(
    ("family", "changes", "destination", "port", "address", "own"),
    [
        # The gateway is the host's loopback, whatever the port, unless the resolver is on loopback too.
        (4, {}, GATEWAY4, 7, "127.0.0.1", True),
        (6, {}, GATEWAY6, 7, "::1", True),
        (4, {}, GATEWAY4, 53, "127.0.0.1", True),
        (6, {}, GATEWAY6, 53, "::1", True),
        (4, {}, GATEWAY4, 853, "127.0.0.1", True),
        (6, {}, GATEWAY6, 853, "::1", True),
        (4, {"gateway_resolver": "127.0.0.53"}, GATEWAY4, 53, "127.0.0.53", True),
        (4, {"gateway_resolver": "127.0.0.53"}, GATEWAY4, 853, "127.0.0.1", True),
        (4, {"gateway_resolver": "127.0.0.53", **UNMAPPED}, GATEWAY4, 53, GATEWAY4, False),
        (4, {"resolver": None}, GATEWAY4, 53, "127.0.0.1", True),
        # With mapping disabled the gateway is itself.
        (4, UNMAPPED, GATEWAY4, 7, GATEWAY4, False),
        (4, UNMAPPED, GATEWAY4, 53, GATEWAY4, False),
        (6, UNMAPPED, GATEWAY6, 7, GATEWAY6, False),
        (6, UNMAPPED, GATEWAY6, 53, GATEWAY6, False),
        # The user chose the address: the gateway is itself, and port 53 nothing special.
        (4, CHOSEN4, "192.0.2.99", 7, "127.0.0.1", True),
        (4, CHOSEN4, "192.0.2.99", 53, "127.0.0.1", True),
        (4, CHOSEN4, GATEWAY4, 7, GATEWAY4, False),
        (4, CHOSEN4, GATEWAY4, 53, GATEWAY4, False),
        (6, CHOSEN6, "2001:db8::99", 7, "::1", True),
        (6, CHOSEN6, "2001:db8::99", 53, "::1", True),
        (6, CHOSEN6, GATEWAY6, 7, GATEWAY6, False),
        # The forwarder, DNS ports only.
        (4, {"dns_forward": FORWARDER4}, FORWARDER4, 53, RESOLVER4, False),
        (4, {"dns_forward": FORWARDER4}, FORWARDER4, 853, RESOLVER4, False),
        (4, {"dns_forward": FORWARDER4}, FORWARDER4, 5353, FORWARDER4, False),
        (6, {"dns_forward": FORWARDER6}, FORWARDER6, 53, RESOLVER6, False),
        (6, {"dns_forward": FORWARDER6}, FORWARDER6, 853, RESOLVER6, False),
        (6, {"dns_forward": FORWARDER6}, FORWARDER6, 52, FORWARDER6, False),
        (4, {"dns_forward": FORWARDER4, "resolver": "127.0.0.53"}, FORWARDER4, 53, "127.0.0.53", True),
        (4, {"dns_forward": FORWARDER4, "resolver": None}, FORWARDER4, 53, FORWARDER4, False),
        # A forwarder that is the gateway is not shadowed by it.
        (4, {"dns_forward": GATEWAY4}, GATEWAY4, 853, RESOLVER4, False),
        (4, {"dns_forward": "192.0.2.99", **CHOSEN4}, "192.0.2.99", 53, RESOLVER4, False),
        (4, {"dns_forward": GATEWAY4}, GATEWAY4, 54, "127.0.0.1", True),
        # The host's own address, which the guest's hides.
        (4, {"guest_alias": "192.0.2.77"}, "192.0.2.77", 7, GUEST4, True),
        (6, {"guest_alias": "2001:db8::77"}, "2001:db8::77", 7, GUEST6, True),
        (4, {"guest_alias": "192.0.2.77"}, GATEWAY4, 7, "127.0.0.1", True),
        # A guest of no assigned address has none that could be hidden.
        (6, {"guest_alias": "2001:db8::77", "address": None}, "2001:db8::77", 7, "2001:db8::77", False),
        # All else is itself.
        (4, {}, "198.51.100.9", 53, "198.51.100.9", False),
        (4, {}, RESOLVER4, 53, RESOLVER4, False),
        (4, {}, "192.0.2.3", 7, "192.0.2.3", True),
        (4, {}, "224.0.0.251", 5353, "224.0.0.251", False),
        (6, {}, "2001:db8:1::9", 53, "2001:db8:1::9", False),
        (6, {}, GUEST6, 7, GUEST6, True),
        (6, {"gateway": "2001:db8::1", "host_loopback": "2001:db8::1"}, "2001:db8::1", 7, "::1", True),
    ],
)
def test_to_host(family: int, changes: dict[str, Any], destination: str, port: int, address: str, own: bool) -> None:
    target = rules(family, **changes).to_host(ip(destination), port)
    assert (target.address, target.own) == (ip(address), own)
    assert target.scope == (INDEX if address == GATEWAY6 else 0)


@pytest.mark.parametrize(
    ("family", "destination", "reason"),
    [
        (4, "224.0.0.251", Drop.NOT_UNICAST),
        (4, "255.255.255.255", Drop.NOT_UNICAST),
        (6, "ff02::fb", Drop.NOT_UNICAST),
        (4, "0.0.0.0", Drop.UNSPECIFIED_ADDRESS),
        (6, "::1", Drop.LOOPBACK_ADDRESS),
        (4, "198.51.100.9", None),
        (6, "fe80::99", None),
    ],
)
def test_a_protocol_without_multicast(family: int, destination: str, reason: Drop | None) -> None:
    addresses = rules(family)
    ends = ip({4: "192.0.2.5", 6: "2001:db8::5"}[family]), 40000, ip(destination), 80
    if reason is None:
        assert addresses.outbound(*ends, multicast=False) == addresses.to_host(ip(destination), 80)
        assert addresses.seen == ends[0]
        return
    with pytest.raises(PacketError) as caught:
        addresses.outbound(*ends, multicast=False)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("destination", "scope"),
    [("fe80::99", INDEX), ("febf::99", INDEX), ("fec0::99", 0), ("ff02::fb", 0), ("2001:db8::9", 0)],
)
def test_link_local_destinations_have_the_template_interface_for_scope(destination: str, scope: int) -> None:
    assert rules(6).to_host(ip(destination), 7) == Target(ip(destination), scope, own=False)


@pytest.mark.parametrize(
    ("family", "destination", "reason"),
    [
        (4, "127.0.0.1", Drop.LOOPBACK_ADDRESS),
        (4, "127.255.255.254", Drop.LOOPBACK_ADDRESS),
        (4, "0.0.0.0", Drop.UNSPECIFIED_ADDRESS),
        (6, "::1", Drop.LOOPBACK_ADDRESS),
        (6, "::", Drop.UNSPECIFIED_ADDRESS),
        (6, "ff00::1", Drop.MULTICAST_SCOPE),
        (6, "ff01::1", Drop.MULTICAST_SCOPE),
        (6, "::ffff:127.0.0.1", Drop.LOOPBACK_ADDRESS),
        (6, "::ffff:192.0.2.9", Drop.LOOPBACK_ADDRESS),
    ],
)
@pytest.mark.parametrize("port", [53, 7])
def test_what_must_not_cross_the_tap(family: int, destination: str, reason: Drop, port: int) -> None:
    with pytest.raises(PacketError) as caught:
        rules(family).to_host(ip(destination), port)
    assert caught.value.reason is reason


GLOBAL_GATEWAY6 = {"gateway": "2001:db8::1", "host_loopback": "2001:db8::1"}


@pytest.mark.parametrize(
    ("family", "changes", "source", "shown", "destination"),
    [
        # Strangers are shown as they are.
        (4, {}, "198.51.100.9", "198.51.100.9", GUEST4),
        (4, {}, GATEWAY4, GATEWAY4, GUEST4),
        (6, {}, "2001:db8:1::9", "2001:db8:1::9", GUEST6),
        (6, {}, "fe80::99", "fe80::99", GUEST_LINK_LOCAL),
        # A resolver answers nothing that was not asked: its datagrams are shown as they are.
        (4, {"dns_forward": FORWARDER4}, RESOLVER4, RESOLVER4, GUEST4),
        # The host's loopback, any address of it.
        (4, {}, "127.0.0.1", GATEWAY4, GUEST4),
        (4, {}, "127.0.0.53", GATEWAY4, GUEST4),
        (6, {}, "::1", GATEWAY6, GUEST_LINK_LOCAL),
        # The address that guest and host share.
        (4, {}, GUEST4, GATEWAY4, GUEST4),
        (6, {}, GUEST6, GATEWAY6, GUEST_LINK_LOCAL),
        (4, {"guest_alias": "192.0.2.77"}, GUEST4, "192.0.2.77", GUEST4),
        (6, {"guest_alias": "2001:db8::77"}, GUEST6, "2001:db8::77", GUEST6),
        (4, {"guest_alias": "192.0.2.77"}, "127.0.0.1", GATEWAY4, GUEST4),
        # Another address of the host is no secret.
        (4, {}, "192.0.2.3", "192.0.2.3", GUEST4),
        # The stand-in is shown even where it is not mapped back.
        (4, UNMAPPED, "127.0.0.1", GATEWAY4, GUEST4),
        (6, UNMAPPED, "::1", GATEWAY6, GUEST_LINK_LOCAL),
        (4, CHOSEN4, "127.0.0.1", "192.0.2.99", GUEST4),
        (6, CHOSEN6, "::1", "2001:db8::99", GUEST6),
        # A global gateway: the host's link-local address stands in.
        (6, GLOBAL_GATEWAY6, "::1", HOST_LINK_LOCAL, GUEST_LINK_LOCAL),
        (6, GLOBAL_GATEWAY6, GUEST6, HOST_LINK_LOCAL, GUEST_LINK_LOCAL),
        # Local mode: a guest without global address.
        (6, {"address": None}, "::1", GATEWAY6, GUEST_LINK_LOCAL),
        (6, {"address": None}, "2001:db8:1::9", "2001:db8:1::9", GUEST_LINK_LOCAL),
    ],
)
def test_to_guest(family: int, changes: dict[str, Any], source: str, shown: str, destination: str) -> None:
    assert rules(family, **changes).to_guest(ip(source)) == GuestView(ip(shown), ip(destination))


@pytest.mark.parametrize(("source", "address"), [("::1", GUEST6), ("fe80::99", GUEST6), ("2001:db8:1::9", None)])
def test_a_guest_without_fitting_address_is_not_reached(source: str, address: str | None) -> None:
    with pytest.raises(PacketError) as caught:
        rules(6, link_local=None, address=address).to_guest(ip(source))
    assert caught.value.reason is Drop.NO_GUEST_ADDRESS


def test_the_latest_address_of_the_guest_is_learned() -> None:
    addresses = rules(4)
    addresses.learn(ip("192.0.2.5"))
    assert addresses.to_guest(ip("198.51.100.9")).destination == ip("192.0.2.5")
    # The host may still send from the assigned address; now both would be confusing.
    assert addresses.to_guest(ip("192.0.2.5")).source == ip(GATEWAY4)
    assert addresses.to_guest(ip(GUEST4)).source == ip(GATEWAY4)


def test_scopes_are_learned_apart() -> None:
    addresses = rules(6, link_local=None)
    addresses.learn(ip("fe80::5"))
    addresses.learn(ip("2001:db8::5"))
    assert (addresses.link_local, addresses.seen) == (ip("fe80::5"), ip("2001:db8::5"))
    addresses.learn(ip("fe80::6"))
    assert (addresses.link_local, addresses.seen) == (ip("fe80::6"), ip("2001:db8::5"))


@pytest.mark.parametrize(
    ("family", "source"),
    [(4, "0.0.0.0"), (6, "::"), (4, "127.0.0.1"), (6, "::1"), (4, "224.0.0.1"), (6, "ff02::1")],
)
def test_what_is_no_address_of_anyone_is_not_learned(family: int, source: str) -> None:
    addresses = rules(family)
    addresses.learn(ip(source))
    assert addresses.seen == NETWORKS[family].address
    assert addresses.link_local == (ip(GUEST_LINK_LOCAL) if family == 6 else None)


@pytest.mark.parametrize(
    ("family", "changes", "source"),
    [
        (4, {}, GATEWAY4),
        (6, {}, GATEWAY6),
        (6, {}, HOST_LINK_LOCAL),
        (4, UNMAPPED, GATEWAY4),
        (4, CHOSEN4, "192.0.2.99"),
        (4, {"guest_alias": "192.0.2.77"}, "192.0.2.77"),
        (4, {"dns_forward": FORWARDER4}, FORWARDER4),
    ],
)
def test_a_guest_cannot_take_an_address_that_stands_for_the_host(
    family: int, changes: dict[str, Any], source: str
) -> None:
    """Else a client of a forwarded port would be led to the host's own port, in the guest's place."""
    addresses = rules(family, **changes)
    addresses.learn(ip(source))
    assert addresses.seen == NETWORKS[family].address
    assert addresses.link_local == (ip(GUEST_LINK_LOCAL) if family == 6 else None)


@pytest.mark.parametrize(("family", "source"), [(4, "192.0.2.5"), (6, "2001:db8::5")])
def test_an_address_that_the_user_gave_is_authoritative(family: int, source: str) -> None:
    addresses = rules(family, explicit=True)
    addresses.learn(ip(source))
    assert addresses.seen == NETWORKS[family].address


def test_the_link_local_address_is_learned_even_then() -> None:
    addresses = rules(6, explicit=True)
    addresses.learn(ip("fe80::5"))
    assert addresses.link_local == ip("fe80::5")
