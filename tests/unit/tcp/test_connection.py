"""One connection: each row is a state, an event, and the work, the state and the numbers that follow.

Segments of no connection are in `test_reset`; connections that are refused or accepted, and errors of their sockets, in
the tests of `path`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

import pytest

from gpasst.counters import Drop
from gpasst.formats import TCP_CODEC
from gpasst.tcp.segment import Offer
from gpasst.tcp.sender import FLIGHT_MAXIMUM
from gpasst.tcp.states import OPENING, State
from gpasst.tcp.window import WINDOW_MINIMUM
from gpasst.tcp.work import (
    ABORT,
    ACKNOWLEDGE,
    CLOSE,
    CONFIRM,
    DISCARD,
    KEEP_ALIVE,
    LATER,
    LOOK,
    PROBE,
    REFUSE,
    RESET,
    REWIND,
    SEND,
    SYNCHRONISE,
    WRITE,
)
from tests.support.connections import (
    ACK,
    EDGE,
    FIN,
    FIRST,
    IRS,
    ISS,
    KEY,
    OFFER,
    OUR_FIRST,
    PSH,
    RST,
    SYN,
    URG,
    Event,
    Watched,
    segment,
    sent,
    timer,
    took,
    wrote,
)

NOTHING = 0
ENDED = ABORT | CLOSE
"""The socket is reset, and the guest knows."""
WINDOW = 128000
"""The guest's, 1000 units of 128 bytes."""


def connecting() -> Watched:
    made = Watched()
    made.opened(IRS, OFFER, 64240)
    return made


def syn_received() -> Watched:
    made = connecting()
    assert made.connected() == SYNCHRONISE
    made.synchronise(0.0)
    return made


def syn_sent() -> Watched:
    made = Watched(State.SYN_SENT)
    assert made.greeted() == SYNCHRONISE
    made.synchronise(0.0)
    return made


def established() -> Watched:
    made = syn_received()
    segment()(made)
    return made


def flying() -> Watched:
    """3000 bytes are in flight."""
    return sent(established(), 3000)


def retried() -> Watched:
    """3000 bytes were sent again seven times."""
    made = flying()
    for now in (1, 3, 7, 15, 31, 63, 127):
        made.expired(float(now))
        sent(made, 3000, float(now))
    return made


def closed_window() -> Watched:
    """The guest's window is full, and data waits."""
    made = sent(established(), 3000)
    segment(acknowledgement=OUR_FIRST + 3000, window=0)(made)
    made.sender.discard = 0
    made.sender.blocked = True
    return made


def kept() -> Watched:
    """The socket took half of 1000 bytes."""
    made = established()
    segment(data=bytes(1000))(made)
    made.wrote(500)
    return made


def finishing() -> Watched:
    """The socket took half of 1000 bytes and the guest's FIN is behind them."""
    made = established()
    segment(FIN | ACK, data=bytes(1000))(made)
    made.wrote(500)
    return made


def owing() -> Watched:
    """The socket took data that is not acknowledged yet."""
    made = established()
    segment(data=b"hello")(made)
    made.wrote(5)
    return made


def last_data() -> Watched:
    """Data with the guest's FIN is to be offered to the socket."""
    made = established()
    segment(FIN | ACK, data=b"hello")(made)
    return made


def ended_in_flight() -> Watched:
    """The socket has ended, and 3000 bytes are in flight."""
    made = flying()
    assert not made.finished(1.0)
    return made


def fin_wait_1() -> Watched:
    made = established()
    assert made.finished(1.0)
    return made


def fin_wait_2() -> Watched:
    made = fin_wait_1()
    segment(acknowledgement=OUR_FIRST + 1)(made)
    return made


def close_wait() -> Watched:
    made = established()
    segment(FIN | ACK)(made)
    assert made.shut() == ACKNOWLEDGE
    return made


def closing() -> Watched:
    made = fin_wait_1()
    segment(FIN | ACK)(made)
    assert made.shut() == ACKNOWLEDGE
    return made


def last_ack() -> Watched:
    made = close_wait()
    assert made.finished(1.0)
    return made


