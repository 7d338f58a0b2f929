"""Initial sequence numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.tcp.isn import SECRET_BYTES, initial_sequence, keyed_hash


@pytest.mark.parametrize(
    ("hashed", "seconds", "number"),
    [
        (0x0123456789ABCDEF, 1.5, 0x8B53CA00),
        (0, 0.0, 0),
        (0xFFFFFFFF00000000, 0.0, 0xFFFFFFFF),
        (0xFFFFFFFF00000000, 0.000000032, 0),
        (1, 137.438953472, 1),
    ],
)
def test_a_number_is_the_folded_hash_plus_a_clock(hashed: int, seconds: float, number: int) -> None:
    assert initial_sequence(hashed, seconds) == number


@given(st.integers(0, 2**64 - 1), st.floats(0, 1e6), st.floats(0.001, 100))
def test_the_numbers_of_one_connection_move_on_with_time(hashed: int, seconds: float, later: float) -> None:
    moved = (initial_sequence(hashed, seconds + later) - initial_sequence(hashed, seconds)) % 2**32
    assert abs(moved - later * 31_250_000) < 100


def test_hashes_differ_by_key_and_secret() -> None:
    secrets = [bytes(SECRET_BYTES), bytes([1]) * SECRET_BYTES]
    hashes = {keyed_hash(secret)(key) for secret in secrets for key in (b"one", b"two")}
    assert len(hashes) == 4
    assert all(0 <= hashed < 2**64 for hashed in hashes)
    assert keyed_hash(secrets[0])(b"one") == keyed_hash(secrets[0])(b"one")
