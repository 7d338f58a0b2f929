"""What `Pasta` and `Passt` share: a configuration, and a proxy while it is open."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from gpasst import runtime
from gpasst.config import Config, given_fields
from gpasst.counters import Statistics
from gpasst.errors import ConfigurationError
from gpasst.flow.network import GuestNetwork
from gpasst.flow.record import Flow, Forward
from gpasst.proxy.proxy import Proxy

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

RESOLVER_FILE = "/etc/resolv.conf"


class Connection:
    """What `Pasta` and `Passt` share: a configuration, and a proxy while it is open.

    :ivar config: what was asked for.
    """

    mode = ""

    def __init__(self, config: Config | None, fields: dict[str, Any]) -> None:
        if config is not None and fields:
            raise ConfigurationError("a Config and keywords were given", "give one of them")
        if config is None:
            unknown = sorted(set(fields) - {item.name for item in given_fields()})
            if unknown:
                raise ConfigurationError(f"unknown option {unknown[0]}", "see gpasst.Config for their names")
            config = Config(**fields)
        config.check_mode(self.mode)
        self.config = config
        self._runtime: runtime.Runtime | None = None
        self._proxy: Proxy | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Start the proxy; traffic can pass when this returns."""
        if self._proxy is not None:
            raise ConfigurationError(f"this {type(self).__name__} is open already", "make another one")
        self._runtime = runtime.current()
        self._runtime.call(self._open)

    def close(self) -> None:
        """Stop the proxy and let go of everything. More calls do nothing."""
        if self._runtime is not None:
            self._runtime.call(self._close)

    def _open(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            proxy.close()

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The listeners that are open."""
        return self._call(lambda proxy: proxy.forwards)

    def statistics(self) -> Statistics:
        """Count what has passed and what was dropped."""
        return self._call(Proxy.statistics)

    def flows(self) -> tuple[Flow, ...]:
        """List what is tracked."""
        return self._call(Proxy.flows)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the guest has gone for good: a joined namespace has ended, or the only virtual machine.

        :param timeout: seconds, None for ever.
        :return: whether it has.
        """
        return bool(self._call(lambda proxy: proxy.finished.wait(timeout)))

    @property
    def network(self) -> GuestNetwork:
        """What the guest's network is."""
        return self._opened().network

    def _call(self, function: Callable[[Proxy], T]) -> T:
        """Ask the proxy where it runs."""
        proxy = self._opened()
        assert self._runtime is not None
        return self._runtime.call(lambda: function(proxy))

    def _opened(self) -> Proxy:
        if self._proxy is None:
            raise ConfigurationError(f"this {type(self).__name__} is not open", "use it inside its with statement")
        return self._proxy


def read_text(path: str) -> str:
    """Return the text of a file, empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
