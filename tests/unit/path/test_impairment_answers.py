"""What rules do beside the link, with sockets that a test sees: what end-to-end tests cannot provoke (under 1 s)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gpasst.counters import Counters, Drop
from gpasst.formats import ETHERNET_CODEC, VIRTIO_NET_BLANK
from gpasst.host.raw import RawSockets
from gpasst.impair.action import Answer
from gpasst.impair.facts import Flow
from gpasst.link.flows import Flows
from gpasst.packet.build import wrap_udp
from gpasst.packet.icmp_error import CLOSED_PORT, Problem, too_big
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.icmp_to_sender import IcmpToSender
from gpasst.path.impairment_answers import ImpairmentAnswers
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, HOST_MAC, SERVER4, SERVER6, ip
from tests.support.families import FAMILIES
from tests.support.nat import EPHEMERAL, Host

SERVER, GUEST = {4: SERVER4, 6: SERVER6}, {4: GUEST4, 6: GUEST6}
MULTICAST = {4: "224.0.0.9", 6: "ff02::9"}
PORT = 53


class Raw:
    """Keeps what is sent."""

    def __init__(self, permitted: bool = True) -> None:
        self.permitted = permitted
        self.sent: list[bytes] = []

    def send(self, inside: bool, built: bytes, target: bytes, scope: int = 0, local: bytes = b"") -> bool:
        self.sent.append(built)
        return self.permitted


class Link:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def write_frame(self, frame: bytes) -> None:
        self.frames.append(frame)


class Case:
    """A guest that has asked a server."""

    def __init__(self, family: int, permitted: bool = True) -> None:
        self.family = family
        self.host, self.raw, self.link, self.counters = Host(), Raw(permitted), Link(), Counters()
        link = cast(Any, self.link)
        self.peer = self.host.down(EPHEMERAL, SERVER[family], PORT, GUEST[family])
        nat = self.host.path
        icmp = IcmpToGuest(link, self.host.guest, self.counters)
        sender = IcmpToSender(cast(RawSockets, self.raw), nat.tables, self.counters)
        self.answers = ImpairmentAnswers(link, self.host.guest, nat, icmp, sender, None, self.counters)

    def answer(self, kind: Answer, to_guest: bool, server: str = "", mtu: int = 0) -> None:
        """Lose a datagram, and let its sender be answered."""
        ends = [(ip(GUEST[self.family]), EPHEMERAL), (ip(server or SERVER[self.family]), PORT)]
        (source, sport), (destination, dport) = reversed(ends) if to_guest else ends
        frame = wrap_udp(GUEST_MAC, HOST_MAC, source, destination, sport, dport, b"payload")
        data = VIRTIO_NET_BLANK + frame
        flow: Flow = Flows().find(data, 0, len(data))[0]
        self.answers.answer(kind, flow, to_guest, frame, mtu)


def problem_of(message: bytes) -> Problem:
    return Problem(message[0], message[1], int.from_bytes(message[4:8], "big"))


@FAMILIES
@pytest.mark.parametrize("kind", [Answer.PORT, Answer.TOO_BIG])
def test_a_sender_on_the_hosts_side_is_answered_by_a_raw_socket(family: int, kind: Answer) -> None:
    case = Case(family)
    case.peer.local = ip(GUEST[family])
    case.answer(kind, True, mtu=1400)
    (message,) = case.raw.sent
    assert problem_of(message) == (CLOSED_PORT[family] if kind is Answer.PORT else too_big(family, 1400))
    assert case.link.frames == []


@FAMILIES
def test_an_answer_that_cannot_be_sent_is_counted(family: int) -> None:
    case = Case(family, permitted=False)
    case.peer.local = ip(GUEST[family])
    case.answer(Answer.HOST, True)
    assert case.counters.drops[Drop.GUEST_ERROR] == 1


@FAMILIES
def test_the_guest_is_answered_by_a_frame_that_quotes_its_own(family: int) -> None:
    case = Case(family)
    case.answer(Answer.NET, False)
    (frame,) = case.link.frames
    assert frame.startswith(GUEST_MAC)
    assert frame.endswith(b"payload")
    assert len(frame) > ETHERNET_CODEC.size
    assert case.raw.sent == []


@FAMILIES
def test_nobody_is_answered_for_a_group(family: int) -> None:
    case = Case(family)
    case.answer(Answer.NET, False, MULTICAST[family])
    assert case.link.frames == []


@FAMILIES
def test_a_reset_of_what_is_no_connection_does_nothing(family: int) -> None:
    case = Case(family)
    case.answer(Answer.RESET, False)
    case.answer(Answer.RESET, True)
    assert (case.link.frames, case.raw.sent) == ([], [])


@FAMILIES
def test_a_rebinding_changes_the_hosts_port(family: int) -> None:
    case = Case(family)
    before = case.peer.udp_socket.port
    ends = ip(GUEST[family]), ip(SERVER[family]), EPHEMERAL, PORT
    case.answers.rebind(Flow("udp", family, *ends), False)
    assert case.peer.udp_socket.port != before
    case.answers.rebind(Flow("icmp", family, *ends), False)
    case.answers.rebind(Flow("tcp", family, *ends), False)
