"""Services in the place of UDP sockets: datagrams of the guest reach them one by one, and answers find back."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from gpasst.counters import Drop
from gpasst.flow.key import down_key
from gpasst.path.udp_service import Answers, End, ServiceSocket, serving
from gpasst.testing import free_port
from tests.support.addresses import SERVER4, SERVER6, ip
from tests.support.bench import GUEST, Bench, bench, server, udp_packet
from tests.support.families import FAMILIES

PORT = 53
OWN = 40000  # the guest's port
SERVED = {4: SERVER4, 6: SERVER6}


class Case:
    """A served address.

    :ivar taken: what came, and from whom.
    :ivar room: for how many there is room.
    """

    def __init__(self, it: Bench, family: int) -> None:
        self.it = it
        self.family = family
        self.address = ip(SERVED[family])
        self.taken: list[tuple[bytes, End]] = []
        self.room = 100
        self.answers = Answers(it.nat, it.link, it.counters, self.address, PORT)
        it.nat.served[self.address, PORT] = serving(self._take, PORT)

    def _take(self, data: bytes, guest: End) -> bool:
        if len(self.taken) == self.room:
            return False
        self.taken.append((data, guest))
        return True

    def send(self, payload: bytes, port: int = OWN, segment: int = 0) -> None:
        packet = udp_packet(self.family, port, PORT, payload, SERVED[self.family])
        self.it.udp.outbound(replace(packet, segment=segment))

    def end_flows(self, port: int = PORT) -> list[None]:
        """End the flows to a port of the address; return what that yields."""
        return list(self.it.nat.end_flows(self.family, lambda peer: peer.shown == (self.address, port)))


@contextmanager
def case(family: int) -> Iterator[Case]:
    with bench() as it:
        yield Case(it, family)


@FAMILIES
def test_there_and_back_without_a_socket(family: int) -> None:
    with case(family) as it:
        guest = ip(GUEST[family]), OWN
        it.send(b"question")
        it.send(b"")
        assert it.taken == [(b"question", guest), (b"", guest)]
        assert it.it.watched == []
        it.answers.send(guest, b"answer")
        ((header, total, segment, payload),) = it.it.link.runs
        assert (total, segment, payload, header.protocol) == (6, 6, b"answer", "udp")
        assert it.it.link.flushed == 1
        assert it.it.counters.udp.down.datagrams == 2
        assert (len(it.it.nat.tables[family]), len(it.it.nat.tables[family].mappings)) == (1, 1)


@FAMILIES
def test_a_superframe_and_odd_tos_come_as_datagrams(family: int) -> None:
    with case(family) as it:
        payload = bytes(i & 0xFF for i in range(2500))
        it.send(payload, segment=1000)
        assert [data for data, _ in it.taken] == [payload[:1000], payload[1000:2000], payload[2000:]]
        packet = udp_packet(family, OWN, PORT, b"marked", SERVED[family])
        it.it.udp.outbound(replace(packet, tos=0xB8, hop_limit=1))
        assert it.taken[-1][0] == b"marked"
        assert it.it.counters.drops == {}


def test_what_there_is_no_room_for_is_counted_as_of_a_full_socket() -> None:
    with case(4) as it:
        it.room = 1
        for _ in range(3):
            it.send(b"x")
        it.send(bytes(30), segment=10)
        assert it.it.counters.drops == {Drop.SEND_FULL: 5}
        assert it.it.link.frames == [], "the guest hears of none"


@FAMILIES
def test_one_port_of_the_guest_speaks_to_services_and_hosts(family: int) -> None:
    with case(family) as it, server(family) as host:
        port = free_port("udp")
        it.send(b"served", port)
        it.it.send(family, host.getsockname(), b"carried", port)
        assert host.recvfrom(99)[0] == b"carried"
        table = it.it.nat.tables[family]
        assert len(table.mappings) == 1
        (mapping,) = table.mappings.values()
        assert mapping.peers == 2
        it.end_flows()
        assert mapping.peers == 1
        assert len(it.it.watched) == 1, "the socket of the other flow stays"


@FAMILIES
def test_flows_to_an_address_end_and_begin_again(family: int) -> None:
    with case(family) as it:
        guest = ip(GUEST[family]), OWN
        it.send(b"x")
        assert it.end_flows(PORT + 1) == []
        assert len(it.it.nat.tables[family]) == 1
        it.end_flows()
        assert len(it.it.nat.tables[family]) == len(it.it.nat.tables[family].mappings) == 0
        it.answers.send(guest, b"late")
        assert it.it.counters.drops == {Drop.ANSWER_LATE: 1}
        it.send(b"x")
        it.answers.send(guest, b"answer")
        assert it.it.link.payloads == [b"answer"]


def test_flows_end_in_pieces_of_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpasst.udp.nat.PEERS_LOOKED_AT", 4)
    with case(4) as it:
        for port in range(OWN, OWN + 10):
            it.send(b"x", port)
        assert it.end_flows() == [None, None]
        assert len(it.it.nat.tables[4]) == 0


@FAMILIES
def test_an_answer_finds_a_guest_that_changed_its_mac_address(family: int) -> None:
    with case(family) as it:
        it.send(b"x")
        it.it.guest.learn_mac(b"\x02" * 6)
        it.answers.send((ip(GUEST[family]), OWN), b"answer")
        header = it.it.link.runs[0][0]
        assert bytes(header.fill_complete(b"answer"))[10:16] == b"\x02" * 6


def test_a_flow_counts_as_active_when_it_is_answered() -> None:
    with case(4) as it:
        it.send(b"x")
        table = it.it.nat.tables[4]
        (peer,) = table
        assert peer.down_key == down_key(ip(GUEST[4]), it.address, OWN, PORT)
        for now in (1001, 1002):
            list(table.scan(now, 180))
        assert not table.activity[peer.byte] & peer.bit
        it.answers.send((ip(GUEST[4]), OWN), b"answer")
        assert table.activity[peer.byte] & peer.bit


def test_it_is_no_descriptor() -> None:
    sock = ServiceSocket(lambda data, guest: True, (ip(GUEST[4]), OWN))
    assert sock.fileno() == -1
    sock.close()
    with pytest.raises(BlockingIOError) as caught:
        sock.recvmsg(1)
    assert caught.value.errno == errno.EAGAIN
