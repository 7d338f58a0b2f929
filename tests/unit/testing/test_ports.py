"""Ports that are free."""

from __future__ import annotations

import socket

import pytest

from gpasst.testing import free_port
from gpasst.testing.ports import KINDS, free_ports


@pytest.mark.parametrize("protocol", list(KINDS))
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_is_free_in_both_families(protocol: str, family: socket.AddressFamily) -> None:
    with socket.socket(family, KINDS[protocol]) as sock:
        sock.bind(("", free_port(protocol)))


def test_several_are_different() -> None:
    assert len(set(free_ports(50, "udp"))) == 50
