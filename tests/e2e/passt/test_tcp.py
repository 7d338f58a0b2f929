"""TCP of a scripted guest: segments that no kernel sends, and small windows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from select import select

import pytest

import gpasst
from gpasst.formats import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN
from tests.support.families import FAMILY
from tests.support.guests import journey
from tests.support.lab import FAR, HOST, PATIENCE, Remote
from tests.support.passt import EPHEMERAL, PORT, drops
from tests.support.ready import until
from tests.support.scripted import Guest
from tests.support.scripted_tcp import DATA, END, MASK, REFUSAL, WINDOW, Talker, parse_tcp, read_tcp, tcp_frame
from tests.support.streams import accepted, is_reset, listening, noise, received, reset

pytestmark = pytest.mark.usefixtures("remote")

MSS_1460 = bytes.fromhex("020405b4")
SCALED = MSS_1460 + bytes.fromhex("01030307")
SCALE = 8  # of gpasst's windows
NOBODY = "192.0.2.77"  # an address of the host's network that no machine has
SEEN = 0.05  # seconds in which anything that is to come has come


@contextmanager
def served(
    guest: Guest, remote: Remote, family: int, options: bytes = SCALED, window: int = 0
) -> Iterator[tuple[Talker, socket.socket]]:
    """A connection of the guest's; yields both ends.

    :param window: bytes of the remote end's receive buffer, 0 for the kernel's choice.
    """
    sock = remote.socket(FAMILY[family], socket.SOCK_STREAM)
    if window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    with listening(sock, FAR[family]) as (server, address):
        talker = Talker(guest, family, EPHEMERAL, address, options)
        talker.open()
        with accepted(server) as far:
            far.settimeout(PATIENCE)
            yield talker, far
            reset(far)
            while not talker.hear().flags & TCP_RST:
                pass


def nothing_came(far: socket.socket) -> bool:
    return not select([far], [], [], SEEN)[0]


def test_the_handshake(guest: Guest, remote: Remote, family: int) -> None:
    with listening(remote.socket(FAMILY[family], socket.SOCK_STREAM), FAR[family]) as (_, address):
        talker = Talker(guest, family, EPHEMERAL, address, SCALED)
        answer = talker.open()
        mss = 65520 - (40 if family == 4 else 60)
        assert answer.options == b"\x02\x04" + mss.to_bytes(2, "big") + b"\x01\x03\x03\x08"
        assert answer.window == 65535
        assert not answer.payload
        # A handshake that seems to have been lost is answered with the same numbers.
        talker.say(TCP_ACK | TCP_RST)
        second = Talker(guest, family, EPHEMERAL + 1, address, SCALED)
        second.say(TCP_SYN, options=SCALED)
        first_answer = second.hear()
        second.say(TCP_SYN, options=SCALED)
        assert second.hear() == first_answer
        second.say(TCP_RST, ahead=1)


def test_a_guest_without_options(guest: Guest, remote: Remote, family: int) -> None:
    """Segments of 536 bytes (RFC 9293, section 3.7.1), and no scaled windows."""
    with served(guest, remote, family, b"") as (talker, far):
        far.sendall(noise(5000))
        sizes: list[int] = []
        while sum(sizes) < 5000:
            segment = talker.hear()
            assert segment.payload == noise(5000)[sum(sizes) : sum(sizes) + len(segment.payload)]
            sizes.append(len(segment.payload))
        assert max(sizes) == 536
        talker.expected = (talker.expected + 5000) & MASK
        talker.say(TCP_ACK)
        talker.tell(b"answer")
        assert received(far, 6) == b"answer"


@pytest.mark.parametrize("window", [1460, 1461, 1459, 100])
def test_a_window_of_about_one_segment(guest: Guest, remote: Remote, family: int, window: int) -> None:
    with served(guest, remote, family, MSS_1460) as (talker, far):
        talker.window = window
        talker.tell(b"?")
        assert received(far, 1) == b"?", "what came with the window, which is known by now"
        far.sendall(noise(20_000))
        data = b""
        while len(data) < 20_000:
            segment = talker.hear()
            if segment.payload:
                assert len(segment.payload) <= window, "beyond the window"
                assert segment.sequence == talker.expected
                data += segment.payload
                talker.expected = (talker.expected + len(segment.payload)) & MASK
                talker.say(TCP_ACK)
        assert data == noise(20_000)


@pytest.mark.parametrize("distance", [-1, -5000, 1 << 24, 1 << 30])
def test_an_end_in_the_wrong_place_is_not_taken(guest: Guest, remote: Remote, family: int, distance: int) -> None:
    with served(guest, remote, family) as (talker, far):
        talker.tell(b"before")
        assert received(far, 6) == b"before"
        talker.acknowledged()
        talker.say(END, ahead=distance)
        assert talker.hear().acknowledgement == talker.sequence
        assert nothing_came(far)
        talker.tell(b"after", END)
        assert received(far) == b"after"
        talker.acknowledged()


def test_an_end_ahead_waits_for_what_is_before(guest: Guest, remote: Remote, family: int) -> None:
    with served(guest, remote, family) as (talker, far):
        talker.say(END, ahead=5)
        assert talker.hear().acknowledgement == talker.sequence
        assert nothing_came(far)
        talker.tell(b"12345")
        assert received(far) == b"12345"
        talker.sequence = (talker.sequence + 1) & MASK
        talker.acknowledged()


def test_data_behind_the_end_is_counted_and_left(guest: Guest, link: gpasst.Passt, remote: Remote, family: int) -> None:
    before = drops(link, gpasst.Drop.TCP_CLOSED) + drops(link, gpasst.Drop.TCP_UNACCEPTABLE)
    with served(guest, remote, family) as (talker, far):
        talker.tell(b"all", END)
        assert received(far) == b"all"
        talker.acknowledged()
        talker.say(DATA, b"more")
        assert talker.hear().acknowledgement == talker.sequence, "the end is acknowledged, nothing else"
        far.sendall(b"answer")
        assert talker.listen(6) == b"answer"
        assert received(far) == b""
    after = drops(link, gpasst.Drop.TCP_CLOSED) + drops(link, gpasst.Drop.TCP_UNACCEPTABLE)
    assert after == before + 1


@pytest.mark.parametrize("payload", [b"", b"\0"])
def test_a_keep_alive_is_answered_with_the_right_numbers(
    guest: Guest, remote: Remote, family: int, payload: bytes
) -> None:
    with served(guest, remote, family) as (talker, far):
        talker.tell(b"before")
        assert received(far, 6) == b"before"
        talker.acknowledged()
        far.sendall(b"answer")
        assert talker.listen(6) == b"answer"
        talker.say(TCP_ACK, payload, ahead=-1)
        answer = talker.hear()
        assert (answer.flags, answer.payload) == (TCP_ACK, b"")
        assert (answer.sequence, answer.acknowledgement) == (talker.expected, talker.sequence)
        assert nothing_came(far)


def test_a_reset_counts_only_in_its_place(guest: Guest, remote: Remote, family: int) -> None:
    with listening(remote.socket(FAMILY[family], socket.SOCK_STREAM), FAR[family]) as (server, address):
        talker = Talker(guest, family, EPHEMERAL, address, SCALED)
        talker.open()
        with accepted(server) as far:
            talker.say(TCP_RST, ahead=100)
            challenge = talker.hear()
            assert (challenge.flags, challenge.acknowledgement) == (TCP_ACK, talker.sequence)
            talker.say(TCP_RST, ahead=-100)
            talker.say(TCP_SYN, ahead=200)
            assert talker.hear().flags == TCP_ACK
            talker.tell(b"still there")
            assert received(far, 11) == b"still there"
            talker.acknowledged()
            talker.say(TCP_RST)
            assert is_reset(far)


def test_an_acknowledgement_of_what_was_not_sent_loses_nothing(guest: Guest, remote: Remote, family: int) -> None:
    with served(guest, remote, family) as (talker, far):
        talker.say(TCP_ACK, acknowledges=5000)
        assert talker.hear().flags == TCP_ACK
        far.sendall(noise(10_000))
        assert talker.listen(10_000) == noise(10_000)


def test_segments_in_any_order(guest: Guest, remote: Remote, family: int) -> None:
    pieces = [(at, noise(30_000)[at : at + 1000]) for at in range(0, 30_000, 1000)]
    with served(guest, remote, family) as (talker, far):
        for at, piece in [*reversed(pieces[1:]), (500, noise(30_000)[500:1700]), pieces[3]]:
            talker.say(DATA, piece, ahead=at)
            assert talker.hear().acknowledgement == talker.sequence, "the hole"
        assert nothing_came(far)
        talker.tell(pieces[0][1])
        assert received(far, 30_000) == noise(30_000)
        talker.sequence = (talker.sequence + 29_000) & MASK
        talker.acknowledged()


def test_what_was_promised_is_kept(guest: Guest, remote: Remote, family: int) -> None:
    """Whatever the remote end's kernel takes, what is sent into a window arrives, and the edge never moves back."""
    with served(guest, remote, family, window=1 << 14) as (talker, far):
        promised, sent = WINDOW, bytearray()
        while promised or select([guest.socket], [], [], SEEN)[0]:
            if promised:
                piece = noise(1 << 16, len(sent))[: min(promised, 30_000)]
                talker.tell(piece)
                sent += piece
                promised -= len(piece)
            segment = parse_tcp(guest.frame())
            if segment is None:
                continue  # what is advertised from time to time
            edge = (segment.window << SCALE) - ((talker.sequence - segment.acknowledgement) & MASK)
            assert edge >= promised, "a promise that was taken back"
            promised = edge
        assert len(sent) > WINDOW
        assert received(far, len(sent)) == bytes(sent)
        assert talker.acknowledged().window


