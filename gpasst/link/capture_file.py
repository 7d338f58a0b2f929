"""The capture file: Ethernet frames that crossed one or more links, as pcap or pcapng by the file's name.

A superframe is captured as its segments, with complete checksums. What the recorder hands over is written at once, so a
killed program leaves whole frames behind. A frame that cannot be written (disk full) is counted, and the traffic goes
on; the part of it that was written is cut off again, or, in a pipe, completed before the next frame. So a reader never
meets half a frame, and the capture goes on when there is room again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence

from gpasst.capture.pcap import Pcap
from gpasst.capture.pcapng import Pcapng
from gpasst.capture.record import Encoder, Record
from gpasst.counters import Counters, Drop
from gpasst.errors import PlatformError
from gpasst.link.output import open_output

SUFFIX = ".pcapng"  # of files in that format

log = logging.getLogger(__name__)


class CaptureFile:
    """A capture file being written.

    :param path: file to create or truncate; mode 0600. One whose name ends with ``.pcapng`` has that format.
    :param counters: count the frames that are missing from the file.
    :param origin: who named the file, for messages.
    :raises PlatformError: if the file cannot be opened or written.
    """

    def __init__(self, path: str, counters: Counters, origin: str = "--pcap") -> None:
        self._named = f"{origin} {path}"
        self._encoder: Encoder = Pcapng() if path.endswith(SUFFIX) else Pcap()
        try:
            self._fd = open_output(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
        except OSError as error:
            raise self._refused(error) from error
        self._counters = counters
        self._failed = False
        self._rest = b""  # of a frame of which a pipe has taken the start
        self._interfaces = 0
        self._users = 0
        self._head(self._encoder.head())

    def interface(self, name: str) -> Interface:
        """Return what records a link in this file; when the last of these is closed, so is the file.

        :param name: the link's name, in a format that has room for it.
        :raises PlatformError: if it cannot be written; a file that records no other link is closed then.
        """
        self._head(self._encoder.interface(name))
        self._users += 1
        self._interfaces += 1
        return Interface(self, self._interfaces - 1)

    @property
    def names_links(self) -> bool:
        """Whether the format has room for the names of links."""
        return isinstance(self._encoder, Pcapng)

    def write(self, records: Iterable[tuple[Record, int]]) -> None:
        """Write the frames of records, each with the number of its interface.

        Frames that cannot be written are counted as `Drop.CAPTURE`; the first failure is logged.
        """
        blocks: list[bytes] = []
        for record, interface in records:
            blocks += self._encoder.blocks(record, interface)
        before, self._rest = self._rest, b""
        rest = memoryview(before + b"".join(blocks))
        try:
            # A full disk may take the start of a write only; the rest then fails with the reason.
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._lost(blocks, bytes(rest), error)

    def release(self) -> None:
        """Close the file, if no other link is recorded in it."""
        self._users -= 1
        if self._users:
            return
        try:
            os.close(self._fd)
        except OSError as error:
            # So a file system that writes late reports what it could not write (close(2)); the descriptor is free.
            log.error("%s: %s; frames may be missing from the file", self._named, error.strerror)

    def _head(self, data: bytes) -> None:
        """Write what a file cannot do without.

        :raises PlatformError: if that fails; a file that records no link is closed then.
        """
        try:
            os.write(self._fd, data)
        except OSError as error:
            if not self._users:
                os.close(self._fd)
            raise self._refused(error) from error

    def _lost(self, blocks: list[bytes], rest: bytes, error: OSError) -> None:
        """Count the last of `blocks`, of which `rest` was not written, and end the file with a whole one."""
        count = missing = 0
        while count < len(blocks) and missing + len(blocks[-1 - count]) <= len(rest):
            count += 1
            missing += len(blocks[-count])
        half = rest[: len(rest) - missing]
        if half and not self._cut(blocks, count, len(half)):
            self._rest = half
        elif half:
            count += 1
        self._counters.drop(Drop.CAPTURE, count)
        if count and not self._failed:
            self._failed = True
            log.error("%s: %s; frames are missing from the file", self._named, error.strerror)

    def _cut(self, blocks: list[bytes], count: int, missing: int) -> bool:
        """Cut off the start of the block before the last `count`, of which `missing` bytes were not written.

        :return: whether the file can be cut; a pipe cannot.
        """
        if count == len(blocks):
            return False  # it is the rest of an earlier block, in a pipe
        try:
            end = os.lseek(self._fd, missing - len(blocks[-1 - count]), os.SEEK_CUR)
            os.ftruncate(self._fd, end)
        except OSError:
            return False
        return True

    def _refused(self, error: OSError) -> PlatformError:
        return PlatformError(f"{self._named}: {error.strerror}", "name a file that can be written")


class Interface:
    """Records one link in a capture file.

    :param file: the file.
    :param number: the link's number there.
    :ivar number: as above.
    """

    def __init__(self, file: CaptureFile, number: int) -> None:
        self._file = file
        self.number = number

    def take(self, records: Sequence[Record]) -> None:
        """Write the frames of records."""
        self._file.write((record, self.number) for record in records)

    def close(self) -> None:
        """Stop recording the link."""
        self._file.release()


class Interfaces:
    """Records several links in a capture file, each as an interface of its own that is described when it is first met.

    A format without interfaces has no room for two records of a frame, at its sender's link and at its receiver's: such
    a file has what has reached a link's end.

    :param file: the file.
    :raises PlatformError: if the first interface cannot be written.
    """

    def __init__(self, file: CaptureFile, names: Iterable[str]) -> None:
        self._file = file
        self._ended: list[Interface] = []
        self._numbers: dict[str, int] = {}
        for name in names:
            self._number(name)

    def take(self, records: Sequence[Record]) -> None:
        """Write the frames of records."""
        if not self._file.names_links:
            records = [record for record in records if record.to_guest]
        self._file.write([(record, self._number(record.link)) for record in records])

    def close(self) -> None:
        """Stop recording the links."""
        for interface in self._ended:
            interface.close()

    def _number(self, name: str) -> int:
        """Return the number of a link's interface."""
        if name not in self._numbers:
            interface = self._file.interface(name)
            self._ended.append(interface)
            self._numbers[name] = interface.number
        return self._numbers[name]