@dataclass(frozen=True)
class Row:
    """One row of the table.

    :ivar says: what happens, as a sentence.
    :ivar start: makes a connection in a state.
    :ivar event: what happens to it.
    :ivar work: the work that follows.
    :ivar state: the state that follows.
    :ivar numbers: attributes of the connection afterwards, where they are of interest.
    :ivar drops: reasons of what was dropped.
    """

    says: str
    start: Callable[[], Watched]
    event: Event
    work: int
    state: State
    numbers: dict[str, object] = field(default_factory=dict)
    drops: tuple[Drop, ...] = ()


ALL = OUR_FIRST + 3000
"""Acknowledgement of all that is in flight."""

HANDSHAKE = [
    Row("a SYN is sent again while the socket connects", connecting, segment(SYN, IRS), NOTHING, State.CONNECTING),
    Row("the socket is connected", connecting, lambda made: made.connected(), SYNCHRONISE, State.SYN_RECEIVED),
    Row(
        "the socket is refused",
        connecting,
        lambda made: made.abort(),
        RESET | ENDED,
        State.CLOSED,
        {"refused": 0, "receiver.acknowledged": FIRST},
    ),
    Row("a RST while the socket connects", connecting, segment(RST, FIRST), ENDED, State.CLOSED),
    Row("a RST with another number", connecting, segment(RST, FIRST + 1), NOTHING, State.CONNECTING),
    Row(
        "an acknowledgement of no SYN",
        connecting,
        segment(),
        NOTHING,
        State.CONNECTING,
        drops=(Drop.TCP_UNACCEPTABLE,),
    ),
    Row("the SYN is sent again", syn_received, segment(SYN, IRS), SYNCHRONISE, State.SYN_RECEIVED),
    Row("a SYN of another attempt", syn_received, segment(SYN, 77), SYNCHRONISE, State.SYN_RECEIVED),
    Row("no answer for a second", syn_received, timer(1.0), SYNCHRONISE, State.SYN_RECEIVED),
    Row(
        "the handshake ends",
        syn_received,
        segment(),
        SEND,
        State.ESTABLISHED,
        {"established": True, "sender.window": WINDOW, "sender.next": OUR_FIRST, "sender.mss": 1460},
    ),
    Row(
        "the handshake ends with data",
        syn_received,
        segment(ACK | PSH, data=b"hello"),
        SEND | LOOK | LATER,
        State.ESTABLISHED,
        {"fresh": b"hello", "receiver.next": FIRST + 5},
    ),
    Row(
        "the handshake ends with a FIN",
        syn_received,
        segment(FIN | ACK),
        SEND | WRITE | ACKNOWLEDGE,
        State.ESTABLISHED,
        {"receiver.finishing": True},
    ),
    Row(
        "an acknowledgement of another number",
        syn_received,
        segment(acknowledgement=OUR_FIRST + 1),
        REFUSE,
        State.SYN_RECEIVED,
        {"refused": OUR_FIRST + 1},
        (Drop.TCP_UNACCEPTABLE,),
    ),
    Row("a RST ends the handshake", syn_received, segment(RST, FIRST), ENDED, State.CLOSED),
    Row("a RST elsewhere does not", syn_received, segment(RST, FIRST + 9), NOTHING, State.SYN_RECEIVED),
    Row(
        "the guest accepts",
        syn_sent,
        segment(SYN | ACK, IRS, offer=OFFER),
        CONFIRM | SEND,
        State.ESTABLISHED,
        {
            "established": True,
            "sender.window": 1000,
            "sender.scale": 7,
            "receiver.acknowledged": FIRST,
            "receiver.window.scale": 8,
        },
    ),
    Row(
        "the guest accepts without options",
        syn_sent,
        segment(SYN | ACK, IRS),
        CONFIRM | SEND,
        State.ESTABLISHED,
        {"sender.mss": 536, "sender.scale": 0, "receiver.window.scale": 0},
    ),
    Row("the guest refuses", syn_sent, segment(RST | ACK, 0), ENDED, State.CLOSED),
    Row("a RST that answers nothing", syn_sent, segment(RST, 0), NOTHING, State.SYN_SENT),
    Row(
        "a RST that answers another SYN",
        syn_sent,
        segment(RST | ACK, 0, ISS),
        NOTHING,
        State.SYN_SENT,
        drops=(),
    ),
    Row(
        "an acknowledgement of an older connection",
        syn_sent,
        segment(acknowledgement=ISS - 7),
        REFUSE,
        State.SYN_SENT,
        {"refused": ISS - 7},
        (Drop.TCP_UNACCEPTABLE,),
    ),
    Row("both open at once", syn_sent, segment(SYN, IRS), NOTHING, State.SYN_SENT),
]

