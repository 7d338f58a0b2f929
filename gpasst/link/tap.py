"""The tap device: superframes in and out, one system call each.

Theory of operation: a virtio-net header (10 bytes) precedes every frame. Where the kernel allows it (USO, Linux 6.2),
that header lets one read or write carry a superframe: a run of segments of one flow, which the kernel joins and splits.
Where it does not, a run is written segment by segment, in the same order.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Mapping, Sequence

from gpasst.counters import Counters, Drop
from gpasst.helper.tap import IOC_WRITE
from gpasst.hub import readable
from gpasst.link.port import Gate, RunHeader
from gpasst.link.recorder import Recorder
from gpasst.linux import TUNATTACHFILTER, TUNDETACHFILTER
from gpasst.packet.segmentation import split
from gpasst.wire import VIRTIO_NET_BLANK

# The tap driver takes any frame whose IP packet is legal; the largest has 65535 bytes of IPv6 payload.
FRAME_BYTES = 65536 + 128
Parts = list[bytes | bytearray | memoryview]  # of a frame, one behind the other

SOCK_FILTER_BYTES = 8  # linux/filter.h

_sock_fprog = struct.Struct("@HP").pack  # linux/filter.h: number of instructions, and where they are


class Tap:
    """The tap of one guest.

    :param fd: the device, opened with IFF_VNET_HDR, not blocking.
    :param counters: where traffic and drops are counted.
    :param superframes: families whose superframes the device takes, by protocol.
    :ivar recorder: records what crosses, None while nobody wants that.
    :ivar gate: asked for each frame of the guest, None while no rule of weather is in force for these.
    """

    ready = True  # a tap always has its guest
    full = False  # and takes every frame at once

    def __init__(
        self,
        fd: int,
        counters: Counters,
        superframes: Mapping[str, frozenset[int]],
    ) -> None:
        self.fd = fd
        self.recorder: Recorder | None = None
        self.gate: Gate | None = None
        self._counters = counters
        self._tallies = {protocol: traffic.up for protocol, traffic in counters.traffic.items()}
        self._superframes = superframes

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        """Write one run; what cannot be written is counted.

        :param header: the flow's headers.
        :param total: payload bytes in all.
        :param segment: payload bytes of each segment but perhaps the last.
        :param payload: the segments, one behind the other.
        """
        tally = self._tallies[header.protocol]
        single = segment >= total
        if single or header.family in self._superframes[header.protocol]:
            parts: Parts = [header.fill(total, segment), *payload]
            failure = self._write(parts)
            if not failure:
                tally.bytes += total
                if single:
                    tally.datagrams += 1
                else:
                    tally.superframes += 1
                    tally.datagrams += -(-total // segment)
                return
            if single or failure != errno.EINVAL:
                self._lost(failure, parts, 1 if single else -(-total // segment))
                return
        data = memoryview(b"".join(payload))
        for start in range(0, total, segment):
            piece = data[start : start + segment]
            parts = [header.fill_complete(piece, start), piece]
            failure = self._write(parts)
            if failure:
                self._lost(failure, parts)
            else:
                tally.datagrams += 1
                tally.bytes += len(piece)

    @property
    def bare(self) -> bool:
        """Whether frames may be written past `write_run`: nobody records them, and no rule of weather is in force."""
        return self.recorder is None and "write_run" not in self.__dict__

    def joins(self, protocol: str, family: int) -> bool:
        """Return whether a run of a protocol and family crosses as one superframe."""
        return family in self._superframes[protocol]

    def write_each(self, frames: Iterable[memoryview], lengths: Iterable[int]) -> list[tuple[int, int]]:
        """Write frames, and return the indices of those that could not be written, each with the errno.

        :param frames: where they lie, from their virtio-net headers on; what is behind their end does not matter.
        :param lengths: bytes of each.
        """
        fd, write = self.fd, os.write
        failures: list[tuple[int, int]] = []
        for i, (frame, length) in enumerate(zip(frames, lengths, strict=True)):
            try:
                write(fd, frame[:length])
            except OSError as error:
                failures.append((i, error.errno or errno.EIO))
        return failures

    def count_each(self, protocol: str, sizes: Sequence[int], failures: Iterable[tuple[int, int]]) -> None:
        """Count frames of one segment each that were written past `write_run`.

        :param protocol: what they count for, such as ``"udp"``.
        :param sizes: payload bytes of each.
        :param failures: indices of those that could not be written, each with the errno.
        """
        tally = self._tallies[protocol]
        tally.datagrams += len(sizes)
        tally.bytes += sum(sizes)
        for i, failure in failures:
            tally.datagrams -= 1
            tally.bytes -= sizes[i]
            self._counters.drop(_reason(failure))

    def write_bare(self, header: RunHeader) -> None:
        """Write one frame without payload."""
        parts: Parts = [header.fill(0, 0)]
        failure = self._write(parts)
        if failure:
            self._lost(failure, parts)
        else:
            self._tallies[header.protocol].datagrams += 1

    def write_frame(self, frame: bytes) -> None:
        """Write one complete Ethernet frame."""
        parts: Parts = [VIRTIO_NET_BLANK, frame]
        failure = self._write(parts)
        if failure:
            self._lost(failure, parts)
        else:
            self._counters.frames_up += 1

    def superframe(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> bytes:
        """Return a run as it would cross a link that offloads; see `gpasst.link.port.ImpairableLink`."""
        return b"".join((header.fill(total, segment), *payload))

    def write_held(self, data: bytes, count: int, head: int, family: int, protocol: str) -> None:
        """Write a frame or superframe that was held; see `gpasst.link.port.ImpairableLink`."""
        failure = errno.EINVAL
        if count == 1 or family in self._superframes[protocol]:
            failure = self._write([data])
        if failure == errno.EINVAL and count > 1:
            for frame in split(data):
                self.write_held(VIRTIO_NET_BLANK + frame, 1, head, family, protocol)
        elif failure:
            self._lost(failure, [data], count)
        elif protocol:
            tally = self._tallies[protocol]
            tally.superframes += count > 1
            tally.datagrams += count
            tally.bytes += len(data) - head
        else:
            self._counters.frames_up += 1

    def set_filter(self, program: bytes) -> None:
        """Let the kernel run a classic BPF program over each frame of the guest, before the frame is queued.

        :param program: an array of struct sock_filter; empty for none.
        :raises OSError: if the kernel does not.
        """
        text = ctypes.create_string_buffer(program)
        filters = _sock_fprog(len(program) // SOCK_FILTER_BYTES, ctypes.addressof(text))
        fcntl.ioctl(self.fd, IOC_WRITE | (TUNATTACHFILTER if program else TUNDETACHFILTER), filters)

    def unread(self) -> bool:
        """Return whether the guest has sent what has not been read."""
        return readable(self.fd)

    def flush(self) -> None:
        """Do nothing: every frame has been written at once."""

    def _write(self, parts: Parts) -> int:
        """Write a frame in parts; return the errno, 0 for success."""
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            return error.errno or errno.EIO
        if self.recorder is not None:
            self.recorder.write(True, *parts)
        return 0

    def _lost(self, failure: int, parts: Parts, count: int = 1) -> None:
        reason = _reason(failure)
        self._counters.drop(reason, count)
        if self.recorder is not None:
            self.recorder.write(True, *parts, comment=reason.value)


def _reason(failure: int) -> Drop:
    """Return the reason of a drop that the errno of a write means."""
    return Drop.TAP_FULL if failure == errno.EAGAIN else Drop.TAP_FAILED
