"""The capture file: classic pcap, Ethernet, of what really crossed the tap (context 9, errata E-40).

Superframes are captured as the frames that they stand for. The file is written as it grows, so that a killed program
leaves whole records behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from gpasst.errors import PlatformError
from gpasst.formats import PCAP_FILE_CODEC, PCAP_RECORD_CODEC
from gpasst.packet.segmentation import split

# More than the largest frame, 65535 bytes of IPv6 payload and its headers.
SNAP_LENGTH = 262144  # bytes; what libpcap writes by default


class Capture:
    """A pcap file being written.

    :param path: file to create or truncate; mode 0600.
    :param clock: gives wall clock time in nanoseconds.
    :raises PlatformError: if the file cannot be written.
    """

    def __init__(self, path: str, clock: Callable[[], int]) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.write(self._fd, PCAP_FILE_CODEC.pack(snap_length=SNAP_LENGTH))
        except OSError as error:
            raise PlatformError(f"--pcap {path}: {error.strerror}", "name a file that can be written") from error
        self._clock = clock
        self.failed = 0

    def write(self, *parts: bytes | bytearray | memoryview) -> None:
        """Record a superframe: virtio-net header and frame, in pieces. A full disk is counted, not fatal."""
        seconds, nanoseconds = divmod(self._clock(), 1_000_000_000)
        records = []
        for frame in split(b"".join(parts)):
            header = PCAP_RECORD_CODEC.pack(
                seconds=seconds, microseconds=nanoseconds // 1000, captured=len(frame), length=len(frame)
            )
            records += [header, frame]
        try:
            os.write(self._fd, b"".join(records))
        except OSError:
            self.failed += 1

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
