"""What the sender of a frame is answered that weather has lost on a switch."""

from __future__ import annotations

import pytest

from gpasst.impair.action import Answer
from gpasst.impair.facts import ARP, Flow
from gpasst.link.flows import Flows
from gpasst.packet.frame import Frame
from gpasst.path.switch_answers import answers
from gpasst.wire import ICMP_ECHO_REPLY, TCP_ACK, TCP_RST, TCP_SYN, VIRTIO_NET_BLANK
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.families import FAMILIES
from tests.support.frames import ENDS, framed, tcp, udp


def answered(kind: Answer, frame: bytes, mtu: int = 0) -> list[Frame]:
    """Return the answers to a frame of the guest's to the server."""
    data = VIRTIO_NET_BLANK + frame
    flow, _ = Flows().find(data, 0, len(data))
    return [Frame(answer, True) for answer in answers(kind, flow, frame, mtu)]


@FAMILIES
@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        (Answer.PORT, {4: (3, 3), 6: (1, 4)}),
        (Answer.HOST, {4: (3, 1), 6: (1, 3)}),
        (Answer.NET, {4: (3, 0), 6: (1, 0)}),
        (Answer.ADMIN, {4: (3, 13), 6: (1, 1)}),
        (Answer.TOO_BIG, {4: (3, 4), 6: (2, 0)}),
    ],
)
def test_an_error_comes_from_the_host_that_was_meant(
    kind: Answer, codes: dict[int, tuple[int, int]], family: int
) -> None:
    lost = udp(b"payload", family)
    (answer,) = answered(kind, lost, 1280)
    guest, server = ENDS[family]
    assert (answer.data[:6], answer.data[6:12]) == (GUEST_MAC, HOST_MAC)
    assert (answer.src, answer.dst) == (server, guest)
    assert answer.icmp is not None
    assert (answer.icmp.type, answer.icmp.code) == codes[family]
    assert lost[14:] in answer.data, "it quotes the packet"


@FAMILIES
def test_a_reset_reaches_both_ends(family: int) -> None:
    guest, server = ENDS[family]
    to_guest, to_server = answered(Answer.RESET, tcp(TCP_ACK, b"payload", family))
    assert (to_guest.data[:6], to_guest.src, to_guest.sport, to_guest.flag_bits) == (GUEST_MAC, server, 80, TCP_RST)
    assert (to_server.data[:6], to_server.src, to_server.dport) == (HOST_MAC, guest, 80)
    assert to_server.flag_bits == TCP_RST | TCP_ACK
    assert to_guest.tcp is not None
    assert to_server.tcp is not None
    assert (to_guest.tcp.sequence, to_server.tcp.sequence) == (9, 7), "the numbers that they expect"
    assert [frame.flag_bits & TCP_RST for frame in answered(Answer.RESET, tcp(TCP_SYN, family=family))]


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        (Answer.PORT, b"\xff" * 6 + udp()[6:]),
        (Answer.PORT, framed(4, 1, bytes((ICMP_ECHO_REPLY, 0)) + bytes(6))),
        (Answer.RESET, udp()),
        (Answer.RESET, tcp(TCP_RST)),
        (Answer.RESET, tcp(TCP_ACK)[:40]),
    ],
    ids=["to a group", "to an answer", "of no connection", "to a reset", "to half a segment"],
)
def test_what_has_no_answer(kind: Answer, frame: bytes) -> None:
    assert answered(kind, frame) == []


def test_what_is_no_ip_has_no_answer() -> None:
    assert list(answers(Answer.HOST, Flow(ARP), udp()[:12] + b"\x08\x06" + bytes(28), 0)) == []
