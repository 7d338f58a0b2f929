"""Files that the user names to be written: the capture, the log, the process ID; and the socket of a guest.

Theory of operation: the user, maybe root, names a path in a folder that others can write, as /tmp is. Whoever is first
there has made the file: a link to another one, a pipe that nobody reads, or a file of his own, to read what is written
to it. The kernel refuses some of that where fs.protected_regular, protected_fifos, protected_symlinks and
protected_hardlinks are set (proc_sys_fs(5)); here it is refused everywhere. The file is looked at through a descriptor,
and opened through it, so it cannot be exchanged between the look and the opening.
"""

from __future__ import annotations

import errno
import os
import stat

PRIVATE = 0o600  # mode of the files that are made
ROOT = 0  # user ID


def open_output(path: str, flags: int) -> int:
    """Open a file to be written, and return its descriptor.

    :param path: the file.
    :param flags: O_*, beside O_CREAT and O_CLOEXEC.
    :raises OSError: if it cannot be opened; EEXIST if it is there and O_EXCL was given.
    """
    flags |= os.O_CREAT | os.O_CLOEXEC
    place, name = os.path.split(path)
    name = name or "."  # a path that ends in a slash is a folder's
    folder = os.open(place or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(folder)
        if not _writable_by_others(status):
            return os.open(name, flags, PRIVATE, dir_fd=folder)
        return _open_among_others(name, folder, status, flags)
    finally:
        os.close(folder)


def give_socket(path: str, uid: int, gid: int) -> None:
    """Let another user and group have the file of a UNIX socket; nothing else that is there now is touched.

    :raises OSError: if the kernel refuses that, or it is none.
    """
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise OSError(errno.ENOTSOCK, "it is no socket any more")
        os.chown(f"/proc/self/fd/{found}", uid, gid)
    finally:
        os.close(found)


def _writable_by_others(folder: os.stat_result) -> bool:
    return bool(folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) or folder.st_uid not in (os.geteuid(), ROOT)


def _open_among_others(name: str, folder: int, status: os.stat_result, flags: int) -> int:
    """Open a file in a folder that others can write.

    :raises OSError: if it cannot be opened, or one of them may have made it.
    """
    try:
        return os.open(name, flags | os.O_EXCL, PRIVATE, dir_fd=folder)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        _check(os.fstat(found), status)
        return os.open(f"/proc/self/fd/{found}", flags & ~os.O_CREAT)
    finally:
        os.close(found)


def _check(file: os.stat_result, folder: os.stat_result) -> None:
    """Check a file that is there already, in a folder that others can write.

    :raises OSError: if one of these may have made it.
    """
    if stat.S_ISLNK(file.st_mode):
        raise OSError(errno.ELOOP, "it is a symbolic link in a folder that others can write")
    # Without the sticky bit of /tmp, any of those who write the folder may exchange a file, whoever owned it before.
    if folder.st_mode & stat.S_ISVTX and file.st_uid not in (os.geteuid(), folder.st_uid):
        raise OSError(errno.EACCES, "it is another user's file in a folder that others can write")
    if stat.S_ISREG(file.st_mode) and file.st_nlink > 1:
        raise OSError(errno.EACCES, "it has several names, and is in a folder that others can write")
