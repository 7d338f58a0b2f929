"""The upward half: what is sent, in flight, acknowledged and sent again."""

from __future__ import annotations

import pytest

from gpasst.tcp.sender import FLIGHT_MAXIMUM, Sender

START = 0xFFFFFC00  # the numbers wrap around after 1024 bytes
MASK = 0xFFFFFFFF
SEQUENCE = 5000  # of the guest's segments
FIELD = 100  # of the guest's window


def opened(window: int = FIELD, mss: int = 1000, scale: int = 7) -> Sender:
    sender = Sender(START, mss)
    sender.scale = scale
    sender.offered(SEQUENCE, START, window << scale)
    return sender


def flying(count: int, **options: int) -> Sender:
    """Return a sender with bytes in flight since second 10."""
    sender = opened(**options)
    sender.sent(count, 10.0)
    return sender


def acknowledge(
    sender: Sender, count: int, field: int = FIELD, now: float = 10.5, bare: bool = True, at: int = 0
) -> bool:
    """Acknowledge all bytes before the one at an index."""
    return sender.acknowledge(SEQUENCE + at, (START + count) & MASK, field, bare, now)


def at(sender: Sender) -> tuple[int, int]:
    """Return the indices of the oldest byte in flight and of the next one."""
    return (sender.unacknowledged - START) & MASK, (sender.next - START) & MASK


@pytest.mark.parametrize(
    ("window", "flight", "room"),
    [
        (12800, 0, 12800),
        (12800, 10000, 2800),
        (12800, 12000, 0),
        (12800, 12800, 0),
        (12800, 13000, 0),
        (128, 0, 128),
        (128, 100, 0),
        (0, 0, 0),
        (1 << 23, 0, FLIGHT_MAXIMUM),
        (1 << 23, FLIGHT_MAXIMUM - 1000, 1000),
        (1 << 23, FLIGHT_MAXIMUM, 0),
    ],
    ids=[
        "the whole window",
        "what is in flight counts",
        "less than a segment waits behind others",
        "a full window",
        "a window that shrank",
        "a window below a segment is filled",
        "but only by one segment",
        "a closed window",
        "a window beyond what may be in flight",
        "the last segment of that",
        "no more than that",
    ],
)
def test_room(window: int, flight: int, room: int) -> None:
    sender = flying(flight)
    sender.window = window
    assert sender.room() == room


def test_what_is_acknowledged_is_discarded() -> None:
    sender = flying(3000)
    assert acknowledge(sender, 2000) is False
    assert at(sender) == (2000, 3000)
    assert sender.discard == 2000
    assert acknowledge(sender, 3000, now=11.0) is False
    assert at(sender) == (3000, 3000)
    assert (sender.discard, sender.progress, sender.in_flight) == (3000, 11.0, 0)


def test_an_old_acknowledgement_changes_nothing() -> None:
    sender = flying(3000)
    acknowledge(sender, 2000)
    assert acknowledge(sender, 1000, field=7) is False
    assert at(sender) == (2000, 3000)
    assert (sender.window, sender.discard) == (12800, 2000)


@pytest.mark.parametrize(
    ("count", "foreign"),
    [
        (3000, False),
        (3001, True),
        (1 << 30, True),
        (0, False),
        (-1, False),
        (-FLIGHT_MAXIMUM, False),
        (-FLIGHT_MAXIMUM - 1, True),
    ],
)
def test_an_acknowledgement_that_the_guest_cannot_have_sent(count: int, foreign: bool) -> None:
    assert flying(3000).is_foreign((START + count) & MASK) is foreign


def test_the_second_duplicate_sends_the_flight_again_once() -> None:
    sender = flying(5000)
    acknowledge(sender, 1000)
    assert acknowledge(sender, 1000) is False
    assert acknowledge(sender, 1000) is True
    assert at(sender) == (1000, 1000)
    sender.sent(4000, 10.6)
    # These answer the segments that were in flight already.
    assert [acknowledge(sender, 1000) for _ in range(9)] == [False] * 9
    assert acknowledge(sender, 3000) is False
    assert [acknowledge(sender, 3000) for _ in range(9)] == [False] * 9
    assert at(sender) == (3000, 5000)


def test_a_later_flight_has_duplicates_of_its_own() -> None:
    sender = flying(2000)
    assert [acknowledge(sender, 0), acknowledge(sender, 0)] == [False, True]
    sender.sent(4000, 10.6)
    acknowledge(sender, 2000)
    assert [acknowledge(sender, 2000), acknowledge(sender, 2000)] == [False, True]


