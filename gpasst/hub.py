"""What gevent's larger modules offer and this package needs, at the price of `import gevent` alone.

`gevent.monkey` and `gevent.socket` take 15 ms each to import. A program that has not imported the first is not
monkey-patched, and of the second only waiting is needed.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import gevent

READ, WRITE = 1, 2  # event masks of the loop (libev: EV_READ, EV_WRITE)


def original(module: str, name: str) -> Any:
    """Return an object of the standard library as it was before gevent replaced it, if it has.

    gevent's patching takes long to import, and has replaced nothing where nobody has imported it.

    :param module: name of the module.
    :param name: name in the module.
    """
    monkey = sys.modules.get("gevent.monkey")
    found = importlib.import_module(module)
    return monkey.get_original(module, name) if monkey else getattr(found, name)


def patched() -> bool:
    """Return whether this is a monkey-patched program."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def readable(descriptor: int) -> bool:
    """Return whether a descriptor is readable now."""
    poll = original("select", "poll")()
    poll.register(descriptor, READ)  # which is POLLIN, too
    return bool(poll.poll(0))


def wait_read(descriptor: int) -> None:
    """Let others run until a descriptor is readable."""
    hub = gevent.get_hub()
    # `gevent.socket`, which has the same, takes long to import.
    with hub.loop.io(descriptor, READ) as watcher:
        hub.wait(watcher)


def wait_write(descriptor: int) -> None:
    """Let others run until a descriptor takes something."""
    hub = gevent.get_hub()
    with hub.loop.io(descriptor, WRITE) as watcher:
        hub.wait(watcher)