DATA = [
    Row(
        "data in order",
        established,
        segment(ACK | PSH, data=b"hello"),
        LOOK | LATER,
        State.ESTABLISHED,
        {"fresh": b"hello", "receiver.next": FIRST + 5, "receiver.acknowledged": FIRST},
    ),
    Row(
        "a whole segment",
        established,
        segment(data=bytes(1460)),
        LOOK | ACKNOWLEDGE,
        State.ESTABLISHED,
    ),
    Row(
        "a second segment before the first is acknowledged",
        owing,
        segment(sequence=FIRST + 5, data=b"hello"),
        LOOK | ACKNOWLEDGE,
        State.ESTABLISHED,
    ),
    Row(
        "urgent data is data",
        established,
        segment(ACK | URG, data=b"hello"),
        LOOK | LATER,
        State.ESTABLISHED,
        {"fresh": b"hello"},
    ),
    Row(
        "data while some is kept",
        kept,
        segment(sequence=FIRST + 1000, data=b"hello"),
        WRITE | ACKNOWLEDGE,
        State.ESTABLISHED,
        {"fresh": b"", "receiver.next": FIRST + 1005, "receiver.acknowledged": FIRST + 500},
    ),
    Row(
        "the socket takes the rest",
        kept,
        took(500),
        NOTHING,
        State.ESTABLISHED,
        {"receiver.acknowledged": FIRST + 1000, "receiver.waits": False},
    ),
    Row(
        "data ahead of a gap",
        established,
        segment(sequence=FIRST + 5, data=b"hello"),
        ACKNOWLEDGE,
        State.ESTABLISHED,
        {"fresh": b"", "receiver.next": FIRST},
    ),
    Row(
        "data that came already",
        kept,
        segment(sequence=FIRST, data=bytes(1000)),
        ACKNOWLEDGE,
        State.ESTABLISHED,
        {"fresh": b"", "receiver.next": FIRST + 1000},
    ),
    Row(
        "data that came in part",
        established,
        segment(sequence=FIRST - 3, data=b"...hello"),
        LOOK | ACKNOWLEDGE,
        State.ESTABLISHED,
        {"fresh": b"hello", "receiver.next": FIRST + 5},
    ),
    Row(
        "data beyond the window",
        established,
        segment(sequence=EDGE + 1, data=b"hello"),
        ACKNOWLEDGE,
        State.ESTABLISHED,
        {"fresh": b"", "receiver.next": FIRST},
        (Drop.TCP_UNACCEPTABLE,),
    ),
    Row(
        "data that acknowledges what was never sent",
        flying,
        segment(acknowledgement=ALL + 1, data=b"hello"),
        ACKNOWLEDGE,
        State.ESTABLISHED,
        {"fresh": b"", "sender.discard": 0, "sender.unacknowledged": OUR_FIRST},
        (Drop.TCP_UNACCEPTABLE,),
    ),
    Row(
        "data that acknowledges less than the guest ever had to",
        flying,
        segment(acknowledgement=OUR_FIRST - FLIGHT_MAXIMUM - 1, data=b"hello"),
        ACKNOWLEDGE,
        State.ESTABLISHED,
        {"fresh": b"", "receiver.next": FIRST, "sender.unacknowledged": OUR_FIRST},
        (Drop.TCP_UNACCEPTABLE,),
    ),
    Row(
        "data that was sent before the last acknowledgement",
        flying,
        segment(acknowledgement=OUR_FIRST - FLIGHT_MAXIMUM, data=b"hello"),
        LOOK | LATER,
        State.ESTABLISHED,
        {"fresh": b"hello", "sender.unacknowledged": OUR_FIRST},
    ),
    Row(
        "data without acknowledgement",
        established,
        segment(PSH, data=b"hello"),
        NOTHING,
        State.ESTABLISHED,
        {"fresh": b"", "receiver.next": FIRST},
        (Drop.TCP_UNACCEPTABLE,),
    ),
    Row(
        "a keep-alive without data",
        established,
        segment(sequence=FIRST - 1),
        ACKNOWLEDGE | KEEP_ALIVE,
        State.ESTABLISHED,
    ),
    Row(
        "a keep-alive with one byte",
        established,
        segment(sequence=FIRST - 1, data=b"\0"),
        ACKNOWLEDGE | KEEP_ALIVE,
        State.ESTABLISHED,
        {"fresh": b""},
    ),
    Row("a SYN+ACK again", established, segment(SYN | ACK, IRS), ACKNOWLEDGE, State.ESTABLISHED),
    Row("a SYN in the window", established, segment(SYN, FIRST), ACKNOWLEDGE, State.ESTABLISHED),
    Row(
        "a SYN of a guest that began anew",
        established,
        segment(SYN, IRS + (1 << 30)),
        ACKNOWLEDGE,
        State.ESTABLISHED,
        drops=(Drop.TCP_UNACCEPTABLE,),
    ),
]