def test_duplicates_count_after_more_bytes_than_half_of_all_numbers() -> None:
    sender = flying(0)
    for _ in range(5):
        total = 1 << 29
        sender.sent(total, 10.0)
        sender.acknowledge(SEQUENCE, sender.next, FIELD, True, 10.5)
    sender.sent(2000, 11.0)
    oldest = sender.unacknowledged
    assert sender.acknowledge(SEQUENCE, oldest, FIELD, True, 11.5) is False
    assert sender.acknowledge(SEQUENCE, oldest, FIELD, True, 11.5) is True


@pytest.mark.parametrize(
    ("bare", "field", "flight"),
    [(False, FIELD, 3000), (True, FIELD + 1, 3000), (True, FIELD, 0)],
    ids=["with data", "with another window", "with nothing in flight"],
)
def test_what_is_no_duplicate(bare: bool, field: int, flight: int) -> None:
    sender = flying(flight)
    assert acknowledge(sender, 0, field, bare=bare) is False
    assert acknowledge(sender, 0, field, bare=bare) is False
    assert at(sender) == (0, flight)


def test_what_was_sent_before_a_rewind_may_still_be_acknowledged() -> None:
    sender = flying(5000)
    sender.again(11.0)
    sender.sent(1000, 11.0)
    assert acknowledge(sender, 4000) is False
    assert at(sender) == (4000, 4000)
    assert sender.discard == 4000
    assert not sender.is_foreign((START + 5000) & MASK)
    assert sender.is_foreign((START + 5001) & MASK)


def test_a_window_of_an_older_segment_does_not_count() -> None:
    sender = opened()
    acknowledge(sender, 0, field=200, at=1000)
    acknowledge(sender, 0, field=50, at=500)
    assert sender.window == 200 * 128
    acknowledge(sender, 0, field=50, at=1000)
    assert sender.window == 50 * 128


def test_a_window_that_closes_over_the_flight_means_that_it_is_lost() -> None:
    sender = flying(5000)
    assert acknowledge(sender, 1000, field=0) is True
    assert at(sender) == (1000, 1000)
    assert (sender.room(), sender.blocked, sender.stalled) == (0, True, True)
    assert acknowledge(sender, 1000, field=1) is False
    assert (sender.room(), sender.stalled) == (128, False)


def test_a_window_that_closes_behind_the_flight_is_just_full() -> None:
    sender = flying(5000)
    assert acknowledge(sender, 5000, field=0) is False
    assert at(sender) == (5000, 5000)
    assert sender.room() == 0


def test_a_closed_window_is_probed_with_one_byte() -> None:
    sender = opened(window=0)
    sender.blocked = True
    assert sender.room() == 0
    sender.again(12.0)
    assert sender.room() == 1
    sender.sent(1, 12.0)
    assert sender.room() == 0
    assert acknowledge(sender, 1, field=0) is False
    assert at(sender) == (1, 1)
    assert sender.retries == 0


def test_the_byte_of_a_probe_is_sent_again_when_the_window_opens() -> None:
    """The guest took none of it, and one segment behind it would bring no second duplicate acknowledgement."""
    sender = opened(window=0)
    sender.blocked = True
    sender.again(11.0)
    sender.sent(1, 11.0)
    assert not acknowledge(sender, 0, field=0, now=11.1)
    assert acknowledge(sender, 0, now=11.2)
    assert at(sender) == (0, 0)


def test_progress_ends_the_retries() -> None:
    sender = flying(2000)
    for count in range(1, 4):
        sender.again(10.0 + count)
        sender.sent(2000, 10.0 + count)
        assert sender.retries == count
    acknowledge(sender, 1, now=14.0)
    assert (sender.retries, sender.progress) == (0, 14.0)


def test_the_fin_takes_a_number_and_nothing_of_the_queue() -> None:
    sender = flying(500)
    acknowledge(sender, 500)
    sender.discard = 0
    sender.sent_fin(11.0)
    assert at(sender) == (500, 501)
    assert not sender.fin_acknowledged
    assert acknowledge(sender, 501) is False
    assert (sender.fin_acknowledged, sender.discard) == (True, 0)


def test_the_fin_that_is_sent_again_has_the_same_number() -> None:
    sender = opened()
    sender.sent_fin(10.0)
    sender.again(11.0)
    sender.sent_fin(11.0)
    assert at(sender) == (0, 1)
    assert sender.highest == sender.next


def test_a_narrower_link_sends_the_flight_again_in_smaller_segments() -> None:
    sender = flying(3000)
    assert sender.narrow(1000) is False
    assert sender.narrow(900) is True
    assert (sender.mss, at(sender)) == (900, (0, 0))
