"""What a test sees of what crosses a link, or the links of a network: what captures and expects.

The work is done by `gpasst.api.captures` and `gpasst.api.expectations`, which are imported when they are first used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpasst import runtime
from gpasst.api.limits import limited
from gpasst.api.opened import Opened
from gpasst.errors import ConfigurationError

if TYPE_CHECKING:
    from gpasst.api.captures import Capture, Observable
    from gpasst.api.expectations import Never
    from gpasst.capture.history import History
    from gpasst.packet.frame import Frame
    from gpasst.runtime import Runtime


class Observer:
    """What can be observed while it is open.

    :ivar _history: what was recorded, None if nothing is.
    """

    _history: History | None

    def _observing(self) -> tuple[Runtime, Observable]:
        """Return the hub, and what is observed there.

        :raises ConfigurationError: if that is not open, or nothing crosses a link here.
        """
        raise NotImplementedError

    def _observed(self) -> tuple[Runtime, Observable | None]:
        """Return the same; None for what is observed once it is closed."""
        raise NotImplementedError

    @limited()
    def capture(
        self, path: str | os.PathLike[str] | None = None, filter: str | Callable[[Frame], Any] | None = None
    ) -> Capture:
        """Capture what crosses from now on, until the end of a ``with`` statement or `Capture.close`.

        ::

            with net.capture(filter="udp dport 53") as capture:
                net.run(["dig", "example.org"])
                capture.wait_for(lambda frame: b"example" in frame.payload, timeout=2)
                print(capture)

        :param path: a file to write as well: pcapng if its name ends with ``.pcapng``, else pcap.
        :param filter: what is captured: a match in the words of the rules of weather, or a function of a parsed frame.
        :raises ConfigurationError: if the filter makes no sense or stands in the path's place, or nothing crosses a
            link here.
        :raises PlatformError: if the file cannot be opened or written.
        """
        from gpasst.api.captures import capture

        return capture(*self._observing(), None if path is None else os.fspath(path), filter)

    @limited()
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was recorded to a capture file, also after the end; it takes ``record=True``.

        :param path: as of `capture`.
        :raises ConfigurationError: if nothing was recorded.
        :raises PlatformError: if the file cannot be opened or written.
        """
        from gpasst.api.captures import save

        history = self._recorded()
        here, source = self._observed()
        save(here, history, source, os.fspath(path))

    def expect(self, protocol: str | None = None, *, count: int = 1, timeout: float = 2.0, **match: Any) -> Frame:
        """Return the frame that was expected; wait for it if it has not crossed since the start.

        It takes ``record=True``::

            net.expect("udp", dst="192.0.2.53", dport=53, timeout=1)

        :param protocol: ``"udp"``, ``"tcp"``, ``"icmp"``, ``"arp"``, ``"ndp"`` or ``"dhcp"``; None for any.
        :param count: how many such frames are expected; the last of them is returned.
        :param timeout: seconds.
        :param match: `src`, `dst`, `sport`, `dport`, `to`, `size` and `flags` as in rules of weather; `payload`, the
            exact bytes; and `when`, a function of a parsed frame.
        :raises AssertionError: if it has not crossed by then, with a table of what has.
        :raises ConfigurationError: if the match makes no sense, or nothing is recorded.
        """
        from gpasst.api.expectations import expect

        __tracebackhide__ = True  # pytest shows the caller's line
        history = self._recorded()
        return expect(*self._observing(), history, count, timeout, {"protocol": protocol, **match})

    def count(self, protocol: str | None = None, **match: Any) -> int:
        """Return how many such frames have crossed, of those that are kept; the parameters are those of `expect`."""
        from gpasst.api.expectations import count

        history = self._recorded()
        here, source = self._observed()
        return count(here, history, source, {"protocol": protocol, **match})

    def never(self, protocol: str | None = None, **match: Any) -> Never:
        """Return a ``with`` statement in which no such frame may cross; the parameters are those of `expect`.

        ::

            with net.never("udp", dst="203.0.113.9"):
                net.run(["./node", "--offline"])

        :raises ConfigurationError: if the match makes no sense, or nothing crosses a link here.
        """
        from gpasst.api.expectations import Never

        return Never(*self._observing(), {"protocol": protocol, **match})

    def _recorded(self) -> History:
        if self._history is None:
            raise ConfigurationError("what crosses is not recorded", "open it with record=True")
        return self._history


class Observed(Observer, Opened):
    """A connection that can be observed."""

    def _observing(self) -> tuple[Runtime, Observable]:
        from gpasst.api.captures import link_of

        proxy = self._opened()
        assert self._runtime is not None
        return self._runtime, link_of(proxy)

    def _observed(self) -> tuple[Runtime, Observable | None]:
        if self._proxy is None or self._proxy.link is None:
            return self._runtime or runtime.current(), None
        return self._observing()
