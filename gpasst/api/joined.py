"""The end of a namespace that was joined: its file is deleted or replaced, or its process ends.

Theory of operation: the kernel announces each of these, so nothing waits for a look at the file.

* ``/proc/PID/ns/net`` ends with the process: a pidfd becomes readable (Linux 5.3).
* Any other file has a name in a folder: inotify reports what happens to that name, and the mount table is readable for
  priority data when a mount on the file changes (proc(5), since Linux 2.6.15). A symbolic link is watched where it is
  and where it leads to.
* Where the kernel refuses that, or cannot watch (other files of /proc), the file is looked at once a second, and the
  log says why.

The descriptors are opened while the process may still reach the file, and go on to report after it has become another
user, or has entered a sandbox without files. The file itself may be out of reach by then, so a look has three results;
one without permission proves nothing. In a sandbox the mount table, which stays that of the outside, is looked at
instead.

NOTE: a process that moves to another network namespace by itself is not noticed; the kernel does not announce that.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import posix
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

from gpasst.linux import (
    IN_CLOEXEC,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_NONBLOCK,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
)

LOOK_SECONDS = 1.0  # between two looks where the kernel announces nothing
READ, WRITE = 1, 2  # event masks of the loop (libev: EV_READ, EV_WRITE)
EVENT_BYTES = 1 << 16  # of one read; some 2000 events
PROC = "/proc/"
MOUNTS = "/proc/self/mountinfo"
# Fields of its lines (proc(5)): what of the file system is mounted, and where.
MOUNT_ROOT, MOUNT_PLACE, MOUNT_FIELDS = 3, 4, 5
TABLE_BYTES = 1 << 16
OF_NAME = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO
OF_FOLDER = IN_DELETE_SELF | IN_MOVE_SELF
# Of the folder as a whole, and the file has gone with it.
FOLDER_ENDED = OF_FOLDER | IN_UNMOUNT | IN_IGNORED

_event = struct.Struct("@iIII")  # struct inotify_event (linux/inotify.h): watch, mask, cookie, length of the name
_process_file = re.compile(r"/proc/(\d+)/ns/net")
_libc = ctypes.CDLL(None, use_errno=True)

log = logging.getLogger(__name__)


def leads(path: str, netns: int) -> bool | None:
    """Return whether a file is a network namespace, None if this process may not look.

    :param path: the file.
    :param netns: descriptor of the namespace.
    """
    try:
        return os.path.samestat(os.stat(path), os.fstat(netns))
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return False
    except OSError:
        return None


class NamespaceWatch:
    """Reports the end of a joined namespace.

    :param loop: the event loop of the hub, which calls `ended`.
    :param path: file that named the namespace.
    :param netns: descriptor of the namespace.
    :param ended: called at its end, maybe more than once, and at once if that has come already.
    :ivar looks: whether the file has to be looked at, since nothing is announced.
    """

    def __init__(self, loop: Any, path: str, netns: int, ended: Callable[[], object]) -> None:
        self._path = os.path.abspath(path)
        self._netns = netns
        self._ended = ended
        self._loop = loop
        self._watchers: list[Any] = []
        self._descriptors: list[int] = []
        self._mounts = -1
        self._sealed = False
        self.looks = False
        try:
            self._watch()
        except OSError as error:
            log.info("%s is looked at once a second: %s", self._path, error.strerror)
            self.close()
            self.looks = True
            timer = loop.timer(LOOK_SECONDS, LOOK_SECONDS)
            timer.start(self._look)
            self._watchers.append(timer)
        # What happened before the watch began was not announced.
        self._look()

    def seal(self) -> None:
        """Look at the file no more, since the process is about to lose sight of it."""
        self._sealed = True
        self._path = os.path.realpath(self._path)  # as the mount table has it
        if not self._mounted():
            self._mounts = -1  # it is no mount, and what happens to its name is announced

    def close(self) -> None:
        """Watch no more. More calls do nothing."""
        for watcher in self._watchers:
            watcher.stop()
            watcher.close()
        for descriptor in self._descriptors:
            posix.close(descriptor)
        self._watchers.clear()
        self._descriptors.clear()

    def _watch(self) -> None:
        """Have the kernel announce the end.

        :raises OSError: if it does not.
        """
        files = set()
        for place in _places(self._path):
            process = _process_file.fullmatch(place)
            if process:
                self._start(os.pidfd_open(int(process[1])), READ, self._ended)
            elif place.startswith(PROC):
                raise OSError(errno.EOPNOTSUPP, "this file of /proc cannot be watched")
            else:
                files.add(place)
        if files:
            self._watch_files(files)

    def _watch_files(self, files: set[str]) -> None:
        descriptor = _call(_libc.inotify_init1, IN_NONBLOCK | IN_CLOEXEC)
        names = {os.path.basename(os.fsencode(file)) for file in files}
        self._start(descriptor, READ, self._take, descriptor, names)
        for folder in {os.path.dirname(file) for file in files}:
            _call(_libc.inotify_add_watch, descriptor, os.fsencode(folder), OF_NAME | OF_FOLDER | IN_ONLYDIR)
        # It is always readable; a change is an error of the descriptor, of which those who want to write hear as well.
        self._mounts = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        self._start(self._mounts, WRITE, self._look)

    def _start(self, descriptor: int, events: int, callback: Callable[..., object], *args: object) -> None:
        self._descriptors.append(descriptor)
        watcher = self._loop.io(descriptor, events)
        self._watchers.append(watcher)
        watcher.start(callback, *args)

    def _take(self, descriptor: int, names: set[bytes]) -> None:
        """Take what inotify reports."""
        try:
            data = os.read(descriptor, EVENT_BYTES)
        except BlockingIOError:
            return
        masks = [mask for mask, name in parse_events(data) if name in names or mask & (FOLDER_ENDED | IN_Q_OVERFLOW)]
        if masks:
            # Without permission to look, the report has to do; but a queue that overflowed reports nothing.
            self._look(reported=any(mask & ~IN_Q_OVERFLOW for mask in masks))

    def _look(self, reported: bool = False) -> None:
        """Report the end if it has come.

        :param reported: whether the kernel has reported that the file is another or gone.
        """
        if self._sealed:
            leading = False if self._mounts >= 0 and not self._mounted() else None
        else:
            leading = leads(self._path, self._netns)
        if leading is False or (leading is None and reported):
            self._ended()

    def _mounted(self) -> bool:
        """Return whether the namespace is what is mounted on the file, as far as the mount table shows."""
        if self._mounts < 0:
            return False
        os.lseek(self._mounts, 0, os.SEEK_SET)
        table = b""
        while data := os.read(self._mounts, TABLE_BYTES):
            table += data
        place, found = os.fsencode(self._path), b""
        for line in table.splitlines():
            fields = line.split(b" ", MOUNT_FIELDS)
            if fields[MOUNT_PLACE] == place:
                found = fields[MOUNT_ROOT]  # the last one covers those before it
        return found == f"net:[{os.fstat(self._netns).st_ino}]".encode()


def _places(path: str) -> tuple[str, ...]:
    """Return a path, and where it leads to if it is a symbolic link; the links of /proc are what they lead to."""
    if os.path.islink(path) and not path.startswith(PROC):
        return path, os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return (path,)


def parse_events(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield mask and name of each event of an inotify descriptor (inotify(7)); the name is empty for the folder's own.

    :param data: what one read returned, which holds whole events.
    """
    at = 0
    while at < len(data):
        _, mask, _, length = _event.unpack_from(data, at)
        at += _event.size
        yield mask, data[at : at + length].rstrip(b"\0")
        at += length


def _call(function: Any, *args: int | bytes) -> int:
    """Call a function of the C library.

    :raises OSError: if it fails.
    """
    result = int(function(*args))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
