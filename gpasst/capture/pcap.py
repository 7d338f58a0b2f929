"""The classic format of capture files (libpcap's pcap-savefile): frames with their time in microseconds, no more.

Since there is no room for the reason, frames that were lost on the way to the guest are left out.
"""

from __future__ import annotations

from typing import Final

from gpasst.capture.record import SNAP_LENGTH, Record
from gpasst.wire import PCAP_FILE_CODEC, PCAP_RECORD_CODEC

_SECOND: Final = 1_000_000_000  # nanoseconds
_MICROSECOND: Final = 1000  # nanoseconds

# The arguments are the declaration's fields in order.
_pack = PCAP_RECORD_CODEC.layout.pack


class Pcap:
    """The classic format, which knows neither interfaces nor comments."""

    def head(self) -> bytes:
        """Return what stands at the start of a file."""
        return PCAP_FILE_CODEC.pack(snap_length=SNAP_LENGTH)

    def interface(self, name: str) -> bytes:
        """Return nothing: there are no interfaces."""
        del name
        return b""

    def blocks(self, record: Record, interface: int) -> list[bytes]:
        """Return what stands for each frame of a record."""
        del interface
        if not record.crossed:
            return []
        seconds, nanoseconds = divmod(record.time_ns, _SECOND)
        microseconds = nanoseconds // _MICROSECOND
        return [_pack(seconds, microseconds, len(frame), len(frame)) + frame for frame in record.frames()]