def test_a_closed_window_is_probed(guest: Guest, link: gpasst.Passt, remote: Remote, family: int) -> None:
    with served(guest, remote, family) as (talker, far):
        advance = journey(link)
        talker.window = 0
        talker.say(TCP_ACK)
        talker.tell(b"ping")
        assert received(far, 4) == b"ping"
        far.sendall(noise(5000))
        assert nothing_came(far)
        for seconds in (1.1, 2.1, 4.1):
            advance(seconds)
            while not (probe := talker.hear()).payload:
                pass
            assert (probe.sequence, probe.payload) == (talker.expected, noise(5000)[:1])
            talker.say(TCP_ACK)
        talker.window = 8000
        talker.say(TCP_ACK)
        # The byte of the probe again, at once.
        assert talker.listen(5000) == noise(5000)


def test_segments_of_no_connection(guest: Guest, family: int) -> None:
    ends, ports = (HOST[family], FAR[family]), (EPHEMERAL, 9999)
    guest.send(tcp_frame(ends, ports, (1000, 777), TCP_ACK, payload=b"data"))
    answer = read_tcp(guest)
    assert (answer.flags, answer.sequence, answer.window) == (TCP_RST, 777, 0)
    guest.send(tcp_frame(ends, ports, (1000, 0), TCP_FIN, payload=b"data"))
    answer = read_tcp(guest)
    assert (answer.flags, answer.sequence, answer.acknowledgement) == (REFUSAL, 0, 1005)
    guest.send(tcp_frame(ends, ports, (1000, 0), TCP_RST))
    guest.send(tcp_frame(ends, ports, (1000, 888), TCP_ACK))
    assert read_tcp(guest).sequence == 888, "a RST is not answered"


