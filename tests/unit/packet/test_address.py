"""Kinds of addresses, and their families."""

from __future__ import annotations

import pytest

from gpasst.packet.address import family_of, is_link_local, is_loopback, is_multicast, is_v4_mapped
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