RESETS = [
    Row("a RST behind all data", established, segment(RST, FIRST), ENDED, State.CLOSED),
    Row("a RST in the window", established, segment(RST, FIRST + 1), ACKNOWLEDGE, State.ESTABLISHED),
    Row("an old RST", established, segment(RST, FIRST - 1), NOTHING, State.ESTABLISHED),
    Row(
        "a RST beyond the window",
        established,
        segment(RST, EDGE + 1),
        NOTHING,
        State.ESTABLISHED,
        drops=(Drop.TCP_UNACCEPTABLE,),
    ),
    Row("a RST behind data that is kept", kept, segment(RST, FIRST + 1000), ENDED, State.CLOSED),
    Row("a RST of a guest that has forgotten the connection", kept, segment(RST, FIRST + 500), ENDED, State.CLOSED),
    Row("a RST behind a FIN that waits", finishing, segment(RST, FIRST + 1001), ENDED, State.CLOSED),
    Row(
        "an error of the socket",
        flying,
        lambda made: made.abort(),
        RESET | ENDED,
        State.CLOSED,
        {"refused": ALL, "receiver.acknowledged": FIRST},
    ),
    Row(
        "an error that the guest has heard of",
        flying,
        lambda made: made.abort(without=RESET),
        ENDED,
        State.CLOSED,
    ),
]

ACKNOWLEDGEMENTS = [
    Row(
        "some of the flight",
        flying,
        segment(acknowledgement=OUR_FIRST + 1000),
        DISCARD,
        State.ESTABLISHED,
        {"sender.discard": 1000, "sender.unacknowledged": OUR_FIRST + 1000, "sender.next": ALL},
    ),
    Row(
        "beyond the flight",
        flying,
        segment(acknowledgement=ALL + 1),
        ACKNOWLEDGE,
        State.ESTABLISHED,
        {"sender.discard": 0},
        (Drop.TCP_UNACCEPTABLE,),
    ),
    Row(
        "a window that closes over the flight",
        flying,
        segment(window=0),
        REWIND | SEND,
        State.ESTABLISHED,
        {"sender.next": OUR_FIRST, "sender.stalled": True},
    ),
    Row(
        "a window that closes behind the flight",
        flying,
        segment(acknowledgement=ALL, window=0),
        DISCARD,
        State.ESTABLISHED,
        {"sender.discard": 3000, "sender.window": 0},
    ),
    Row(
        "a window that opens",
        closed_window,
        segment(acknowledgement=ALL, window=10),
        SEND,
        State.ESTABLISHED,
        {"sender.window": 1280},
    ),
]

TIME = [
    Row(
        "a closed window is probed",
        closed_window,
        timer(1.0),
        REWIND | SEND,
        State.ESTABLISHED,
        {"sender.retries": 1},
    ),
    Row(
        "the flight is sent again",
        flying,
        timer(1.0),
        REWIND | SEND,
        State.ESTABLISHED,
        {"sender.retries": 1, "sender.next": OUR_FIRST},
    ),
    Row("the flight was sent again seven times", retried, timer(247.0), RESET | ENDED, State.CLOSED),
    Row("silence for half a minute", established, timer(30.5), PROBE, State.ESTABLISHED),
    Row("silence for more than two hours", established, timer(7440.5), RESET | ENDED, State.CLOSED),
    Row("the socket is connected by nobody", connecting, timer(7440.0), RESET | ENDED, State.CLOSED),
    Row(
        "the FIN is sent again",
        fin_wait_1,
        timer(2.0),
        REWIND | SEND,
        State.FIN_WAIT_1,
        {"sender.next": OUR_FIRST},
    ),
]

