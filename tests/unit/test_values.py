"""Values of options: addresses, masks, MAC addresses and names."""

from __future__ import annotations

import pytest

from gpasst.values import is_domain, is_host_name, is_interface_name, of_family, parse_mac, parse_netmask, split_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.2", ("192.0.2.2", None)),
        ("192.0.2.2/24", ("192.0.2.2", 24)),
        ("2001:DB8:0::2/64", ("2001:db8::2", 64)),
    ],
)
def test_split_address(text: str, expected: tuple[str, int | None]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    ("text", "prefix"), [("24", 24), ("255.255.255.0", 24), ("255.255.255.255", 32), ("32", 32), ("255.0.0.0", 8)]
)
def test_netmasks(text: str, prefix: int) -> None:
    assert parse_netmask(text) == prefix


@pytest.mark.parametrize("text", ["02:00:00:00:00:0A", "02-00-00-00-00-0a"])
def test_mac_addresses(text: str) -> None:
    assert parse_mac(text) == b"\x02\0\0\0\0\x0a"


def test_the_last_of_a_family_wins() -> None:
    values = ["192.0.2.1", "fe80::1", "none", "192.0.2.2/24", "none"]
    assert of_family(values, 4) == "192.0.2.2/24"
    assert of_family(values, 6) == "fe80::1"
    assert of_family([], 4) is None


@pytest.mark.parametrize("name", ["example.org", "example.org.", "local", "_tcp.a", "bücher.example", "x" * 63])
def test_domains(name: str) -> None:
    assert is_domain(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a..b", ".a", "x" * 64, "ü" * 60])
def test_no_domains(name: str) -> None:
    assert not is_domain(name)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("guest", True),
        (f"{'x' * 62}." * 4 + "y", True),  # 253 bytes
        (f"{'x' * 62}." * 4 + "y.", True),
        (f"{'x' * 62}." * 4 + "yz", False),
        ("a..b", False),
        ("", False),
    ],
)
def test_host_names(name: str, good: bool) -> None:
    assert is_host_name(name) == good


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("eth0", True),
        ("a23456789012345", True),
        ("ä2345678901234", True),
        ("a234567890123456", False),
        ("ä23456789012345", False),
        ("", False),
        (".", False),
        ("..", False),
        ("...", True),
        ("a/b", False),
        ("a:b", False),
        ("a b", False),
        ("a\tb", False),
        ("\udc80", False),
        ("a\x7f", False),
        ("e:h", False),
        ("é", True),
        ("tap%d", False),
        ("all", False),
        ("default", False),
        ("à", False),  # its second byte is 0xA0, which the kernel takes for a blank
    ],
)
def test_interface_names(name: str, good: bool) -> None:
    assert is_interface_name(name) == good
