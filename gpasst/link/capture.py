"""The capture file: classic pcap of the Ethernet frames that crossed the link.

A superframe is captured as its segments, with complete checksums. Every frame is written at once, so a killed program
leaves whole records behind. A frame that cannot be written (disk full) is counted, and the traffic goes on; the part of
it that was written is cut off again, or, in a pipe, completed before the next frame. So a reader never meets half a
record, and the capture goes on when there is room again.
"""

from __future__ import annotations

import logging
import os

from gpasst.counters import Counters, Drop
from gpasst.errors import PlatformError
from gpasst.link.output import open_output
from gpasst.link.recorder import Record
from gpasst.wire import PCAP_FILE_CODEC, PCAP_RECORD_CODEC

# More than the largest frame, 65535 bytes of IPv6 payload and its headers.
SNAP_LENGTH = 262144  # bytes; what libpcap writes by default
SECOND = 1_000_000_000  # nanoseconds
MICROSECOND = 1000  # nanoseconds

log = logging.getLogger(__name__)


class Capture:
    """A pcap file being written.

    :param path: file to create or truncate; mode 0600.
    :param counters: count the frames that are missing from the file.
    :raises PlatformError: if the file cannot be opened or written.
    """

    def __init__(self, path: str, counters: Counters) -> None:
        try:
            self._fd = open_output(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
        except OSError as error:
            raise _refused(path, error) from error
        try:
            os.write(self._fd, PCAP_FILE_CODEC.pack(snap_length=SNAP_LENGTH))
        except OSError as error:
            os.close(self._fd)
            raise _refused(path, error) from error
        self._path = path
        self._counters = counters
        self._failed = False
        self._rest = b""  # of a record of which a pipe has taken the start

    def write(self, record: Record) -> None:
        """Write the frames of a record.

        Frames that cannot be written are counted as `Drop.CAPTURE`; the first failure is logged.
        """
        seconds, nanoseconds = divmod(record.time, SECOND)
        records = []
        for frame in record.frames():
            header = PCAP_RECORD_CODEC.pack(
                seconds=seconds, microseconds=nanoseconds // MICROSECOND, captured=len(frame), length=len(frame)
            )
            records.append(header + frame)
        before, self._rest = self._rest, b""
        rest = memoryview(before + b"".join(records))
        try:
            # A full disk may take the start of a write only; the rest then fails with the reason.
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._lost(records, bytes(rest), error)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _lost(self, records: list[bytes], rest: bytes, error: OSError) -> None:
        """Count the last of `records`, of which `rest` was not written, and end the file with a whole record."""
        count = missing = 0
        while count < len(records) and missing + len(records[-1 - count]) <= len(rest):
            count += 1
            missing += len(records[-count])
        half = rest[: len(rest) - missing]
        if half and not self._cut(records, count, len(half)):
            self._rest = half
        elif half:
            count += 1
        self._counters.drop(Drop.CAPTURE, count)
        if count and not self._failed:
            self._failed = True
            log.error("--pcap %s: %s; frames are missing from the file", self._path, error.strerror)

    def _cut(self, records: list[bytes], count: int, missing: int) -> bool:
        """Cut off the start of the record before the last `count`, of which `missing` bytes were not written.

        :return: whether the file can be cut; a pipe cannot.
        """
        if count == len(records):
            return False  # it is the rest of an earlier record, in a pipe
        try:
            end = os.lseek(self._fd, missing - len(records[-1 - count]), os.SEEK_CUR)
            os.ftruncate(self._fd, end)
        except OSError:
            return False
        return True


def _refused(path: str, error: OSError) -> PlatformError:
    return PlatformError(f"--pcap {path}: {error.strerror}", "name a file that can be written")
