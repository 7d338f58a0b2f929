"""Values that are read off the bytes of a fuzzer: the same bytes, the same values, on every Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

BYTE = 256


class Choices:
    """Reads values off bytes; where none are left, each is the least one.

    :param data: the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether bytes are left."""
        return self._at < len(self._data)

    def number(self, below: int) -> int:
        """Return a number from 0 to before `below`, of as few bytes as can tell that many apart."""
        size = ((below - 1).bit_length() + 7) // 8
        return int.from_bytes(self.take(size), "big") % below

    def flag(self) -> bool:
        """Return one of two values."""
        return self.number(2) > 0

    def pick(self, options: Sequence[T]) -> T:
        """Return one of several values."""
        return options[self.number(len(options))]

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer where they end."""
        found = self._data[self._at : self._at + count]
        self._at += len(found)
        return found

    def piece(self, most: int = BYTE) -> bytes:
        """Return bytes behind their number, fewer than `most`."""
        return self.take(self.number(most))

    def exactly(self, count: int) -> bytes:
        """Return so many bytes; where they end, zeros follow."""
        return self.take(count).ljust(count, b"\0")

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self.take(len(self._data))

    def text(self) -> str:
        """Return all that is left as text; what is no UTF-8 becomes characters of one byte."""
        data = self.rest()
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data.decode("latin-1")
