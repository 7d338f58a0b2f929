"""Files that the user names to be written: the capture, the log, the process ID."""

from __future__ import annotations

import errno
import os
import stat

PRIVATE = 0o600  # mode of the files that are made


def open_output(path: str, flags: int) -> int:
    """Open a file to be written, and return its descriptor.

    Whoever can write its folder does not lead its owner, maybe root, to another file by a symbolic link.

    :param path: the file.
    :param flags: O_*, beside O_CREAT and O_CLOEXEC.
    :raises OSError: if it cannot be opened.
    """
    flags |= os.O_CREAT | os.O_CLOEXEC
    if os.stat(os.path.dirname(path) or ".").st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        flags |= os.O_NOFOLLOW
    try:
        return os.open(path, flags, PRIVATE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "it is a symbolic link in a folder that others can write"
        raise
