"""The signals that belong to a foreground program: those that a terminal sends, and those that ask it to end by itself.

Theory of operation: a terminal sends ^C, ^\\ and its hang-up to the whole process group, so the program has them
already, and decides what they mean; gpasst goes on and ends with it, as a shell does. A signal that another process
sent to gpasst alone is passed on, as if gpasst were the program. Only the kernel knows which of both a signal is, and a
handler does not learn it; so the signals are blocked, and read from a signalfd (Linux 2.6.27) with their origin.

A signal that was ignored at the start (nohup, a background job of a script) stays ignored, by the program as well.

SIGCHLD is read there too, so that the end of the program is an event of the loop like any other: the loop's own watcher
of children works on some of its loops only, and reaps children of everybody.
"""

from __future__ import annotations

import ctypes
import os
import posix
import signal
import struct
from collections.abc import Callable
from typing import Any

from gpasst.linux import SFD_CLOEXEC, SFD_NONBLOCK, SI_KERNEL

PROGRAM_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
SIGSET_BYTES = 128  # sizeof(sigset_t) of glibc and musl
READ = 1  # event mask of the loop (libev: EV_READ)

_information = struct.Struct("@Iii116x")  # the start of struct signalfd_siginfo (linux/signalfd.h): number, errno, code


def heeded(number: signal.Signals) -> bool:
    """Return whether a signal was not ignored when the process was started."""
    return signal.getsignal(number) is not signal.SIG_IGN


class ProgramSignals:
    """Passes signals on to the foreground program.

    :param loop: the event loop of the hub.
    :param early: called with the number of a signal that comes before there is a program.
    :ivar starts: whether the program is being started: its process has the terminal's signals from then on.
    :raises OSError: if there are too many open files.
    """

    def __init__(self, loop: Any, early: Callable[[int], object]) -> None:
        self.starts = False
        self._early = early
        self._send: Callable[[int], object] | None = None
        self._look: Callable[[], object] | None = None
        self._waiting: list[int] = []
        taken = [number for number in PROGRAM_SIGNALS if heeded(number)]
        taken.append(signal.SIGCHLD)
        # Blocked, it does nothing here; and the child that becomes the program has no handler of Python's.
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        self._fd = _signalfd(taken)
        self._watcher = loop.io(self._fd, READ)
        self._watcher.start(self._take)

    def release(self) -> None:
        """Unblock the signals; the child that becomes the program calls this, where they mean what they always do."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def hand_over(self, send: Callable[[int], object], look: Callable[[], object]) -> None:
        """Pass signals on from now on, and those that came while the program was being started.

        :param send: sends a signal to the program.
        :param look: called when the program may have ended.
        """
        self._send = send
        self._look = look
        look()
        for number in self._waiting:
            send(number)
        self._waiting.clear()

    def close(self) -> None:
        """Pass no more on; the signals stay blocked, so that what is left to do is done."""
        self._watcher.stop()
        self._watcher.close()
        posix.close(self._fd)

    def _take(self) -> None:
        try:
            data = os.read(self._fd, _information.size)
        except BlockingIOError:
            return
        number, _, code = _information.unpack(data)
        if number == signal.SIGCHLD:
            if self._look is not None:
                self._look()
        elif not self.starts:
            self._early(number)
        elif code != SI_KERNEL and self._send is not None:
            self._send(number)
        elif code != SI_KERNEL:
            self._waiting.append(number)


def _signalfd(numbers: list[signal.Signals]) -> int:
    """Return a descriptor that reports signals.

    :raises OSError: if there are too many open files.
    """
    mask = sum(1 << (number - 1) for number in numbers).to_bytes(SIGSET_BYTES, "little")
    descriptor = int(ctypes.CDLL(None, use_errno=True).signalfd(-1, mask, SFD_NONBLOCK | SFD_CLOEXEC))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor
