"""The reset that answers a TCP segment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.formats import TCP_CODEC
from gpasst.tcp import reset
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES
from tests.support.questions import GUEST, SERVER, TCP, packet
from tests.support.replies import opened, refused

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def segment(flags: int, data: bytes = b"", **fields: int) -> bytes:
    values = {"source": 50000, "destination": 80, "sequence": 1000, "acknowledgement": 2000, "window": 99, **fields}
    return TCP_CODEC.pack(flags=flags, **values) + data


@FAMILIES
@pytest.mark.parametrize(
    ("payload", "flags", "sequence", "acknowledgement"),
    [
        (segment(SYN), RST | ACK, 0, 1001),
        (segment(SYN, b"fast open"), RST | ACK, 0, 1010),
        (segment(SYN, sequence=0xFFFFFFFF), RST | ACK, 0, 0),
        (segment(SYN, b"\2\4\5\xb4" + b"data", data_offset=6), RST | ACK, 0, 1005),
        (segment(FIN, b"data"), RST | ACK, 0, 1005),
        (segment(PSH, b"data"), RST | ACK, 0, 1004),
        (segment(0), RST | ACK, 0, 1000),
        (segment(ACK), RST, 2000, 0),
        (segment(ACK | PSH, b"data"), RST, 2000, 0),
        (segment(SYN | ACK), RST, 2000, 0),
        (segment(FIN | ACK, b"data"), RST, 2000, 0),
        (segment(SYN, data_offset=15), RST | ACK, 0, 1001),
    ],
)
def test_tcp_is_reset(family: int, payload: bytes, flags: int, sequence: int, acknowledgement: int) -> None:
    answer = opened(reset.reset(packet(family, TCP, payload), GUEST_MAC, HOST_MAC))
    assert (answer.source, answer.destination) == (ip(SERVER[family]), ip(GUEST[family]))
    assert answer.protocol == TCP
    fields = TCP_CODEC.unpack_from(answer.payload)
    assert (fields["source"], fields["destination"]) == (80, 50000)
    assert (fields["flags"], fields["sequence"]) == (flags, sequence)
    assert (fields["acknowledgement"], fields["window"], fields["data_offset"]) == (acknowledgement, 0, 5)
    assert len(answer.payload) == 20


@FAMILIES
@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN, RST | FIN | ACK])
def test_resets_are_not_answered(family: int, flags: int) -> None:
    assert reset.reset(packet(family, TCP, segment(flags)), GUEST_MAC, HOST_MAC) is None


@given(st.binary(max_size=19))
def test_short_tcp_is_malformed(data: bytes) -> None:
    with refused(Drop.MALFORMED_TCP):
        reset.reset(packet(4, TCP, data), GUEST_MAC, HOST_MAC)
