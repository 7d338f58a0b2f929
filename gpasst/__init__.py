"""User-mode networking for namespaces and virtual machines, as a gevent proxy.

Importing this starts nothing, patches nothing and loads no event loop; the names below do so when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gpasst.api.guest import Guest
    from gpasst.api.host import Host
    from gpasst.api.network import Network
    from gpasst.api.passt import Passt
    from gpasst.api.pasta import Pasta
    from gpasst.api.router import Router
    from gpasst.api.trunk import Trunk
    from gpasst.config import Config
    from gpasst.counters import Drop, Statistics
    from gpasst.errors import ConfigurationError, GpasstError, PacketError, PlatformError
    from gpasst.flow.record import Flow, Forward
    from gpasst.packet.frame import Frame

__all__ = [
    "Config",
    "ConfigurationError",
    "Drop",
    "Flow",
    "Forward",
    "Frame",
    "GpasstError",
    "Guest",
    "Host",
    "Network",
    "PacketError",
    "Passt",
    "Pasta",
    "PlatformError",
    "Router",
    "Statistics",
    "Trunk",
    "__version__",
]

_HOMES = {
    "Config": "gpasst.config",
    "ConfigurationError": "gpasst.errors",
    "Drop": "gpasst.counters",
    "Flow": "gpasst.flow.record",
    "Forward": "gpasst.flow.record",
    "Frame": "gpasst.packet.frame",
    "GpasstError": "gpasst.errors",
    "Guest": "gpasst.api.guest",
    "Host": "gpasst.api.host",
    "Network": "gpasst.api.network",
    "PacketError": "gpasst.errors",
    "Passt": "gpasst.api.passt",
    "Pasta": "gpasst.api.pasta",
    "PlatformError": "gpasst.errors",
    "Router": "gpasst.api.router",
    "Statistics": "gpasst.counters",
    "Trunk": "gpasst.api.trunk",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