@pytest.mark.parametrize("target", ["224.0.0.251", "255.255.255.255", "192.0.2.255", "ff02::fb", "ff05::2"])
def test_no_connection_to_many_hosts(guest: Guest, link: gpasst.Passt, target: str) -> None:
    family = 6 if ":" in target else 4
    before = drops(link, gpasst.Drop.NOT_UNICAST)
    guest.send(tcp_frame((HOST[family], target), (EPHEMERAL, 80), (1000, 0), TCP_SYN, options=SCALED))
    # Whatever follows has been looked at after it.
    guest.send(tcp_frame((HOST[family], FAR[family]), (EPHEMERAL, 9999), (1000, 5), TCP_ACK))
    answer = read_tcp(guest)
    assert (answer.source, answer.sequence) == ((FAR[family], 9999), 5)
    assert drops(link, gpasst.Drop.NOT_UNICAST) == before + 1
    assert target not in {flow.shown[0] for flow in link.flows()}


def test_a_client_of_a_forward(guest: Guest, remote: Remote, family: int) -> None:
    guest.send(tcp_frame((HOST[family], FAR[family]), (EPHEMERAL, 9999), (1000, 5), TCP_ACK))
    read_tcp(guest)
    with remote.socket(FAMILY[family], socket.SOCK_STREAM) as client:
        client.bind((FAR[family], 0))
        client.connect((HOST[family], PORT))
        syn = read_tcp(guest)
        assert (syn.flags, syn.source, syn.port) == (TCP_SYN, client.getsockname()[:2], PORT)
        talker = Talker(guest, family, PORT, client.getsockname()[:2])
        talker.expected = (syn.sequence + 1) & MASK
        talker.say(TCP_SYN | TCP_ACK, options=SCALED)
        talker.sequence = (talker.sequence + 1) & MASK
        bare = talker.hear()
        assert (bare.flags, bare.sequence, bare.acknowledgement, bare.payload) == (
            TCP_ACK,
            talker.expected,
            talker.sequence,
            b"",
        )
        client.sendall(b"question")
        assert talker.listen(8) == b"question"
        talker.tell(b"answer", END)
        assert received(client) == b"answer"
        client.close()
        while not talker.hear().flags & TCP_FIN:
            pass
        talker.expected = (talker.expected + 1) & MASK
        talker.say(TCP_ACK)


