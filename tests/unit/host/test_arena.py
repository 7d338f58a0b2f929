"""Memory whose address is passed on: where its places are, and when it can go."""

from __future__ import annotations

import ctypes

import pytest

from gpasst.host.arena import Arena


def test_the_address_is_that_of_the_bytes() -> None:
    arena = Arena(10_000)
    assert len(arena) == len(arena.bytes) == 10_000
    arena.bytes[9_000:9_005] = b"there"
    assert ctypes.string_at(arena.address + 9_000, 5) == b"there"
    arena.close()


def test_a_column_has_the_address_of_each_place() -> None:
    arena = Arena(1000)
    assert arena.column(3, 100, 42).tolist() == [arena.address + at for at in (42, 142, 242)]
    assert arena.column(0, 100).tolist() == []
    assert arena.column(2, -100, 200).tolist() == [arena.address + 200, arena.address + 100]
    arena.close()


def test_pages_that_were_given_back_are_blank() -> None:
    arena = Arena(10_000)
    arena.bytes[9_000:9_005] = b"there"
    arena.give_back()
    assert arena.bytes[9_000:9_005] == bytes(5)
    arena.bytes[9_000:9_005] = b"again"
    assert ctypes.string_at(arena.address + 9_000, 5) == b"again"
    arena.close()


@pytest.mark.parametrize(("count", "stride", "offset"), [(11, 100, 0), (1, 1, 1000), (1, 1, -1), (3, -100, 100)])
def test_no_place_begins_outside(count: int, stride: int, offset: int) -> None:
    arena = Arena(1000)
    with pytest.raises(ValueError, match="of 1000 bytes"):
        arena.column(count, stride, offset)
    arena.close()


def test_it_stays_while_it_is_held_or_used() -> None:
    arena = Arena(1000)
    arena.hold()
    with pytest.raises(BufferError, match="address"):
        arena.close()
    arena.bytes[0] = 1
    arena.let_go()
    part = arena.bytes[5:]
    with pytest.raises(BufferError):
        arena.close()
    arena.bytes[0] = 2
    part.release()
    arena.close()
    arena.close()
