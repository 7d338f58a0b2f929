"""How what a connection offers reaches its proxy, which lives on the runtime's hub while the connection is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from gpasst import runtime
from gpasst.config import Config
from gpasst.errors import ConfigurationError

if TYPE_CHECKING:
    from gpasst.proxy.proxy import Proxy

T = TypeVar("T")


class Opened:
    """The base of the parts of `gpasst.api.connection.Connection`.

    :ivar config: the options.
    """

    mode = ""
    config: Config
    _runtime: runtime.Runtime | None
    _proxy: Proxy | None

    def _call(self, function: Callable[[Proxy], T]) -> T:
        """Call `function` with the proxy, on its hub.

        :raises ConfigurationError: if the connection is not open.
        """
        proxy = self._opened()
        assert self._runtime is not None
        return self._runtime.call(lambda: function(proxy))

    def _opened(self) -> Proxy:
        """Return the proxy.

        :raises ConfigurationError: if the connection is not open.
        """
        if self._proxy is None:
            raise ConfigurationError(f"this {type(self).__name__} is not open", "use it inside its with statement")
        return self._proxy
