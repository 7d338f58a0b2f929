"""The guest's segments: headers, and what a SYN offers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.formats import TCP_CODEC
from gpasst.tcp.segment import Offer, parse, parse_options
from tests.support.replies import refused

FIELDS = {"source": 40000, "destination": 80, "sequence": 7, "acknowledgement": 9, "flags": 0x18, "window": 99}


@pytest.mark.parametrize(
    ("options", "mss", "scale"),
    [
        ("", 536, None),
        ("020405b401030307", 1460, 7),
        ("0101030307", 536, 7),
        ("0204", 536, None),
        ("00020405b4", 536, None),
        ("03030f", 536, 14),
        ("0303ff", 536, 14),
        ("030300", 536, 0),
        ("02040001", 88, None),
        ("0204ffff", 65535, None),
        ("0203ff030303", 536, 3),
        ("020005b4030307", 536, None),
        ("02010303030303", 536, None),
        ("fe0401020402080a0102030405060708030302", 536, 2),
        ("020405b4020403e8", 1000, None),
        ("020405b402", 1460, None),
        ("0305000000020405b4", 1460, None),
    ],
    ids=[
        "no options",
        "size and scale",
        "scale behind no-operations",
        "a truncated size is ignored",
        "nothing counts behind the end of the list",
        "a scale above 14 counts as 14",
        "a scale of 255 counts as 14",
        "a scale of 0 is an offer, too",
        "a size of 1 would make a frame of each byte",
        "the largest size",
        "a size of another length is skipped",
        "a length of 0 ends the options",
        "a length of 1 ends the options",
        "unknown options are skipped",
        "the last of two sizes counts",
        "an option without length ends them",
        "a scale of another length is skipped",
    ],
)
def test_the_options_of_a_syn(options: str, mss: int, scale: int | None) -> None:
    assert parse_options(bytes.fromhex(options)) == Offer(mss, scale)


@given(st.binary(max_size=40))
def test_any_options_offer_something(options: bytes) -> None:
    offer = parse_options(options)
    assert 88 <= offer.mss <= 65535
    assert offer.scale is None or 0 <= offer.scale <= 14


@pytest.mark.parametrize(("offset", "options", "payload"), [(5, b"", b"data"), (6, b"data", b""), (5, b"", b"")])
def test_a_segment_is_parsed(offset: int, options: bytes, payload: bytes) -> None:
    found = parse(memoryview(TCP_CODEC.pack(data_offset=offset, **FIELDS) + options + payload))
    assert (found.sequence, found.acknowledgement, found.flags, found.window) == (7, 9, 0x18, 99)
    assert (found.options, bytes(found.payload)) == (options, payload)


@pytest.mark.parametrize(("offset", "rest"), [(0, 40), (4, 40), (6, 3), (15, 39)])
def test_a_header_that_is_not_whole_is_malformed(offset: int, rest: int) -> None:
    with refused(Drop.MALFORMED_TCP):
        parse(memoryview(TCP_CODEC.pack(data_offset=offset, **FIELDS) + bytes(rest)))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_segment_or_malformed(data: bytes) -> None:
    try:
        found = parse(memoryview(data))
    except PacketError as error:
        assert error.reason is Drop.MALFORMED_TCP
    else:
        assert TCP_CODEC.size + len(found.options) + len(found.payload) == len(data)
