"""The sandbox of a command: what the process gives up when all is set up, and who does for it what it cannot do then.

Theory of operation: `gpasst.sandbox` explains the parts. What needed files, rights or other processes is done by then,
or passed on:

* The process that keeps the namespace binds sockets to low ports there, since the proxy's own user namespace has no
  power over that one (`gpasst.host.socket_pool`), and has a small sandbox of its own (`gpasst.helper.pool`).
* The helper process, which otherwise ends, stays to remove the file of the guest's socket.
* The files of captures, logs and the process ID are open, and so is the connection to the system log.
* The file of a joined namespace is watched by descriptors, unless the kernel announces nothing about it: then the root
  stays as it is, to look at it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

from gpasst.api.passt import Passt
from gpasst.api.pasta import Pasta
from gpasst.commands.process import take_on
from gpasst.errors import GpasstError
from gpasst.helper.client import Helper
from gpasst.hub import wait_read
from gpasst.sandbox.calls import proxy_calls
from gpasst.sandbox.enter import Report, filter_calls, isolate, libseccomp, own_user, renounce

log = logging.getLogger("gpasst")


class Sandbox:
    """The sandbox of the process.

    :param identity: user and group id to take on, None to keep those of the process.
    :param own_user: enter a user namespace of its own, too.
    """

    def __init__(self, identity: tuple[int, int] | None, own_user: bool) -> None:
        self._identity = identity
        self._own_user = own_user
        self._library: Any = None

    def load(self) -> None:
        """Import what cannot be imported any more inside."""
        self._library = libseccomp()

    def prepare(self, proxy: Pasta | Passt, helper: Helper) -> bool:
        """Have others do what the proxy cannot do inside; return whether the helper process has to stay for that."""
        if isinstance(proxy, Pasta):
            proxy.confine_keeper()
            return False
        if not proxy.path:
            return False
        try:
            held, missing = helper.remove_at_end(os.path.abspath(proxy.path), self._identity, wait_read)
        except GpasstError as error:
            log.warning("%s stays behind at the end: %s", proxy.path, error)
            return False
        announce("sandbox of the process that removes the socket", held, missing)
        return True

    def enter(self, programs: Sequence[int], root: bool = True) -> None:
        """Give up what is needed no more, and log what that was.

        :param programs: process IDs of the programs that it may send signals to.
        :param root: empty the root; else files may be looked at.
        """
        report = Report()
        if self._identity or not self._own_user:
            # Root has the right to do so even where the kernel forbids user namespaces, and loses it here.
            isolate(report, root)
        if self._identity:
            take_on(self._identity)
        if self._own_user:
            before, report = report, Report()
            own_user(report)
            if before.held and not before.missing:
                report.held += before.held
            else:
                isolate(report, root)
        renounce(report)
        filter_calls(report, proxy_calls(programs, looks=not root), self._library)
        announce("sandbox", report.held, report.missing)


def announce(what: str, held: Iterable[str], missing: Iterable[str]) -> None:
    """Log what is in force, and a line for each part that is not."""
    log.debug("%s: %s", what, ", ".join(held))
    for line in missing:
        log.warning("%s: no %s", what, line)
