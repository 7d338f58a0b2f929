"""Captures of what crosses, while a namespace or a virtual machine's network is open.

Theory of operation: a `Taker` is a sink of the recorder, on the hub. It filters what crosses, keeps the latest frames
and hands them to a file. A `Capture` is its other end, in the thread or greenlet of the caller: it takes up what is new
and parses it there, so that the hub does no more than the traffic demands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import gevent
from gevent.event import Event

from gpasst.api.handle import Handle
from gpasst.capture.history import History, Latest
from gpasst.capture.record import Record
from gpasst.capture.selection import Predicate, Selection, read_filter
from gpasst.capture.table import table
from gpasst.counters import Counters
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.impair.facts import ICMP, TCP, UDP
from gpasst.link.capture_file import CaptureFile, Interfaces
from gpasst.link.recorder import Recorder, Sink
from gpasst.packet.frame import Frame
from gpasst.values import check_timeout

if TYPE_CHECKING:
    from gpasst.proxy.proxy import Proxy
    from gpasst.runtime import Runtime

T = TypeVar("T")

ORIGIN = "capture"  # names the file in messages
TURN_SECONDS = 0.001  # in which the hub looks at its descriptors, and reads some of what the guest has sent
SETTLE_TURNS = 100  # after which it is left at that: a guest may send without end
FRAMES_PER_TURN = 64  # that are parsed, or written to a file, before others on the hub have their turn


class Observable(NamedTuple):
    """What can be observed: a link, or the links of a network.

    :ivar unread: returns whether a guest has sent what has not been read.
    :ivar recorder: records what crosses.
    :ivar counters: count frames that are missing from a file.
    :ivar links: returns the names of the links that a network has now; None where there is one link alone.
    :ivar link: the one of them that is meant; empty for all.
    """

    unread: Callable[[], bool]
    recorder: Recorder
    counters: Counters
    links: Callable[[], Sequence[str]] | None = None
    link: str = ""

    def sink(self, path: str, counters: Counters) -> Sink:
        """Return what writes what is recorded to a capture file.

        :raises PlatformError: if the file cannot be opened or written.
        """
        named = [self.link] if self.link else self.links() if self.links else None
        return sink_of(path, counters, self.recorder.name, named)


def sink_of(path: str, counters: Counters, name: str, links: Sequence[str] | None) -> Sink:
    """Return what writes records to a capture file.

    :param name: name of the only link.
    :param links: names of the links of a network, to which others may come; None for one link alone.
    :raises PlatformError: if the file cannot be opened or written.
    """
    file = CaptureFile(path, counters, ORIGIN)
    return file.interface(name) if links is None else Interfaces(file, links)


class Taker:
    """The end of a capture on the hub.

    :param selection: what is captured, None for everything.
    :param file: takes it too, None without a file.
    :param link: name of the link that is captured; empty for all.
    :ivar history: what was captured.
    :ivar closed: whether nothing more will come.
    :ivar seen: number of the record behind those that `wait` has returned.
    """

    def __init__(self, selection: Selection | None = None, file: Sink | None = None, link: str = "") -> None:
        self.history = History()
        self.closed = False
        self.seen = 0
        self._selection = selection
        self._file = file
        self._link = link
        self._waiting: set[Event] = set()

    def take(self, records: Sequence[Record]) -> None:
        """Capture records."""
        if self._link:
            records = [record for record in records if record.link == self._link]
        if self._selection:
            records = self._selection.select(records)
        if records:
            self.history.take(records)
            if self._file:
                self._file.take(records)
            for event in self._waiting:
                event.set()

    def wait(self, number: int, timeout: float) -> list[Record]:
        """Wait until there is a record of a number, or no more will come; return the records from there on.

        :param timeout: seconds.
        """
        if self.history.number <= number and not self.closed:
            event = Event()
            self._waiting.add(event)
            try:
                event.wait(timeout)
            finally:
                self._waiting.discard(event)
        self.seen = self.history.number
        return self.history.since(number)

    def close(self) -> None:
        """Capture no more; more calls do nothing."""
        if not self.closed:
            self.closed = True
            if self._file:
                self._file.close()
            for event in self._waiting:
                event.set()


class Capture(Handle):
    """Frames that cross the guest's interface, parsed, from the call of `capture` to `close` or the end of ``with``.

    The latest 10 000 frames are kept, of at most 16 MiB. One thread or greenlet at a time may use it.

    :ivar path: the file that is written, None without one.
    """

    def __init__(self, here: Runtime, source: Observable, taker: Taker, selection: Selection | None, path: str | None):
        self.path = path
        self._here = here
        self._source = source
        self._taker = taker
        self._selection = selection
        self._frames: Latest[Frame] = Latest()
        self._next = 0  # record to be parsed

    def close(self) -> None:
        """Capture no more; what was captured stays. More calls do nothing."""

        def end() -> None:
            if not self._taker.closed:
                settle(self._source)
                self._source.recorder.remove(self._taker)
                self._taker.close()

        self._here.call(end)

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over what was captured by now."""
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __str__(self) -> str:
        frames = self.frames
        return table(frames, self.forgotten)

    @property
    def frames(self) -> list[Frame]:
        """What was captured by now, the latest last.

        :raises Exception: what a filter has raised that is a function.
        """
        self._update()
        return self._frames.since()

    @property
    def udp(self) -> list[Frame]:
        """The datagrams of UDP among `frames`."""
        return [frame for frame in self.frames if frame.protocol == UDP]

    @property
    def tcp(self) -> list[Frame]:
        """The segments of TCP among `frames`."""
        return [frame for frame in self.frames if frame.protocol == TCP]

    @property
    def icmp(self) -> list[Frame]:
        """The messages of ICMP and ICMPv6 among `frames`, but for neighbour and router discovery."""
        return [frame for frame in self.frames if frame.protocol == ICMP]

    @property
    def forgotten(self) -> int:
        """How many frames were captured before those that are kept."""
        return self._frames.forgotten + self._taker.history.forgotten

    def wait_for(self, predicate: Predicate, timeout: float = 5.0) -> Frame:
        """Return the first captured frame that is meant; wait until there is one.

        :param predicate: returns whether a `Frame` is meant.
        :param timeout: seconds.
        :raises AssertionError: if there is none by then, with a table of what was captured.
        :raises ConfigurationError: if the timeout is no number.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        check_timeout(timeout)
        until = time.monotonic() + timeout
        self._update()
        frames = self._frames.since()
        while True:
            for frame in frames:
                if predicate(frame):
                    return frame
            left = until - time.monotonic()
            if left <= 0 or self._taker.closed:
                raise AssertionError(f"no such frame was captured {span(self._taker, timeout)}; what was:\n{self}")
            self._here.call(partial(self._taker.wait, self._next, left))
            frames = self._update()

    def _update(self) -> list[Frame]:
        """Parse what is new, and return it."""
        records = self._here.call(self._since)
        if self._selection:
            self._selection.check()
        fresh: list[Frame] = []
        for turn in in_turns(self._here, records):
            for record in turn:
                fresh += record.parsed()
        for frame in fresh:
            self._frames.add(frame, 1, frame.size)
        return fresh

    def _since(self) -> list[Record]:
        taker = self._taker
        if not taker.closed:
            settle(self._source)
        records, self._next = taker.history.since(self._next), taker.history.number
        return records


def span(taker: Taker, timeout: float) -> str:
    """Return for how long frames were awaited, in words."""
    return "before the end" if taker.closed else f"within {timeout} s"


def capture(here: Runtime, source: Observable, path: str | None, given: str | Predicate | None) -> Capture:
    """Begin what `Connection.capture` returns; see there for the parameters.

    :raises ConfigurationError: if the filter makes no sense.
    :raises PlatformError: if the file cannot be opened or written.
    """
    if path is not None and _is_match(path):
        raise ConfigurationError(
            f"capture {path}: that is a filter, and the file comes first",
            f"write filter={path!r}, or ./{path} for a file of that name",
        )
    selection = None if given is None else read_filter(given)

    def begin() -> Taker:
        file = source.sink(path, source.counters) if path is not None else None
        taker = Taker(selection, file, source.link)
        source.recorder.add(taker)
        return taker

    return Capture(here, source, here.call(begin), selection, path)


def _is_match(text: str) -> bool:
    """Return whether a text is a match in the words of the rules of weather."""
    try:
        read_filter(text)
    except ConfigurationError:
        return False
    return bool(text.strip())


def save(here: Runtime, history: History, source: Observable | None, path: str) -> None:
    """Write what was recorded to a capture file; see `Connection.save`.

    :param source: what is recorded still, None if it is closed.
    :raises PlatformError: if the file cannot be opened or written.
    """
    counters = Counters()
    records = recorded(here, history, source)
    links = list(dict.fromkeys(record.link for record in records if record.link))
    file = sink_of(path, counters, history.name, links or None)
    try:
        for turn in in_turns(here, records):
            file.take(turn)
    finally:
        file.close()
    if counters.drops:
        raise PlatformError(f"{ORIGIN} {path}: not all frames could be written", "make room for them")


def link_of(proxy: Proxy) -> Observable:
    """Return a proxy's link, to be observed.

    :raises ConfigurationError: if it has none.
    """
    if proxy.link is None or proxy.recorder is None:
        raise ConfigurationError("nothing crosses a link here", "leave --splice-only out")
    return Observable(proxy.link.unread, proxy.recorder, proxy.counters)


def recorded(here: Runtime, history: History, source: Observable | None) -> list[Record]:
    """Return what was recorded by now.

    :param source: what is recorded still, None if it is closed.
    """

    def look() -> list[Record]:
        if source is not None:
            settle(source)
        found = history.since()
        return [record for record in found if record.link == source.link] if source and source.link else found

    return here.call(look)


def settle(source: Observable) -> None:
    """Let the frames be read that guests have sent by now, and hand over what was recorded; called on the hub."""
    for _ in range(SETTLE_TURNS):
        gevent.sleep(TURN_SECONDS)
        if not source.unread():
            break
    source.recorder.flush()


def in_turns(here: Runtime, records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Yield parts of some records, between which others on the caller's hub have their turn."""
    start = frames = 0
    for end, record in enumerate(records, 1):
        frames += record.count
        if frames >= FRAMES_PER_TURN:
            yield records[start:end]
            here.breathe()
            start, frames = end, 0
    yield records[start:]