ENDS = [
    Row("the last of the flight", ended_in_flight, segment(acknowledgement=ALL), DISCARD | SEND, State.ESTABLISHED),
    Row("some of the flight", ended_in_flight, segment(acknowledgement=ALL - 1), DISCARD | SEND, State.ESTABLISHED),
    Row(
        "data of the guest behind our FIN",
        fin_wait_1,
        segment(data=b"hello"),
        LATER,
        State.FIN_WAIT_1,
        {"fresh": b"hello"},
    ),
    Row(
        "the guest acknowledges our FIN",
        fin_wait_1,
        segment(acknowledgement=OUR_FIRST + 1),
        NOTHING,
        State.FIN_WAIT_2,
        {"sender.discard": 0},
    ),
    Row(
        "the guest acknowledges our FIN with data",
        fin_wait_1,
        segment(acknowledgement=OUR_FIRST + 1, data=b"hello"),
        LATER,
        State.FIN_WAIT_2,
        {"fresh": b"hello"},
    ),
    Row(
        "the guest ends, too",
        fin_wait_2,
        segment(FIN | ACK, acknowledgement=OUR_FIRST + 1),
        WRITE | ACKNOWLEDGE,
        State.FIN_WAIT_2,
    ),
    Row("both have ended", fin_wait_2, lambda made: made.shut(), ACKNOWLEDGE | CLOSE, State.CLOSED),
    Row("both ended at once", closing, segment(sequence=FIRST + 1, acknowledgement=OUR_FIRST + 1), CLOSE, State.CLOSED),
    Row(
        "the guest ends",
        established,
        segment(FIN | ACK),
        WRITE | ACKNOWLEDGE,
        State.ESTABLISHED,
        {"receiver.acknowledged": FIRST},
    ),
    Row(
        "the guest ends with data",
        established,
        segment(FIN | ACK, data=b"hello"),
        LOOK | LATER,
        State.ESTABLISHED,
        {"fresh": b"hello", "receiver.acknowledged": FIRST, "receiver.finishing": True},
    ),
    Row("the socket takes the data before a FIN", last_data, wrote(5), WRITE, State.ESTABLISHED),
    Row(
        "a FIN waits for data that is kept",
        finishing,
        took(400),
        NOTHING,
        State.ESTABLISHED,
        {"receiver.acknowledged": FIRST + 900},
    ),
    Row(
        "a FIN counts behind data that is kept",
        finishing,
        took(500),
        ACKNOWLEDGE,
        State.CLOSE_WAIT,
        {"receiver.acknowledged": FIRST + 1001},
    ),
    Row(
        "the FIN comes again while it waits",
        finishing,
        segment(FIN | ACK, FIRST + 1000),
        WRITE | ACKNOWLEDGE,
        State.ESTABLISHED,
    ),
    Row("the FIN comes again", close_wait, segment(FIN | ACK), ACKNOWLEDGE, State.CLOSE_WAIT),
    Row(
        "the guest goes on to acknowledge",
        lambda: sent(close_wait(), 3000),
        segment(sequence=FIRST + 1, acknowledgement=ALL),
        DISCARD,
        State.CLOSE_WAIT,
        {"sender.discard": 3000},
    ),
    Row(
        "data behind the guest's FIN",
        close_wait,
        segment(sequence=FIRST + 1, data=b"hello"),
        ACKNOWLEDGE,
        State.CLOSE_WAIT,
        {"fresh": b""},
        (Drop.TCP_CLOSED,),
    ),
    Row(
        "the guest acknowledges the last FIN",
        last_ack,
        segment(sequence=FIRST + 1, acknowledgement=OUR_FIRST + 1),
        CLOSE,
        State.CLOSED,
    ),
    Row("the FIN of the guest comes again after ours", last_ack, segment(FIN | ACK), ACKNOWLEDGE, State.LAST_ACK),
]


