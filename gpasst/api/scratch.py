"""Folders for sockets, which end with whoever made them, or later.

Theory of operation: a folder is locked (flock(2)) for as long as its maker lives, so one that is not locked was left
behind by a process that was killed. The first folder that a process makes is preceded by a look at what is left behind.
A folder has nothing in it before it is locked, so an empty one is left alone.
"""

from __future__ import annotations

import fcntl
import os
import posix
import shutil
import tempfile
from contextlib import suppress

PREFIX = "gpasst-guest-"

_tidied: set[str] = set()  # folders of temporary files that were looked at


class Folder:
    """A folder for a socket, which only this user may enter.

    :raises OSError: if the folder of temporary files cannot be written to, or there are too many open files.
    :ivar path: where it is.
    """

    def __init__(self) -> None:
        parent = temporary_folder()
        if parent not in _tidied:
            _tidied.add(parent)
            tidy(parent)
        self.path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        try:
            self._lock = _locked(self.path, fcntl.LOCK_EX)
        except BaseException:
            posix.rmdir(self.path)
            raise

    def close(self) -> None:
        """Delete it with all that is in it. More calls do nothing."""
        lock, self._lock = self._lock, -1
        if lock < 0:
            return
        try:
            posix.rmdir(self.path)  # which takes no descriptor, unlike what follows
        except OSError:
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            posix.close(lock)


def tidy(parent: str) -> None:
    """Delete the folders of this user in a folder that were left behind."""
    with os.scandir(parent) as entries:
        found = [entry.path for entry in entries if entry.name.startswith(PREFIX)]
    for path in found:
        with suppress(OSError):  # it is another user's, in use, or has just gone
            lock = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                if os.fstat(lock).st_uid == os.geteuid() and os.listdir(lock):
                    shutil.rmtree(path)
            finally:
                posix.close(lock)


def temporary_folder() -> str:
    """Return the folder of temporary files.

    :raises OSError: if there is none, or there are too many open files.
    """
    # The next call takes a want of descriptors for a want of a folder.
    posix.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    return tempfile.gettempdir()


def _locked(path: str, operation: int) -> int:
    """Return the descriptor of a folder that is locked as long as that is open.

    :param operation: of flock(2).
    :raises OSError: if it is locked by others, or no folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException:
        posix.close(descriptor)
        raise
    return descriptor
