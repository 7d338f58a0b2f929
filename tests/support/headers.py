"""The header of an upward flow, and its two ends."""

from __future__ import annotations

from gpasst.udp.header import Header
from tests.support.addresses import GATEWAY4, GATEWAY6, GUEST4, GUEST_LINK_LOCAL, GUEST_MAC, HOST_MAC, ip

GUEST = {4: ip(GUEST4), 6: ip(GUEST_LINK_LOCAL)}
SOURCE = {4: ip(GATEWAY4), 6: ip(GATEWAY6)}


def header(family: int) -> Header:
    return Header(family, GUEST_MAC, HOST_MAC, SOURCE[family], GUEST[family], 40000, 5000)