@pytest.mark.parametrize(
    "row", [*HANDSHAKE, *DATA, *RESETS, *ACKNOWLEDGEMENTS, *TIME, *ENDS], ids=lambda row: f"{row.says}"
)
def test_a_row_of_the_table(row: Row) -> None:
    made = row.start()
    made.drops.clear()
    assert row.event(made) == row.work
    assert made.state is row.state
    assert {name: attrgetter(name)(made) for name in row.numbers} == row.numbers
    assert tuple(made.drops) == row.drops
    if made.state is not State.CLOSED and made.state not in OPENING:
        sequence, acknowledged, _ = made.numbers()
        assert sequence == made.sender.next
        assert acknowledged == made.receiver.acknowledged


def syn_fields(frame: bytes) -> tuple[int, int, int, int, bytes]:
    """Return sequence number, acknowledgement number, flags, window and options of a SYN over IPv4."""
    fields = TCP_CODEC.unpack_from(frame, 34)
    return fields["sequence"], fields["acknowledgement"], fields["flags"], fields["window"], frame[54:62]


def test_a_syn_that_is_sent_again_has_the_same_numbers() -> None:
    made = syn_received()
    frames = {made.synchronise(now) for now in (1.0, 2.0, 3.0)}
    (frame,) = frames
    assert syn_fields(frame) == (ISS, FIRST, SYN | ACK, 65535, bytes.fromhex("020405b401030308"))


def test_the_syn_to_the_guest_offers_to_scale_windows() -> None:
    made = syn_sent()
    assert syn_fields(made.synchronise(1.0)) == (ISS, 0, SYN, 65535, bytes.fromhex("020405b401030308"))


def test_a_guest_that_scales_no_windows_is_offered_no_scale() -> None:
    made = Watched()
    made.opened(IRS, Offer(536, None), 8192)
    made.connected()
    assert syn_fields(made.synchronise(1.0))[4][:4] == bytes.fromhex("020405b4")
    segment(window=8192)(made)
    assert (made.sender.window, made.sender.mss) == (8192, 536)
    made.receiver.acknowledged = made.receiver.next = FIRST + 60000
    assert made.numbers() == (OUR_FIRST, FIRST + 60000, 65535)


def test_a_syn_beyond_the_budget_promises_little() -> None:
    made = Watched(limit=1000)
    made.opened(IRS, OFFER, 64240)
    made.connected()
    assert syn_fields(made.synchronise(1.0))[3] == 4096


def test_the_largest_window_of_a_guest() -> None:
    made = Watched()
    made.opened(IRS, Offer(1460, 14), 65535)
    made.connected()
    segment(window=1)(made)
    assert made.sender.window == 16384
    segment(window=65535)(made)
    assert made.sender.room() == 512 << 10


def test_half_of_the_data_is_kept_and_the_edge_stays() -> None:
    made = kept()
    assert made.numbers() == (OUR_FIRST, FIRST + 500, 255)
    edge = made.receiver.window.edge
    took(500)(made)
    # All but a part of the last unit was promised before; now the window is whole again.
    assert made.numbers() == (OUR_FIRST, FIRST + 1000, 256)
    assert edge <= made.receiver.window.edge


def test_our_fin_waits_until_nothing_is_in_flight() -> None:
    made = ended_in_flight()
    segment(acknowledgement=ALL)(made)
    assert made.finished(2.0)
    assert made.state is State.FIN_WAIT_1
    assert made.numbers()[0] == ALL + 1
    assert not made.finished(2.0)


def test_our_fin_is_sent_again_with_the_same_number() -> None:
    made = fin_wait_1()
    for now in (2.0, 4.0):
        assert made.expired(now) == REWIND | SEND
        assert made.finished(now)
        assert made.numbers()[0] == OUR_FIRST + 1


def due(made: Watched) -> list[tuple[float, int]]:
    """Let a connection's deadlines pass without an answer; return each with its work, to the last."""
    found = []
    while not made.closed:
        now = made.due()
        work = made.expired(now)
        found.append((now, work))
        if work & SYNCHRONISE:
            made.synchronise(now)
        if work & SEND:
            sent(made, min(3000, made.sender.room()), now)
        assert made.closed or made.due() > now
    return found


@pytest.mark.parametrize("start", [syn_received, syn_sent])
def test_the_syn_is_sent_again_for_19_seconds(start: Callable[[], Watched]) -> None:
    answers = [(float(now), SYNCHRONISE) for now in (1, 2, 3, 4, 5, 7, 11)]
    assert due(start()) == [*answers, (19.0, RESET | ENDED)]


