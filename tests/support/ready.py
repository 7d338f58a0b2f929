"""Waiting for the events that tests depend on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpasst

PATIENCE = 10.0  # seconds until something that takes milliseconds counts as failed
STEP = 0.005  # seconds between two looks where there is no event to wait for
LISTENING = "00010000"  # __SO_ACCEPTCON, in the flags of /proc/net/unix


def udp_port_bound(port: int, program: subprocess.Popen[Any]) -> None:
    """Return when some socket of this network namespace is bound to UDP port `port`."""
    wanted = f":{port:04X} "

    def bound() -> bool:
        assert program.poll() is None, f"{program.args!r} ended with {program.returncode}"
        tables = (Path(f"/proc/thread-self/net/{name}").read_text(encoding="ascii") for name in ("udp", "udp6"))
        return any(wanted in table for table in tables)

    until(bound, f"UDP port {port} bound")


@contextmanager
def sleeper(net: gpasst.Pasta) -> Iterator[subprocess.Popen[str]]:
    """A process that sleeps in a namespace, once it has arrived there."""
    with net.popen(["sh", "-c", "echo up; exec sleep 1000"], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        try:
            yield program
        finally:
            program.kill()


def until(condition: Any, what: str) -> None:
    """Return when `condition()` is true; fail naming `what` if that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(STEP)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that answers nothing for now."""

    def halted(task: Path) -> bool:
        return "\nState:\tT" in (task / "status").read_text(encoding="utf-8")

    os.kill(pid, signal.SIGSTOP)
    try:
        # The kernel stops each thread at its next return to user mode.
        until(lambda: all(map(halted, Path(f"/proc/{pid}/task").iterdir())), f"process {pid} stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def unix_listening(path: Path) -> bool:
    """Return whether a UNIX socket of this network namespace listens at `path`; a trial connection would be a guest."""
    table = Path("/proc/thread-self/net/unix").read_text(encoding="utf-8", errors="replace")
    rows = (line.split(maxsplit=7) for line in table.splitlines())
    return any(row[7:] == [str(path)] and row[3] == LISTENING for row in rows)
