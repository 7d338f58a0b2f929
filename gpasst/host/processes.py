"""Ends whatever runs in a network namespace, as a power failure would.

Theory of operation: the kernel keeps no list of a namespace's processes, so all processes are looked at. One that forks
meanwhile may leave a child that the look has missed; so there are further looks, until one finds nothing. Each process
is held by a pidfd (Linux 5.3) before its namespace is looked at, so no other one that got its number can be hit.
"""

from __future__ import annotations

import os
import posix
import signal
import time
from collections.abc import Container

from gpasst.errors import PlatformError
from gpasst.helper.channel import Wait, close_all

END_SECONDS = 5.0  # for all to be gone; a process ends in a millisecond unless a device holds it


def kill_inside(netns: int, spared: Container[int], wait: Wait) -> None:
    """Kill every process in a network namespace, and return when all are gone.

    A process is where its first thread is.

    :param netns: descriptor of the namespace.
    :param spared: process IDs that are left alone.
    :param wait: returns when a descriptor is readable, or after a while.
    :raises PlatformError: if one does not end, or forks without end.
    """
    target = os.fstat(netns)
    until = time.monotonic() + END_SECONDS
    while killed := _kill_once(target, spared):
        try:
            for descriptor in killed:
                wait(descriptor)
        finally:
            close_all(killed)
        if time.monotonic() >= until:
            raise PlatformError(
                f"programs in the namespace have not ended within {END_SECONDS} s of SIGKILL",
                "see whether one starts others all the time",
            )


def _kill_once(target: os.stat_result, spared: Container[int]) -> list[int]:
    """Kill the processes that are in a namespace now; return a pidfd of each, which is readable when it has ended."""
    killed = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spared:
            continue
        try:
            descriptor = os.pidfd_open(int(name))
        except OSError:
            continue  # it has ended
        try:
            inside = os.path.samestat(os.stat(f"/proc/{name}/ns/net"), target)
            if inside:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                killed.append(descriptor)
                continue
        except OSError:
            pass  # it has ended, or is another user's
        posix.close(descriptor)
    return killed