def test_a_guest_that_forgot_its_connection_opens_another(guest: Guest, remote: Remote, family: int) -> None:
    """As after a reboot, from the same port to the same target (RFC 9293, section 3.5.1)."""
    with listening(remote.socket(FAMILY[family], socket.SOCK_STREAM), FAR[family]) as (server, address):
        first = Talker(guest, family, EPHEMERAL, address, SCALED)
        first.open()
        with accepted(server) as far:
            first.tell(b"before")
            assert received(far, 6) == b"before"
            first.acknowledged()
            again = Talker(guest, family, EPHEMERAL, address, SCALED)
            again.sequence = 0x12345678
            again.say(TCP_SYN, options=SCALED)
            challenge = again.hear()
            assert (challenge.flags, challenge.acknowledgement) == (TCP_ACK, first.sequence)
            # A kernel knows nothing of what is acknowledged there.
            guest.send(tcp_frame(again.ends, again.ports, (challenge.acknowledgement, 0), TCP_RST))
            assert is_reset(far)
        again.open()
        with accepted(server) as far:
            again.tell(b"after")
            assert received(far, 5) == b"after"
            reset(far)
            while not again.hear().flags & TCP_RST:
                pass


def test_a_guest_that_gives_up_while_its_target_is_sought(guest: Guest, link: gpasst.Passt) -> None:
    def opening() -> list[str]:
        return [flow.state for flow in link.flows() if flow.shown == (NOBODY, 80)]

    talker = Talker(guest, 4, EPHEMERAL, (NOBODY, 80), SCALED)
    talker.say(TCP_SYN, options=SCALED)
    until(lambda: opening() == ["CONNECTING"], "the guest's SYN")
    # Again, as a kernel does after a second; one connection is made.
    talker.say(TCP_SYN, options=SCALED)
    talker.say(TCP_RST, ahead=1)
    until(lambda: opening() == [], "the guest's RST")


def test_both_ends_end_at_once(guest: Guest, link: gpasst.Passt, remote: Remote, family: int) -> None:
    """Each FIN crosses the other one (RFC 9293, section 3.6, figure 13)."""
    with listening(remote.socket(FAMILY[family], socket.SOCK_STREAM), FAR[family]) as (server, address):
        talker = Talker(guest, family, EPHEMERAL, address, SCALED)
        talker.open()
        with accepted(server) as far:
            far.shutdown(socket.SHUT_WR)
            while not (theirs := talker.hear()).flags & TCP_FIN:
                pass
            assert theirs.sequence == talker.expected
            talker.tell(b"", END)
            assert received(far) == b""
            talker.expected = (talker.expected + 1) & MASK
            talker.say(TCP_ACK)
            until(lambda: address not in [flow.shown for flow in link.flows()], "the end of both")
