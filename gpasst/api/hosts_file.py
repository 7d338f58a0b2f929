"""The /etc/hosts of the hosts of a network (hosts(5)): one file, which every program of every host sees change.

Theory of operation: the file is mounted over /etc/hosts of each program, so it is written in place and never replaced.
A resolver library reads it anew for each name (glibc's nss_files does), maybe while it is written. So the new text is
written in one call, over all of the old one: a shorter text is filled up with empty lines first, and cut off then.
"""

from __future__ import annotations

import os
import posix
import tempfile
import weakref
from collections.abc import Iterable

LOOPBACK = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
EVERYBODY_READS = 0o644


class HostsFile:
    """A file of names, which ends with `close`, or with a program that ends in an orderly way.

    :raises OSError: if the folder of temporary files cannot be written to.
    :ivar path: where it is.
    """

    def __init__(self) -> None:
        self._descriptor, self.path = tempfile.mkstemp(prefix="gpasst-hosts-")
        self._finalizer = weakref.finalize(self, _remove, self._descriptor, self.path)
        os.fchmod(self._descriptor, EVERYBODY_READS)
        self.write(())

    def write(self, entries: Iterable[tuple[str, str]]) -> None:
        """Replace the names.

        :param entries: pairs of address and name, both as text.
        :raises OSError: if the file system is full.
        """
        text = (LOOPBACK + "".join(f"{address} {name}\n" for address, name in entries)).encode()
        length = os.fstat(self._descriptor).st_size
        os.pwrite(self._descriptor, text.ljust(length, b"\n"), 0)
        if length > len(text):
            os.ftruncate(self._descriptor, len(text))

    def close(self) -> None:
        """Delete the file. More calls do nothing."""
        self._finalizer()


def _remove(descriptor: int, path: str) -> None:
    posix.close(descriptor)
    try:
        posix.unlink(path)
    except FileNotFoundError:
        return  # whoever tidies up temporary files was faster
