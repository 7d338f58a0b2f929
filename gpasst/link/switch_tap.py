"""The port of a switch that has a host's tap behind it.

Theory of operation: a frame is read behind its virtio-net header, and written to the tap that its addresses lead to as
it is: the kernel of one host has left checksums and segmentation undone, and the kernel of the other takes it so. So a
frame costs two system calls, whatever it is. One that has no way yet goes to `Switch.forward`.

A tap takes every frame at once, in the time of whoever writes it. What waits, waits in the kernel's queue of the tap
that it was sent from; when that is full, the sender's kernel drops frames as with any other device.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gpasst.counters import Counters, Drop
from gpasst.helper.tap import IOC_WRITE
from gpasst.hub import readable
from gpasst.link.port import TRANSIENT, LinkGone
from gpasst.link.switch import PAIR, Data, Port, Switch
from gpasst.link.tap import FRAME_BYTES
from gpasst.linux import TUNSETCARRIER
from gpasst.packet.segmentation import split
from gpasst.wire import VIRTIO_NET_BLANK

FRAMES_PER_STEP: Final = 64
FRAMES_PER_LOOK: Final = 8  # at the clock, but for frames that `Switch.forward` has seen
STEP_SECONDS: Final = 0.0005  # so that an exchange of two others beside several floods has its turn in time


class TapPort(Port):
    """The tap of a host as a port.

    :param name: of the host.
    :param fd: the device, opened with IFF_VNET_HDR, not blocking; its owner closes it.
    :param switch: the switch.
    :param counters: where drops are counted.
    :param clock: returns seconds, for the budget of a step.
    """

    def __init__(
        self,
        name: str,
        fd: int,
        switch: Switch,
        counters: Counters,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(name, counters)
        self.fd = fd
        self._switch = switch
        self._clock = clock
        self._buffer = bytearray(FRAME_BYTES)
        self._view = memoryview(self._buffer)

    def step(self) -> int:
        """Forward up to `FRAMES_PER_STEP` frames, for at most `STEP_SECONDS`; return how many.

        :raises LinkGone: if the device is gone.
        """
        fd, view, ways, clock = self.fd, self._view, self.ways, self._clock
        readv, vector = os.readv, [self._buffer]
        moved, look, deadline = 0, FRAMES_PER_LOOK, 0.0
        while moved < FRAMES_PER_STEP:
            try:
                size = readv(fd, vector)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in TRANSIENT:
                    break
                raise LinkGone(error.strerror) from error
            moved += 1
            way = ways.get(bytes(view[PAIR]))
            if way is not None:
                way(view[:size])
            else:
                self._switch.forward(self, view[:size])
                look = moved
            if moved >= look:
                look, now = moved + FRAMES_PER_LOOK, clock()
                if not deadline:
                    deadline = now + STEP_SECONDS
                elif now >= deadline:
                    break
        self.received += moved
        return moved

    def write(self, data: Data) -> Drop | None:
        """Send a frame or superframe to the host; return why it was dropped, None if it was not."""
        try:
            os.write(self.fd, data)
        except OSError as error:
            return self._failed(error.errno or errno.EIO, data)
        self.sent += 1
        return None

    def unread(self) -> bool:
        """Return whether the host has sent what has not been read."""
        return readable(self.fd)

    def set_link(self, up: bool) -> None:
        """Let frames pass or not, and let the host's kernel know (Linux 5.0)."""
        self.down = not up
        with suppress(OSError):
            fcntl.ioctl(self.fd, IOC_WRITE | TUNSETCARRIER, struct.pack("i", up))

    def _failed(self, failure: int, data: Data) -> Drop | None:
        """Count what the tap did not take; send it frame by frame if that may help."""
        frames = list(split(data)) if failure == errno.EINVAL else []
        if len(frames) > 1:
            reasons = [self.write(VIRTIO_NET_BLANK + frame) for frame in frames]
            return next(filter(None, reasons), None)
        reason = Drop.TAP_FULL if failure == errno.EAGAIN else Drop.TAP_FAILED
        self.counters.drop(reason)
        return reason
