"""Kinds of addresses, and their families."""

from __future__ import annotations

import pytest

from gpasst.packet.address import family_of, is_interface_local, is_link_local, is_loopback, is_multicast, is_v4_mapped
from tests.support.addresses import ip


@pytest.mark.parametrize(
    ("address", "loopback", "link_local", "multicast", "mapped"),
    [
        ("127.0.0.1", True, False, False, False),
        ("128.0.0.1", False, False, False, False),
        ("169.254.1.1", False, False, False, False),
        ("223.255.255.255", False, False, False, False),
        ("224.0.0.1", False, False, True, False),
        ("239.255.255.255", False, False, True, False),
        ("255.255.255.255", False, False, False, False),
        ("::1", True, False, False, False),
        ("::2", False, False, False, False),
        ("fe80::1", False, True, False, False),
        ("febf:ffff::1", False, True, False, False),
        ("fec0::1", False, False, False, False),
        ("ff02::1", False, False, True, False),
        ("::ffff:192.0.2.1", False, False, False, True),
        ("::fffe:192.0.2.1", False, False, False, False),
    ],
)
def test_kinds_of_addresses(address: str, loopback: bool, link_local: bool, multicast: bool, mapped: bool) -> None:
    packed = ip(address)
    assert is_loopback(packed) is loopback
    assert is_link_local(packed) is link_local
    assert is_multicast(packed) is multicast
    assert is_v4_mapped(packed) is mapped
    assert family_of(packed) == (6 if ":" in address else 4)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ff00::1", True),
        ("ff01::1", True),
        ("ff11::1", True),
        ("ffff::1", False),
        ("ff02::1", False),
        ("ff12::fb", False),
        ("fe01::1", False),
        ("224.0.0.1", False),
    ],
)
def test_groups_that_never_leave_their_node(address: str, expected: bool) -> None:
    assert is_interface_local(ip(address)) is expected
