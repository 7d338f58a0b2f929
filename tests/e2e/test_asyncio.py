"""Namespaces in programs of asyncio. Takes 2 seconds."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

import gpasst

pytestmark = pytest.mark.usefixtures("tun", "remote")

PATIENCE = 10.0  # seconds


class Slow(gpasst.Pasta):
    """A namespace that opens and closes only when the event loop has run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.ran = threading.Event(), threading.Event()
        self.closed = 0

    def open(self) -> None:
        self.begun.set()
        assert self.ran.wait(PATIENCE), "the loop stood still"
        super().open()

    def close(self) -> None:
        assert self.ran.wait(PATIENCE), "the loop stood still"
        self.closed += 1
        super().close()


async def begin(net: Slow) -> asyncio.Task[None]:
    """Return the task of a program whose namespace is about to open."""

    async def program() -> None:
        async with net:
            assert net.forwards == ()
            assert (await asyncio.to_thread(net.run, ["true"])).returncode == 0
            net.ran.clear()

    task = asyncio.ensure_future(program())
    while not net.begun.is_set():
        await asyncio.sleep(0)
    return task


def test_the_loop_runs_while_a_namespace_opens_and_closes() -> None:
    async def main() -> None:
        net = Slow()
        task = await begin(net)
        net.ran.set()
        while net.ran.is_set():
            await asyncio.sleep(0)
        net.ran.set()
        await task
        assert net.closed == 1

    asyncio.run(main())


def test_a_cancelled_task_leaves_nothing_open() -> None:
    async def main() -> None:
        net = Slow()
        task = await begin(net)
        task.cancel()
        await asyncio.sleep(0)
        net.ran.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert net.closed == 1
        with pytest.raises(gpasst.ConfigurationError, match="is not open"):
            net.statistics()

    asyncio.run(main())


def test_errors_reach_the_task(tmp_path: Path) -> None:
    async def main() -> None:
        async with gpasst.Pasta(netns=str(tmp_path / "nosuch")):
            pass

    with pytest.raises(gpasst.ConfigurationError, match="nosuch"):
        asyncio.run(main())


def test_many_at_once() -> None:
    async def one(number: int) -> int:
        async with gpasst.Pasta(config_net=True, udp_ports="0:53") as net:
            assert net.port("udp", 53)
            done = await asyncio.to_thread(net.run, ["sh", "-c", f"exit {number}"])
            return done.returncode

    async def main() -> list[int]:
        return await asyncio.gather(*(one(number) for number in range(8)))

    assert asyncio.run(main()) == list(range(8))
