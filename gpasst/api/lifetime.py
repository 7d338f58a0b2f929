"""What is opened on the hub of a runtime, and closed there: by a ``with`` statement, an ``async with``, or by hand.

Theory of operation: opening runs on the hub, where others have their turn while it waits. It may be closed meanwhile by
somebody who finds nothing to close; then the opening closes what it has made. Between `close` and the next `open` the
object refers to no hub.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from gpasst import runtime
from gpasst.errors import ConfigurationError

if TYPE_CHECKING:
    from typing_extensions import Self


class Lifetime:
    """The base of what is opened and closed."""

    _runtime: runtime.Runtime | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        from gpasst.api.asynchronous import open_elsewhere

        await open_elsewhere(self.open, self.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from gpasst.api.asynchronous import close_elsewhere

        await close_elsewhere(self.close)

    def open(self) -> None:
        """Open; traffic can pass when this returns.

        :raises ConfigurationError: if it is open already, an option names what does not exist, or `close` was called
            meanwhile.
        :raises PlatformError: if the kernel, a permission or a busy port is in the way.
        """
        here = runtime.current()
        if self._runtime is not None:
            raise ConfigurationError(f"this {type(self).__name__} is open already", "make another one")
        self._runtime = here
        here.call(lambda: self._start(here))

    def close(self) -> None:
        """Close all that belongs to it. More calls do nothing."""
        here, self._runtime = self._runtime, None
        if here is not None:
            here.call(self._close)

    def _start(self, here: runtime.Runtime) -> None:
        """Open, unless that fails or `close` is called while others run."""
        try:
            self._begin(here)
        except BaseException:
            self._close()
            self._runtime = None
            raise
        if self._runtime is None:
            # That call found nothing to close.
            self._close()
            raise ConfigurationError(f"this {type(self).__name__} was closed while it was opened", "open it again")

    def _begin(self, here: runtime.Runtime) -> None:
        """Open, on the hub of the calling greenlet, which is that of `here`."""
        raise NotImplementedError

    def _close(self) -> None:
        """Close, on that hub; more calls do nothing."""
        raise NotImplementedError
