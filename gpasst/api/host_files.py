"""The files by which the programs of a host find names: /etc/hosts (hosts(5)) and /etc/resolv.conf (resolv.conf(5)).

Theory of operation: the files are mounted over those of the machine, for each program, so they are written in place and
never replaced: a program that runs sees them change, when hosts come and go, or its own host moves to a network with
another resolver. A resolver library reads them anew (glibc's since 2.26), maybe while one is written. So the new text
is written in one call, over all of the old one: a shorter text is filled up with empty lines first, and cut off then.
"""

from __future__ import annotations

import os
import posix
import tempfile
import weakref
from collections.abc import Mapping

from gpasst.api.scratch import temporary_folder

HOSTS_FILE = "/etc/hosts"
LOOPBACK = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
EVERYBODY_READS = 0o644


class HostFiles:
    """The files of one host; they end with `close`, or with a program that ends in an orderly way.

    :param resolver: the file of the resolver, empty where the machine has none that could be covered.
    :raises OSError: if the folder of temporary files cannot be written to.
    :ivar paths: where the files are, by what they cover.
    """

    def __init__(self, resolver: str) -> None:
        self._hosts = LiveFile()
        self._resolver = LiveFile() if resolver else None
        self.paths = {HOSTS_FILE: self._hosts.path}
        if self._resolver is not None:
            self.paths[resolver] = self._resolver.path

    def write(self, names: Mapping[str, tuple[str, ...]], resolver: str) -> None:
        """Replace what they say.

        :param names: names with their addresses, as text.
        :param resolver: the text of the file of the resolver.
        :raises OSError: if the file system is full.
        """
        lines = (f"{address} {name}\n" for name, addresses in names.items() for address in addresses)
        self._hosts.write(LOOPBACK + "".join(lines))
        if self._resolver is not None:
            self._resolver.write(resolver)

    def close(self) -> None:
        """Delete the files. More calls do nothing."""
        self._hosts.close()
        if self._resolver is not None:
            self._resolver.close()


class LiveFile:
    """A file that others see change.

    :raises OSError: if the folder of temporary files cannot be written to.
    :ivar path: where it is.
    """

    def __init__(self) -> None:
        self._descriptor, self.path = tempfile.mkstemp(prefix="gpasst-", dir=temporary_folder())
        self._finalizer = weakref.finalize(self, _remove, self._descriptor, self.path)
        os.fchmod(self._descriptor, EVERYBODY_READS)

    def write(self, text: str) -> None:
        """Replace the text.

        :raises OSError: if the file system is full.
        """
        data = text.encode()
        length = os.fstat(self._descriptor).st_size
        os.pwrite(self._descriptor, data.ljust(length, b"\n"), 0)
        if length > len(data):
            os.ftruncate(self._descriptor, len(data))

    def close(self) -> None:
        """Delete the file. More calls do nothing."""
        self._finalizer()


def _remove(descriptor: int, path: str) -> None:
    posix.close(descriptor)
    try:
        posix.unlink(path)
    except (FileNotFoundError, PermissionError):
        return  # whoever tidies up temporary files was faster; or the process that keeps the namespace does it
