"""ARP: replies for every address but the guest's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.formats import ARP_CODEC
from gpasst.services import arp
from tests.support.addresses import GATEWAY4, GUEST4, GUEST_MAC, HOST_MAC, ip
from tests.support.questions import request, theirs
from tests.support.replies import refused


@pytest.mark.parametrize(("target", "sender"), [(GATEWAY4, GUEST4), ("203.0.113.5", GUEST4), (GATEWAY4, "0.0.0.0")])
def test_every_address_is_at_the_hosts_mac(target: str, sender: str) -> None:
    frame = arp.answer(request(target, sender), HOST_MAC, theirs)
    assert frame is not None
    assert len(frame) == 42
    assert frame[:14] == GUEST_MAC + HOST_MAC + b"\x08\x06"
    assert ARP_CODEC.unpack_from(frame, 14) == {
        "hardware": 1,
        "protocol": 0x0800,
        "hardware_length": 6,
        "protocol_length": 4,
        "operation": 2,
        "sender_mac": HOST_MAC,
        "sender_ip": ip(target),
        "target_mac": GUEST_MAC,
        "target_ip": ip(sender),
    }


@pytest.mark.parametrize(
    "payload",
    [
        request(GUEST4),
        request(GUEST4, "0.0.0.0"),
        request("192.0.2.5", "192.0.2.5"),
        request(GATEWAY4, operation=2),
        request(GATEWAY4, operation=3),
        request(GATEWAY4, hardware=6),
        request(GATEWAY4, protocol=0x86DD),
        request(GATEWAY4, hardware_length=8),
        request(GATEWAY4, protocol_length=16),
    ],
)
def test_arp_that_is_not_answered(payload: memoryview) -> None:
    assert arp.answer(payload, HOST_MAC, theirs) is None


def test_arp_probes_of_other_addresses_and_padding() -> None:
    # 0.0.0.0 as both ends is no announcement.
    assert arp.answer(request("0.0.0.0", "0.0.0.0"), HOST_MAC, theirs)
    assert arp.answer(memoryview(bytes(request(GATEWAY4)) + bytes(18)), HOST_MAC, theirs)


@given(st.binary(max_size=27))
def test_short_arp_is_malformed(data: bytes) -> None:
    with refused(Drop.MALFORMED_ARP):
        arp.answer(memoryview(data), HOST_MAC, theirs)
