"""The process of a command: its options, its identity, its place in the background, and its PID file.

NOTE: this is imported before the helper process starts, so it imports nothing that takes long; and its record is a
named tuple, which is made in an eighth of the time that a dataclass takes.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from signal import SIGTERM
from typing import NamedTuple, NoReturn

from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.link.output import open_output
from gpasst.values import shown

EXIT_FAILURE = 1
EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127  # of a command, as of shells and env (POSIX, 2.8.2)
EXIT_USAGE = 2
SIGNAL_BASE = 128  # what shells add to a signal's number
STANDARD = (0, 1, 2)  # descriptors of standard input, output and error
NOBODY = "nobody"
LOG_SIZE_DEFAULT = 1 << 20  # bytes
LOG_SIZE_MINIMUM = 5 * 8192  # bytes; five blocks
ID = "[0-9]{1,10}"
ID_MAXIMUM = (1 << 32) - 2  # the largest number of a user or group; the one above it means none, to the kernel


class CommandError(GpasstError):
    """The command cannot be run.

    :param status: the exit status that says so.
    """

    def __init__(self, message: str, remedy: str, status: int) -> None:
        super().__init__(message, remedy)
        self.status = status


class ProcessOptions(NamedTuple):
    """The options of the process itself.

    :ivar foreground: stay in the foreground where nothing else decides.
    :ivar pid_file: file for the process ID, empty for none.
    :ivar runas: names or numbers of the user and group to take on, empty for the default.
    :ivar verbose: log everything.
    :ivar quiet: log errors only.
    :ivar log_file: file to log to, empty for none.
    :ivar log_size: size in bytes at which it is shortened.
    :ivar stats: seconds between two lines of counters, 0 for none.
    :ivar no_pidns: run the command in the PID namespace that this process is in.
    :ivar no_sandbox: keep all rights once the proxy is open.
    """

    foreground: bool
    pid_file: str
    runas: str
    verbose: bool
    quiet: bool
    log_file: str
    log_size: int
    stats: int
    no_pidns: bool
    no_sandbox: bool


def check_socket(descriptor: int) -> None:
    """Check that the socket to be served has been handed over.

    :raises ConfigurationError: if the descriptor is not open, or not a socket.
    """
    try:
        good = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        problem = "not a socket"
    except OSError as error:
        good, problem = False, error.strerror or ""
    if not good:
        raise ConfigurationError(f"--fd {descriptor}: {problem}", "pass one end of a connected socket pair")


def choose_identity(text: str) -> tuple[int, int] | None:
    """Choose the user and group id to take on; None to keep those of the process.

    :param text: value of ``--runas``: names or numbers; empty for nobody if the process is root.
    :raises ConfigurationError: if there is no such user or group, or the caller is not root.
    """
    import grp
    import pwd

    if not text:
        if os.geteuid() != 0 or not _in_initial_user_namespace():
            return None
        text = NOBODY
    elif os.geteuid() != 0:
        raise ConfigurationError("--runas needs root", "leave it out")
    user, colon, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(user)) if re.fullmatch(ID, user) else pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        uid = gid = _number_of("user", user)
    if colon:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            gid = _number_of("group", group)
    return None if (uid, gid) == (0, 0) else (uid, gid)


def _number_of(kind: str, text: str) -> int:
    """Turn the number of a user or group that has no name into that number.

    :raises ConfigurationError: if it is none.
    """
    if not re.fullmatch(ID, text) or int(text) > ID_MAXIMUM:
        raise ConfigurationError(f"--runas: there is no {kind} {shown(text)}", "name an existing one")
    return int(text)


def _in_initial_user_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def take_on(identity: tuple[int, int]) -> None:
    """Become another user and group for good.

    :raises OSError: if the process is not root.
    """
    uid, gid = identity
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def open_standard_descriptors() -> None:
    """Open standard input, output and error where they are closed, so that no other file gets their numbers."""
    for descriptor, name in zip(STANDARD, ("stdin", "stdout", "stderr"), strict=True):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free; those below are open by now.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:  # as Python leaves it where the descriptor is closed when it starts
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False))


def say(text: str, end: str = "\n") -> None:
    """Print a text on standard output.

    :raises PlatformError: if it cannot be written.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        raise PlatformError(f"standard output: {error.strerror}", "lead it to where it can be written") from None


def complain(text: str, end: str = "\n") -> None:
    """Print a text on standard error, as far as that takes it."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def go_to_background(kept: int | None = None) -> Callable[[], None]:
    """Fork; the parent exits when the child calls what this returns, or fails when the child does.

    The child closes what it inherited, and leaves the standard descriptors when it is ready.

    :param kept: an inherited descriptor that it needs.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        _follow(child, reader)
    os.setsid()
    _close_inherited({writer, kept})
    # There may be no files when it is needed.
    null = os.open(os.devnull, os.O_RDWR)

    def ready() -> None:
        for descriptor in STANDARD:
            if descriptor != kept:
                os.dup2(null, descriptor)
        os.close(null)
        os.write(writer, b"1")
        os.close(writer)

    return ready


def _follow(child: int, reader: int) -> NoReturn:
    """Exit as soon as the child is ready or has failed.

    :raises KeyboardInterrupt: if ^C comes first; the child, which has left the terminal, is ended.
    """
    try:
        started = os.read(reader, 1)
    except KeyboardInterrupt:
        os.kill(child, SIGTERM)
        raise
    if started:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(SIGNAL_BASE - code if code < 0 else code or EXIT_FAILURE)


def _close_inherited(kept: set[int | None]) -> None:
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor not in STANDARD and descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the listing's own


class PidFile:
    """The file for the process ID, mode 0600. It has to be writable at the start, and is written when that succeeded.

    :param path: the file, empty for none.
    :raises PlatformError: if it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._fd = -1
        self._made = ""
        if not path:
            return
        try:
            try:
                self._fd = open_output(path, os.O_WRONLY | os.O_EXCL)
                self._made = path
            except FileExistsError:
                self._fd = open_output(path, os.O_WRONLY)
        except OSError as error:
            raise PlatformError(f"--pid {path}: {error.strerror}", "name a file that can be written") from error

    def write(self) -> None:
        """Write the process ID, and close the file.

        :raises PlatformError: if that fails.
        """
        if self._fd < 0:
            return
        self._made = ""
        try:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode())
            descriptor, self._fd = self._fd, -1
            os.close(descriptor)  # a file system that writes late reports here what it could not write
        except OSError as error:
            raise PlatformError(f"--pid: {error.strerror}", "name a file that can be written") from error
        finally:
            self.close()

    def close(self) -> None:
        """Close the file, and remove it if it was made but not written. More calls do nothing."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)
        made, self._made = self._made, ""
        if made:
            os.unlink(made)
