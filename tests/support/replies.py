"""Reply frames of services, parsed and checked, and the reasons of refused requests."""

from __future__ import annotations

import re

import pytest

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import ETHERNET_CODEC
from gpasst.packet import checksum
from gpasst.packet.parse import Packet, parse_ip
from tests.support.addresses import GUEST_MAC, HOST_MAC


def opened(frame: bytes | None, pseudo_header: bool = True) -> Packet:
    """Parse a reply's frame; check link addresses, lengths and checksums."""
    assert frame is not None
    assert frame[:12] == GUEST_MAC + HOST_MAC
    answer = parse_ip(memoryview(frame))
    size = 20 if answer.family == 4 else 40
    assert len(answer.payload) == len(frame) - ETHERNET_CODEC.size - size
    assert answer.hop_limit == 255
    if answer.family == 4:
        assert checksum.ones_sum(frame[14:34]) == 0xFFFF
    start = 0
    if pseudo_header:
        start = checksum.pseudo_sum(answer.source, answer.destination, answer.protocol) + len(answer.payload)
    assert checksum.ones_sum(answer.payload, start) == 0xFFFF
    return answer


def refused(reason: Drop) -> pytest.RaisesExc[PacketError]:
    return pytest.raises(PacketError, match=re.escape(reason.value))
