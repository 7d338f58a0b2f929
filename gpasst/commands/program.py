"""The foreground program of a command, in a namespace: its start, the signals that are its own, and its end."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import gevent
import gevent.event

from gpasst.api.inhabited import Inhabited
from gpasst.commands.process import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, SIGNAL_BASE, CommandError
from gpasst.commands.signals import PROGRAM_SIGNALS, ProgramSignals, heeded

if TYPE_CHECKING:
    import subprocess

GRACE_SECONDS = 0.3  # for a program to end by itself after a signal

log = logging.getLogger("gpasst")


class Program:
    """The program in the namespace.

    :param process: its process.
    :ivar ended: is set when that has ended.
    """

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process
        self.ended = gevent.event.Event()

    @classmethod
    def start(cls, place: Inhabited, command: tuple[str, ...], signals: ProgramSignals, init: bool) -> Program:
        """Start a program, or a shell, and hand the terminal's signals over to it.

        :param place: the namespace.
        :param command: the program and its arguments; empty for a shell.
        :param init: make it process 1 of a PID namespace of its own.
        :raises CommandError: if there is no such program, or it may not be executed.
        """
        argv = command or (os.environ.get("SHELL") or "/bin/sh", "-l")
        signals.starts = True
        try:
            process = place.popen(argv, init=init, preexec_fn=signals.release)
        except (FileNotFoundError, PermissionError) as error:
            raise command_error(error, argv[0], "" if command else "check the variable SHELL") from None
        program = cls(process)
        signals.hand_over(program.signal, program.look)
        return program

    def look(self) -> None:
        """Look whether it has ended."""
        if self.process.poll() is not None:
            self.ended.set()

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has become another user, over whom this process has no rights in its sandbox."""
        try:
            self.process.send_signal(number)
        except PermissionError:
            log.warning("COMMAND has become another user, so it gets no signal; use --no-sandbox")

    def stop_at_end(self, stop: Any) -> None:
        """Set `stop` to the status of its process when it has ended."""
        self.ended.wait()
        stop.set(self.process.returncode)

    def end(self) -> None:
        """End it if it runs still."""
        if not self.ended.is_set():
            self.signal(signal.SIGTERM)
            if not self.ended.wait(GRACE_SECONDS):
                self.signal(signal.SIGKILL)
                # It takes microseconds, unless it has become another user.
                self.ended.wait(GRACE_SECONDS)


def command_error(error: OSError, name: str, remedy: str = "") -> CommandError:
    """Return the error of a program that cannot be executed, with the exit status of shells.

    :param error: a FileNotFoundError or PermissionError.
    :param name: the program.
    :param remedy: what helps where there is no such program; empty for the ordinary.
    """
    if isinstance(error, FileNotFoundError):
        return CommandError(f"{name}: command not found", remedy or "check its name and PATH", EXIT_NOT_FOUND)
    return CommandError(f"{name}: permission denied", "make it executable: chmod +x", EXIT_NOT_EXECUTABLE)


def exit_status(status: int) -> int:
    """Return the exit status of a shell for that of a process, which is negative if a signal ended it."""
    return status if status >= 0 else SIGNAL_BASE - status


def await_signals(stop: Any, runs_command: bool) -> ProgramSignals | None:
    """Let each signal that asks the process to end set `stop` to the exit status.

    :param runs_command: leave the terminal's signals to a command.
    :return: what passes these on, None without a command.
    """

    def end(number: int) -> None:
        stop.set(SIGNAL_BASE + number)

    gevent.signal_handler(signal.SIGTERM, end, signal.SIGTERM)
    if runs_command:
        return ProgramSignals(gevent.get_hub().loop, end)
    for number in filter(heeded, PROGRAM_SIGNALS):
        gevent.signal_handler(number, end, number)
    return None
