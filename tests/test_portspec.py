"""Port specifications: a table of what they mean, and of what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.errors import ConfigurationError
from gpasst.portspec import LAST_OF_ALL, ForwardRule, parse


def ranges(*texts: str) -> list[tuple[int, int, int]]:
    return [(rule.first, rule.last, rule.target) for rule in parse("-u", texts)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["5000"], [(5000, 5000, 5000)]),
        (["5000,8053:53"], [(5000, 5000, 5000), (8053, 8053, 53)]),
        (["5000-5002"], [(5000, 5002, 5000)]),
        (["5000-5002:6000-6002"], [(5000, 5002, 6000)]),
        (["5000-5010,~5005"], [(5000, 5004, 5000), (5006, 5010, 5006)]),
        (["5000-5010:7000-7010,~5000-5003,~5010"], [(5004, 5009, 7004)]),
        (["~1-100"], [(101, LAST_OF_ALL, 101)]),
        (["all"], [(1, LAST_OF_ALL, 1)]),
        (["5000", "none"], []),
        (["5000", "none", "6000"], [(6000, 6000, 6000)]),
        (["none"], []),
        (["65535:1"], [(65535, 65535, 1)]),
    ],
)
def test_lists(texts: list[str], expected: list[tuple[int, int, int]]) -> None:
    assert ranges(*texts) == expected


@pytest.mark.parametrize(
    ("text", "address", "interface", "families"),
    [
        ("5000", None, None, (4, 6)),
        ("192.0.2.1/5000", "192.0.2.1", None, (4,)),
        ("2001:db8::1/5000", "2001:db8::1", None, (6,)),
        ("[2001:DB8::1]/5000", "2001:db8::1", None, (6,)),
        ("192.0.2.1%eth0/5000", "192.0.2.1", "eth0", (4,)),
        ("[fe80::1]%eth0/5000", "fe80::1", "eth0", (6,)),
        ("%lo/5000", None, "lo", (4, 6)),
        ("*%lo/5000", None, "lo", (4, 6)),
        ("*/5000", None, None, (4, 6)),
    ],
)
def test_places(text: str, address: str | None, interface: str | None, families: tuple[int, ...]) -> None:
    (rule,) = parse("-u", [text])
    assert (rule.address, rule.interface, rule.families) == (address, interface, families)
    assert rule.strict


def test_exclusions_and_all_forgive_busy_ports() -> None:
    assert not any(rule.strict for rule in parse("-u", ["~22"]))
    assert not any(rule.strict for rule in parse("-u", ["all"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing is not a port"),
        ("0", "0 is not a port"),
        ("65536", "65536 is not a port"),
        ("5000,", "nothing is not a port"),
        ("abc", "abc is not a port"),
        ("٣", "is not a port"),
        ("-5", "nothing is not a port"),
        ("5010-5000", "runs backwards"),
        ("5000-5001:80", "differ in width"),
        ("5000:80:90", "80:90 is not a port"),
        ("host/5000", "host is not an IP address"),
        ("/5000", "no address before /"),
        ("1.2.3.4%/5000", "no interface after %"),
        ("%a23456789012345x/5000", "longer than 15 bytes"),
        ("5000,5000", "forwarded twice"),
        ("auto", "not available yet"),
    ],
)
def test_refusals_name_the_option_and_the_fault(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse("-u", [text])
    assert message in str(caught.value)
    assert "-u" in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_same_port_on_two_addresses_is_no_overlap() -> None:
    assert len(parse("-u", ["127.0.0.1/5000", "127.0.0.2/5000", "%lo/6000", "%eth0/6000"])) == 4


@given(st.integers(1, 65535), st.integers(1, 65535), st.integers(0, 300))
def test_every_port_of_a_range_keeps_its_distance(first: int, target: int, width: int) -> None:
    width = min(width, 65535 - first, 65535 - target)
    (rule,) = parse("-u", [f"{first}-{first + width}:{target}-{target + width}"])
    assert list(rule.ports()) == [(first + i, target + i) for i in range(width + 1)]


@given(st.text(max_size=30))
def test_any_text_gives_rules_or_one_clear_error(text: str) -> None:
    try:
        rules = parse("-u", [text])
    except ConfigurationError:
        return
    assert all(isinstance(rule, ForwardRule) and 1 <= rule.first <= rule.last <= 65535 for rule in rules)
