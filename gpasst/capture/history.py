"""The latest frames that crossed: as many as are kept, in bounded memory.

Theory of operation: records are kept as they came, superframes whole, and parsed when somebody looks. The oldest go
first when there are more than `FRAMES_LIMIT` frames or `BYTES_LIMIT` bytes. A reader takes them up where it left off
(`Latest.since`), so that each is parsed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final, Generic, TypeVar

from gpasst.capture.record import Record

FRAMES_LIMIT: Final = 10_000
BYTES_LIMIT: Final = 16 << 20
ITEM_BYTES: Final = 200  # of memory that an item takes beside its data

T = TypeVar("T")


class Latest(Generic[T]):
    """The latest of some items that stand for frames.

    :ivar frames: how many frames are kept.
    :ivar forgotten: how many frames were let go.
    """

    def __init__(self) -> None:
        self._items: deque[tuple[T, int, int]] = deque()
        self._bytes = 0
        self._gone = 0  # items that were let go
        self.frames = 0
        self.forgotten = 0

    def add(self, item: T, count: int, size: int) -> None:
        """Keep an item.

        :param count: frames that it stands for.
        :param size: bytes of its data.
        """
        items = self._items
        size += ITEM_BYTES
        items.append((item, count, size))
        self.frames += count
        self._bytes += size
        while (self.frames > FRAMES_LIMIT or self._bytes > BYTES_LIMIT) and len(items) > 1:
            _, count, size = items.popleft()
            self._gone += 1
            self.frames -= count
            self.forgotten += count
            self._bytes -= size

    def since(self, number: int = 0) -> list[T]:
        """Return the items from a number on, counted from 0 at the first that was ever kept."""
        return [item for item, _, _ in islice(self._items, max(0, number - self._gone), None)]

    @property
    def number(self) -> int:
        """The number of the next item."""
        return self._gone + len(self._items)


class History(Latest[Record]):
    """The latest records, as a sink of the recorder.

    :ivar name: name of the link that is recorded; empty before it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = ""

    def take(self, records: Sequence[Record]) -> None:
        """Keep records."""
        for record in records:
            self.add(record, record.count, len(record.data))

    def close(self) -> None:
        """Keep what there is: it may be looked at when the link is gone."""
