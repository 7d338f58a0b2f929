"""The capture file: classic pcap of the Ethernet frames that crossed the link.

A superframe is captured as its segments, with complete checksums. Every frame is written at once, so a killed program
leaves whole records behind. A frame that cannot be written (disk full) is counted, and the traffic goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from gpasst.counters import Counters, Drop
from gpasst.errors import PlatformError
from gpasst.formats import PCAP_FILE_CODEC, PCAP_RECORD_CODEC
from gpasst.packet.segmentation import split

# More than the largest frame, 65535 bytes of IPv6 payload and its headers.
SNAP_LENGTH = 262144  # bytes; what libpcap writes by default
SECOND = 1_000_000_000  # nanoseconds
MICROSECOND = 1000  # nanoseconds

log = logging.getLogger(__name__)


class Capture:
    """A pcap file being written.

    :param path: file to create or truncate; mode 0600.
    :param clock: returns wall clock time in nanoseconds.
    :param counters: count the frames that are missing from the file.
    :raises PlatformError: if the file cannot be opened or written.
    """

    def __init__(self, path: str, clock: Callable[[], int], counters: Counters) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _refused(path, error) from error
        try:
            os.write(self._fd, PCAP_FILE_CODEC.pack(snap_length=SNAP_LENGTH))
        except OSError as error:
            os.close(self._fd)
            raise _refused(path, error) from error
        self._path = path
        self._clock = clock
        self._counters = counters
        self._failed = False

    def write(self, *parts: bytes | bytearray | memoryview) -> None:
        """Record a frame or superframe: virtio-net header and frame, in consecutive parts.

        Frames that cannot be written are counted as `Drop.CAPTURE`; the first failure is logged.
        """
        seconds, nanoseconds = divmod(self._clock(), SECOND)
        records = []
        for frame in split(b"".join(parts)):
            header = PCAP_RECORD_CODEC.pack(
                seconds=seconds, microseconds=nanoseconds // MICROSECOND, captured=len(frame), length=len(frame)
            )
            records.append(header + frame)
        rest = memoryview(b"".join(records))
        try:
            # A full disk may take the start of a write only; the rest then fails with the reason.
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._lost(records, len(rest), error)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _lost(self, records: list[bytes], missing: int, error: OSError) -> None:
        """Count the last of `records`, of which `missing` bytes were not written."""
        count = 0
        while missing > 0:
            count += 1
            missing -= len(records[-count])
        self._counters.drop(Drop.CAPTURE, count)
        if not self._failed:
            self._failed = True
            log.warning("--pcap %s: %s; frames are missing from the file", self._path, error.strerror)


def _refused(path: str, error: OSError) -> PlatformError:
    return PlatformError(f"--pcap {path}: {error.strerror}", "name a file that can be written")
