"""How a connection is opened and closed in a program of asyncio.

Theory of operation: both wait for the kernel, up to 40 ms, and the first opening imports modules for longer. So they
run in a thread of the event loop's executor, while the proxy runs in gpasst's own. What has begun is not broken off: a
task that is cancelled meanwhile waits for the end of the opening, and closes what it has opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def open_elsewhere(opening: Callable[[], None], closing: Callable[[], None]) -> None:
    """Call `opening` in another thread; call `closing` as well if the task was cancelled meanwhile.

    :raises BaseException: if `opening` does.
    """
    loop = asyncio.get_running_loop()
    opened = loop.run_in_executor(None, opening)
    try:
        await asyncio.shield(opened)
    except asyncio.CancelledError:
        await asyncio.wait([opened])
        if not opened.exception():
            await close_elsewhere(closing)
        raise


async def close_elsewhere(closing: Callable[[], None]) -> None:
    """Call `closing` in another thread, to its end, also if the task is cancelled meanwhile."""
    closed = asyncio.get_running_loop().run_in_executor(None, closing)
    try:
        await asyncio.shield(closed)
    except asyncio.CancelledError:
        await asyncio.wait([closed])
        raise