def test_a_late_timer_counts_one_try() -> None:
    made = syn_received()
    assert made.expired(1.7) == SYNCHRONISE
    assert made.due() == 2.7
    assert made.sender.retries == 1


def test_the_flight_is_sent_again_for_247_seconds() -> None:
    answers = [(float(now), REWIND | SEND) for now in (1, 3, 7, 15, 31, 63, 127)]
    assert due(flying()) == [*answers, (247.0, RESET | ENDED)]


def test_a_closed_window_that_nobody_answers_for_is_probed_as_long() -> None:
    made = closed_window()
    assert [now for now, _ in due(made)] == [0.5 + now for now in (1, 3, 7, 15, 31, 63, 127, 247)]


def test_a_guest_that_answers_may_keep_its_window_closed() -> None:
    made = closed_window()
    for _ in range(50):
        now = made.due()
        assert made.expired(now) == REWIND | SEND
        assert made.sender.room() == 1
        sent(made, 1, now)
        segment(acknowledgement=ALL, window=0, now=now + 0.1)(made)
    assert made.state is State.ESTABLISHED


def test_a_silent_guest_is_asked_ever_less_often() -> None:
    made = established()
    times = [now for now, _ in due(made)]
    assert times == [0.5 + now for now in (30, 90, 210, 450, 930, 1890, 3810, 5730, 7650)]


def test_a_guest_that_answers_probes_keeps_its_connection() -> None:
    made = established()
    for _ in range(20):
        now = made.due()
        assert made.expired(now) == PROBE
        segment(now=now)(made)
    assert made.due() - now == 1920


def test_a_narrower_link_sends_the_flight_again() -> None:
    made = flying()
    assert made.narrow(1400) == REWIND | SEND
    assert made.narrow(1400) == NOTHING
    assert made.narrow(1) == REWIND | SEND
    assert made.sender.mss == 88


def test_the_socket_that_breaks_is_offered_nothing_more() -> None:
    made = established()
    segment(data=b"hello")(made)
    made.abort()
    assert bytes(made.fresh) == b""
    segment(sequence=FIRST + 5)(made)
    assert bytes(made.fresh) == b""


@pytest.mark.parametrize(
    "start",
    [connecting, syn_received, syn_sent, established, flying, kept, finishing, fin_wait_1, fin_wait_2, close_wait],
)
def test_an_end_gives_the_promise_back(start: Callable[[], Watched]) -> None:
    made = start()
    made.abort()
    made.release()
    assert made.budget.promised == 0


@pytest.mark.parametrize(
    "event",
    [
        segment(sequence=FIRST - 1000, now=5.0),
        segment(acknowledgement=ALL + 1, now=5.0),
        segment(SYN, FIRST, now=5.0),
        segment(RST, FIRST + 1, now=5.0),
    ],
    ids=["an old number", "an acknowledgement of what was never sent", "a SYN", "a RST in the window"],
)
def test_ends_that_disagree_do_not_answer_each_other_without_end(event: Event) -> None:
    made = flying()
    assert [event(made) for _ in range(20)] == [ACKNOWLEDGE] * 8 + [NOTHING] * 12
    assert segment(sequence=FIRST - 1000, data=b"data", now=5.5)(made) == ACKNOWLEDGE
    assert segment(sequence=FIRST - 1000, now=6.0)(made) == ACKNOWLEDGE


def test_a_connection_has_the_names_of_its_ends() -> None:
    assert b"".join(established().ends[:2]) == KEY[4][:8]
    assert established().ends[2:] == (40000, 80)


def test_what_a_socket_takes_at_once_is_not_kept() -> None:
    made = established()
    segment(data=b"hello")(made)
    assert wrote(5)(made) == NOTHING
    assert bytes(made.fresh) == b""
    assert made.numbers()[1] == FIRST + 5


def test_half_of_a_small_window_is_acknowledged_at_once() -> None:
    connection = established()
    connection.receiver.window.promise = WINDOW_MINIMUM
    assert segment(data=bytes(WINDOW_MINIMUM // 2))(connection) == LOOK | ACKNOWLEDGE
