"""Echo: the guest's requests, and its replies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.formats import ECHO_CODEC, ICMP_CODEC
from gpasst.services import echo
from tests.support.addresses import GUEST_MAC, HOST_MAC, ip
from tests.support.families import FAMILIES
from tests.support.questions import GUEST, ICMP, ICMPV6, REPLY, REQUEST, SERVER, packet
from tests.support.replies import opened, refused


@FAMILIES
@given(identifier=st.integers(0, 65535), sequence=st.integers(0, 65535), data=st.binary(max_size=99))
def test_echo_there_and_back(family: int, identifier: int, sequence: int, data: bytes) -> None:
    protocol = ICMP if family == 4 else ICMPV6
    message = ECHO_CODEC.pack(type=REQUEST[family], identifier=identifier, sequence=sequence) + data
    asked = echo.parse_request(packet(family, protocol, message))
    assert (asked.identifier, asked.sequence, asked.message) == (identifier, sequence, message)
    # The kernel puts its own identifier, and checksum, into what a ping socket receives.
    kernels = ECHO_CODEC.pack(type=REPLY[family], checksum=0x1234, identifier=7, sequence=sequence) + data
    assert echo.sequence_of(kernels) == sequence
    frame = echo.reply(kernels, identifier, ip(SERVER[family]), ip(GUEST[family]), GUEST_MAC, HOST_MAC)
    answer = opened(frame, pseudo_header=family == 6)
    assert (answer.source, answer.destination) == (ip(SERVER[family]), ip(GUEST[family]))
    assert answer.protocol == protocol
    fields = ECHO_CODEC.unpack_from(answer.payload)
    assert (fields["type"], fields["code"]) == (REPLY[family], 0)
    assert (fields["identifier"], fields["sequence"]) == (identifier, sequence)
    assert bytes(answer.payload[8:]) == data


@FAMILIES
def test_other_messages_are_no_echo_requests(family: int) -> None:
    for kind in {*range(256)} - {REQUEST[family]}:
        with refused(Drop.ICMP_TYPE):
            echo.parse_request(packet(family, ICMP, ICMP_CODEC.pack(type=kind) + bytes(4)))
    with refused(Drop.ICMP_TYPE):
        echo.parse_request(packet(family, ICMP, b""))
    with refused(Drop.MALFORMED_ICMP):
        echo.parse_request(packet(family, ICMP, bytes((REQUEST[family],)) + bytes(6)))
