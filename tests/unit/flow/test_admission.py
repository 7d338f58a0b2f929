"""Token buckets: bursts, rates, sources, and what is remembered of them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpasst.flow.admission import ALL, SOURCES_LIMIT, Admission, Rate

START = 1e6  # seconds
EARLY = 0.75  # of a token, which a frame may come before it is there, so that rounding costs no frame
ROUNDING = 1e-6  # tokens; times near START are exact to a tenth of a nanosecond


def admitted(admission: Admission, source: bytes, now: float, frames: int) -> int:
    return sum(admission.admit(source, now) for _ in range(frames))


@pytest.mark.parametrize("rate", [Rate(1, 1), Rate(128, 100), Rate(4096, 4000)])
def test_a_burst_is_admitted_and_then_the_rate(rate: Rate) -> None:
    admission = Admission(rate)
    assert admitted(admission, b"a", START, 2 * rate.burst) == rate.burst
    assert admitted(admission, b"a", START + 1, 2 * rate.burst) == min(rate.per_second, rate.burst)
    pause = rate.burst / rate.per_second
    assert admitted(admission, b"a", START + 1 + pause, 2 * rate.burst) == rate.burst


def test_who_keeps_to_the_rate_is_never_refused() -> None:
    admission = Admission(Rate(10, 100))
    assert all(admission.admit(b"a", START + number / 100) for number in range(1000))


def test_a_pause_gains_no_more_than_a_burst() -> None:
    admission = Admission(Rate(10, 100))
    admission.admit(b"a", START)
    assert admitted(admission, b"a", START + 3600, 100) == 10


def test_sources_have_buckets_of_their_own() -> None:
    admission = Admission(Rate(10, 1))
    assert admitted(admission, b"flood", START, 1000) == 10
    assert admitted(admission, b"other", START, 10) == 10


def test_invented_sources_share_what_all_have_together() -> None:
    admission = Admission(Rate(10, 10))
    sources = [number.to_bytes(4, "big") for number in range(1000)]
    assert sum(admission.admit(source, START) for source in sources) == ALL * 10
    assert sum(admission.admit(source, START + 0.5) for source in sources) == ALL * 5


def test_what_is_refused_takes_no_token() -> None:
    admission = Admission(Rate(2, 1))
    assert admitted(admission, b"a", START, 1000) == 2
    assert admitted(admission, b"a", START + 1, 1000) == 1


def test_the_sources_that_are_remembered_are_bounded() -> None:
    admission = Admission(Rate(10 * SOURCES_LIMIT, 1))
    for number in range(2 * SOURCES_LIMIT):
        admission.admit(number.to_bytes(4, "big"), START)
        admission.admit(b"kept", START)
    assert len(admission) == SOURCES_LIMIT
    assert admitted(admission, b"kept", START, 10 * SOURCES_LIMIT) == 8 * SOURCES_LIMIT


@example([(0, 0.0), (0, 0.25)], 1, 1)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 0.5)), max_size=200),
    st.integers(1, 20),
    st.integers(1, 50),
)
def test_no_more_than_burst_and_rate_are_admitted_in_any_time(
    frames: list[tuple[int, float]], burst: int, per_second: int
) -> None:
    admission, now = Admission(Rate(burst, per_second)), START
    times: dict[int, list[float]] = {}
    for source, pause in frames:
        now += pause
        if admission.admit(bytes((source,)), now):
            times.setdefault(source, []).append(now)
    for seen in times.values():
        for first in range(len(seen)):
            passed = seen[-1] - seen[first]
            assert len(seen) - first <= burst + per_second * passed + EARLY + ROUNDING


def test_whether_a_frame_would_be_refused_takes_no_token() -> None:
    admission = Admission(Rate(2, 1))
    assert not any(admission.refuses(b"a", START) for _ in range(10))
    assert admitted(admission, b"a", START, 10) == 2
    assert admission.refuses(b"a", START)
    assert not admission.refuses(b"b", START)
    assert admitted(admission, b"b", START, 10) == 2
    assert admission.refuses(b"c", START), "what all have together is used up"
    assert not admission.refuses(b"a", START + 1)
