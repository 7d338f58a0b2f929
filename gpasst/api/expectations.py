"""What a test expects to cross, or never to cross.

Theory of operation: an expectation looks at what was recorded since the connection was opened (`record=True`), and then
waits for more. Both begin in one step on the hub, so no frame is missed or seen twice. A frame that was lost on its way
to the guest does not count, one that the guest has sent does, whatever became of it.
"""

from __future__ import annotations

import time
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gpasst.api.captures import Observable, Taker, in_turns, recorded, settle, span
from gpasst.capture.history import History
from gpasst.capture.record import Record
from gpasst.capture.selection import build_filter
from gpasst.capture.table import table
from gpasst.errors import ConfigurationError
from gpasst.packet.frame import Frame
from gpasst.values import check_timeout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from gpasst.runtime import Runtime


def expect(
    here: Runtime, source: Observable, history: History, count: int, timeout: float, match: dict[str, Any]
) -> Frame:
    """Do what `Connection.expect` does; `match` has the keywords of `gpasst.capture.selection.build_filter`.

    :raises AssertionError: if too few frames have crossed by then.
    :raises BaseException: what `when` has raised.
    :raises ConfigurationError: if the count or the match makes no sense.
    """
    __tracebackhide__ = True  # pytest shows the caller's line
    if not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"count {count!r}: cannot be expected", "give 1 or more, or write never")
    check_timeout(timeout)
    selection = build_filter(**match)
    until = time.monotonic() + timeout
    taker = Taker(selection, link=source.link)

    def begin() -> Sequence[Record]:
        found = recorded(here, history, source)
        source.recorder.add(taker)
        return found

    found: list[Frame] = []
    try:
        for turn in in_turns(here, here.call(begin)):
            found += _arrived(selection.select(turn))
        seen = 0
        while len(found) < count:
            left = until - time.monotonic()
            if left <= 0 or taker.closed:
                break
            fresh = here.call(partial(taker.wait, seen, left))
            seen = taker.seen
            found += _arrived(fresh)
        waited = span(taker, timeout)
    finally:
        here.call(lambda: source.recorder.remove(taker))
    selection.check()
    if len(found) >= count:
        return found[count - 1]
    turns = in_turns(here, recorded(here, history, source))
    crossed = [frame for turn in turns for record in turn for frame in record.parsed()]
    raise AssertionError(
        f"expected {count} x {selection}, found {len(found)} {waited}; what crossed:\n"
        f"{table(crossed, history.forgotten)}"
    )


def count(here: Runtime, history: History, source: Observable | None, match: dict[str, Any]) -> int:
    """Do what `Connection.count` does; `match` has the keywords of `gpasst.capture.selection.build_filter`.

    :raises ConfigurationError: if the match makes no sense.
    """
    selection = build_filter(**match)
    records = recorded(here, history, source)
    number = sum(len(_arrived(selection.select(turn))) for turn in in_turns(here, records))
    selection.check()
    return number


class Never:
    """A ``with`` statement in which certain frames must not cross.

    :param match: the keywords of `gpasst.capture.selection.build_filter`.
    :raises ConfigurationError: if the match makes no sense.
    """

    def __init__(self, here: Runtime, source: Observable, match: dict[str, Any]) -> None:
        self._here = here
        self._source = source
        self._selection = build_filter(**match)
        self._taker = Taker(self._selection, link=source.link)

    def __enter__(self) -> Self:
        self._taker = taker = Taker(self._selection, link=self._source.link)
        self._here.call(lambda: self._source.recorder.add(taker))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True  # pytest shows the caller's line
        taker = self._taker

        def end() -> Sequence[Record]:
            settle(self._source)
            self._source.recorder.remove(taker)
            return taker.history.since()

        found = _arrived(self._here.call(end))
        if kind is not None:
            return
        self._selection.check()
        if found:
            raise AssertionError(f"expected never {self._selection}, but:\n{table(found, taker.history.forgotten)}")


def _arrived(records: Sequence[Record]) -> list[Frame]:
    """Return the frames of some records, without those that did not reach the guest."""
    return [frame for record in records if record.crossed for frame in record.parsed()]
