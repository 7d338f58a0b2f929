"""What one test has open: the namespaces and links of its fixtures, their captures, and what is reported of them.

Theory of operation: the pytest plugin makes a `Session` for a test that uses one of its fixtures, and hands it every
event of that test. A capture is written from the start, since nobody knows yet which test will fail; `keep` and `drop`
decide about the files when the result is there.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from gpasst.api.connection import Connection
from gpasst.api.pasta import Pasta
from gpasst.errors import PlatformError
from gpasst.testing.needs import obstacle, require

if TYPE_CHECKING:
    from gpasst.api.network import Network
    from gpasst.api.passt import Passt

Opened = TypeVar("Opened", bound="Connection | Network")

WORKER = "PYTEST_XDIST_WORKER"  # environment variable of a worker of pytest-xdist: its name
NAME_LONGEST = 100  # characters of a test's name in that of a file, of the 255 that Linux allows


class Session:
    """The connections and networks of one test.

    :param name: the test's name; the names of its capture files begin with it.
    :param folder: folder for its captures, None for no captures; it is made if it does not exist.
    :param importing: stands around the first opening of anything, which imports what it needs.
    """

    def __init__(
        self, name: str, folder: str | None, importing: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._name = _file_name(name, os.environ.get(WORKER, ""))
        self._folder = folder
        self._closing = ExitStack()
        self._opened: list[Connection | Network] = []
        self._captures: list[str] = []
        self._importing = importing

    def pasta(self, **fields: Any) -> Pasta:
        """Open a namespace, which is configured unless `fields` say otherwise.

        :param fields: the keywords of `gpasst.Pasta`.
        :raises unittest.SkipTest: if the machine allows no namespaces; see `gpasst.testing.require`.
        :raises ConfigurationError: as `gpasst.Pasta` does.
        :raises PlatformError: if something else is in the way, such as a port that is taken.
        """
        fields.setdefault("config_net", not fields.get("splice_only", False))
        fields.setdefault("record", True)
        runas = fields.pop("runas", None)
        net = Pasta(runas=runas, **self._captured(fields))
        try:
            return self._open(net)
        except PlatformError:
            # If the machine allows no namespace at all, that is a skip.
            if obstacle():
                require()
            raise

    def passt(self, **fields: Any) -> Passt:
        """Listen for a virtual machine, on a socket in a folder of its own unless `fields` say otherwise.

        :param fields: the keywords of `gpasst.Passt`.
        :raises ConfigurationError: as `gpasst.Passt` does.
        :raises PlatformError: likewise.
        """
        from gpasst.api.passt import Passt

        fields.setdefault("record", True)
        if "fd" not in fields and "socket" not in fields:
            folder = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="gpasst-"))
            fields["socket"] = os.path.join(folder, "guest.socket")
        return self._open(Passt(**self._captured(fields)))

    def network(self, name: str = "lan", **fields: Any) -> Network:
        """Open a network without hosts, which records what crosses unless `fields` say otherwise.

        :param name: of the network.
        :param fields: the keywords of `gpasst.Network`.
        :raises unittest.SkipTest: if the machine allows no namespaces; see `gpasst.testing.require`.
        :raises ConfigurationError: as `gpasst.Network` does.
        :raises PlatformError: likewise.
        """
        fields.setdefault("record", True)
        with self._importing():
            from gpasst.api.network import Network

            require()  # the network itself has no namespace that could be refused
        network = self._open(Network(name, **fields))
        path = self._capture_path()
        if path:
            network.capture(path)
        return network

    @property
    def open(self) -> bool:
        """Whether anything is open."""
        return bool(self._opened)

    def close(self) -> None:
        """Close what is open, the last one first."""
        self._opened.clear()
        self._closing.close()

    def drop(self) -> None:
        """Delete the captures."""
        for path in self._captures:
            if os.path.exists(path):
                os.unlink(path)

    def report(self, seed: int) -> str:
        """Return what is known of each connection: its forwards, counters, flows and fates; of networks; and captures.

        :param seed: the run's seed, which the report opens with.
        """
        from gpasst.testing.report import describe, describe_network

        parts = [f"seed {seed}: repeat with --gpasst-seed={seed}"]
        for number, opened in enumerate(self._opened, 1):
            name = f"{type(opened).__name__} {number}"
            try:
                described = describe(opened, name) if isinstance(opened, Connection) else describe_network(opened)
            except Exception as error:
                # A proxy that the test has broken says nothing more; the report of the test is not to be lost with it.
                described = f"{name}: {error!r}"
            parts.append(described)
        parts += [f"capture: {path}" for path in self._captures if os.path.exists(path)]
        return "\n".join(parts)

    def _open(self, made: Opened) -> Opened:
        with self._importing():
            self._closing.enter_context(made)
        self._opened.append(made)
        return made

    def _captured(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields with a capture file, unless they have one."""
        if fields.get("pcap") or fields.get("splice_only"):
            return fields
        path = self._capture_path()
        return {**fields, "pcap": path} if path else fields

    def _capture_path(self) -> str:
        """Return the path of a further capture file, empty if there is to be none."""
        if self._folder is None:
            return ""
        os.makedirs(self._folder, exist_ok=True)
        path = os.path.join(os.path.abspath(self._folder), f"{self._name}-{len(self._captures) + 1}.pcapng")
        self._captures.append(path)
        return path


def _file_name(test: str, worker: str) -> str:
    """Return a file's name that stands for a test in a worker: the same for the same, and no other's."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", test).strip("-")[-NAME_LONGEST:]
    digest = hashlib.blake2b(test.encode(), digest_size=4).hexdigest()
    return "-".join(part for part in (plain, worker, digest) if part)
