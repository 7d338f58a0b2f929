"""The addresses of hosts."""

from __future__ import annotations

import ipaddress

import pytest

from gpasst.errors import ConfigurationError
from gpasst.switch.plan import GATEWAY, SUBNETS, Plan, chosen, shared


def test_the_gateway_is_first() -> None:
    gateway = Plan("10.1.2.0/24", "fd01::/64").host(GATEWAY)
    assert (gateway.ip4, gateway.ip6) == ("10.1.2.1", "fd01::1")
    assert gateway.prefixes == (("10.1.2.1", 24), ("fd01::1", 64))
    assert gateway.mac == b"\x02\x67\x0a\x01\x02\x01"


def test_one_family_is_enough() -> None:
    only4, only6 = Plan("10.1.2.0/24", "").host(7), Plan("", "fd01::/64").host(7)
    assert (only4.ip6, only4.prefixes) == ("", (("10.1.2.7", 24),))
    assert (only6.ip4, only6.prefixes) == ("", (("fd01::7", 64),))
    assert only6.mac == b"\x02\x67\0\0\0\x07"


@pytest.mark.parametrize(
    ("subnet4", "subnet6", "most"), [("10.1.2.0/24", "", 254), ("", "fd01::/126", 3), ("", "fd01::/64", 0xFFFFFFFF)]
)
def test_no_host_has_a_broadcast_address(subnet4: str, subnet6: str, most: int) -> None:
    plan = Plan(subnet4, subnet6)
    assert (plan.first, plan.last) == (GATEWAY + 1, most)
    plan.host(most)


@pytest.mark.parametrize(
    ("subnet4", "subnet6", "text"),
    [
        ("10.1.2.3/24", "", "subnet4 10.1.2.3/24: 10.1.2.3/24 has host bits set"),
        ("fd01::/64", "", "subnet4 fd01::/64: "),
        ("10.1.2.0/31", "", "subnet4 10.1.2.0/31 has no room for hosts"),
        ("", "fd01::/127", "subnet6 fd01::/127 has no room for hosts"),
        ("224.0.0.0/8", "", "subnet4 224.0.0.0/8 has no addresses of hosts"),
        ("127.0.0.0/8", "", "subnet4 127.0.0.0/8 has no addresses of hosts"),
        ("0.0.0.0/0", "", "subnet4 0.0.0.0/0 has no addresses of hosts"),
        ("", "ff05::/16", "subnet6 ff05::/16 has no addresses of hosts"),
        ("", "fe80::/64", "subnet6 fe80::/64 has no addresses of hosts"),
        ("", "::/64", "subnet6 ::/64 has no addresses of hosts"),
        ("", "many", "subnet6 many: "),
        ("", "", "a network needs an address family"),
    ],
)
def test_a_prefix_that_makes_no_sense_is_named(subnet4: str, subnet6: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Plan(subnet4, subnet6)
    assert caught.value.message.startswith(text)
    assert caught.value.remedy


def test_chosen_prefixes_do_not_overlap() -> None:
    prefixes = [ipaddress.ip_network(chosen(number)[family]) for number in range(SUBNETS) for family in (0, 1)]
    assert len(set(prefixes)) == 2 * SUBNETS
    assert all(prefix.is_private for prefix in prefixes)


@pytest.mark.parametrize(
    ("subnet4", "subnet6", "part", "first", "last"),
    [
        ("10.78.0.0/16", "fd78::/64", 0, "10.78.0.2", "10.78.0.255"),
        ("10.78.0.0/16", "fd78::/64", 3, "10.78.3.2", "10.78.3.255"),
        ("10.78.0.0/16", "", 255, "10.78.255.2", "10.78.255.254"),
        ("10.1.2.0/24", "", 2, "10.1.2.34", "10.1.2.47"),
        ("10.1.2.0/25", "", 15, "10.1.2.122", "10.1.2.126"),
        ("", "fd01::/64", 1, "fd01::1:2", "fd01::1:ffff"),
    ],
)
def test_each_part_has_addresses_of_its_own(subnet4: str, subnet6: str, part: int, first: str, last: str) -> None:
    plan = Plan(subnet4, subnet6, part)
    ends = [plan.host(number) for number in (plan.first, plan.last)]
    assert [end.ip4 or end.ip6 for end in ends] == [first, last]
    assert plan.host(GATEWAY) == Plan(subnet4, subnet6).host(GATEWAY), "parts share the gateway"


def test_parts_do_not_overlap() -> None:
    plans = [Plan("10.1.2.0/24", "fd01::/64", part) for part in range(16)]
    numbers = [number for plan in plans for number in range(plan.first, plan.last + 1)]
    assert len(numbers) == len({plans[0].host(number).mac for number in numbers}) == 16 * 14 - 1


@pytest.mark.parametrize(
    ("subnet4", "part", "parts"),
    [("10.78.0.0/16", 256, 256), ("10.78.0.0/16", -1, 256), ("10.1.2.0/24", 16, 16), ("10.1.2.0/29", 0, 4)],
)
def test_a_part_that_there_is_not_is_refused(subnet4: str, part: int, parts: int) -> None:
    with pytest.raises(ConfigurationError, match=f"part {part} of a network with {parts} parts"):
        Plan(subnet4, "", part)


def test_parts_choose_the_same_prefixes() -> None:
    assert shared(None, None) == ("10.78.0.0/16", "fd78::/64")
    assert shared("10.1.0.0/16", "") == ("10.1.0.0/16", "")
