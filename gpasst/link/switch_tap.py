"""The port of a switch that has a host's tap behind it.

Theory of operation: a frame is read behind its virtio-net header, and written to the tap that its addresses lead to as
it is: the kernel of one host has left checksums and segmentation undone, and the kernel of the other takes it so. So a
frame costs two system calls, whatever it is. One that has no way yet goes to `Switch.forward`.

A frame of UDP whose pair and size are those of the one before is expected to have more behind it. Those that repeat it
are joined, and written as one superframe: a write costs more than a read, since it does the work of the receiving host.
In a conversation, where steps have one frame each, looking for a second one is left to the next step.

A frame that goes to all ports costs as much as there are of them. If a step's time is over and most of its frames went
to all, the port asks for as long a *rest*, so that a storm has half of the time at most. What the host's kernel has no
room for meanwhile is lost to that host.

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
from gpasst.link.run_reader import DRAINED, RunReader
from gpasst.link.switch import PAIR, Data, Port, Switch
from gpasst.link.tap import FRAME_BYTES
from gpasst.linux import TUNSETCARRIER, UDP_MAX_SEGMENTS_SENT
from gpasst.packet.joining import GSO_TYPE, HEADERS, RUN_BYTES, joinable, seal
from gpasst.packet.segmentation import split
from gpasst.wire import VIRTIO_NET_BLANK, VIRTIO_NET_HDR_GSO_UDP_L4

FRAMES_PER_STEP: Final = 64
FRAMES_PER_LOOK: Final = 8  # at the clock, but for frames that `Switch.forward` has seen
STEP_SECONDS: Final = 0.00015  # so that an exchange of two others beside several floods has its turn in time
SINGLE_STEPS: Final = 2  # steps with one frame each, after which the next is expected to have one, too
SINGLE_CHECK: Final = 8  # of so many steps, one checks whether that still holds
APART_FRAMES: Final = 32  # that are not expected to repeat, after two of different flows

_NONE = b"", 0


class TapPort(Port):
    """The tap of a host as a port.

    Whether its kernel takes superframes of UDP (Linux 6.2) is known from the first that it refuses.

    :param name: of the host.
    :param fd: the device, opened with IFF_VNET_HDR, not blocking; its owner closes it.
    :param switch: the switch.
    :param counters: where drops are counted.
    :param clock: returns seconds, for the budget of a step.
    :ivar rest: seconds until the next step, for the caller of the latest one; 0 but for a storm.
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
        self._buffer = bytearray(2 * FRAME_BYTES)
        self._view = memoryview(self._buffer)
        self._pair = self._view[PAIR]
        self._runs = RunReader(self._buffer, self._view)
        self.rest = 0.0
        self._last = _NONE
        self._single = 0
        self.joins = True

    def step(self) -> int:
        """Forward up to `FRAMES_PER_STEP` frames, for at most `STEP_SECONDS`; return how many.

        :raises LinkGone: if the device is gone.
        """
        fd, view, ways, clock = self.fd, self._view, self.ways, self._clock
        readv, vector, pair_of = os.readv, [self._buffer], self._pair.tobytes
        single = self._single
        budget = 1 if single > SINGLE_STEPS and single % SINGLE_CHECK else FRAMES_PER_STEP
        last, last_size = self._last if budget > 1 else _NONE
        flooded, self.rest = self.flooded, 0.0
        moved = size = apart = 0
        look, deadline = FRAMES_PER_LOOK, 0.0
        while moved < budget:
            try:
                size = readv(fd, vector)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in TRANSIENT:
                    break
                raise LinkGone(error.strerror) from error
            while size > 0:
                # A frame that ended a run is in the buffer already. It begins none, so this is done twice at most.
                moved += 1
                pair = pair_of()
                way = ways.get(pair)
                if way is None:
                    self._switch.forward(self, view[:size])
                    look = moved
                    break
                if size == last_size and pair == last and way.joins:
                    family = joinable(self._buffer, size)
                    if family:
                        size, joined = self._join(way, family, size)
                        moved += joined
                        if size > 0:
                            last_size, apart = 0, 0 if joined else APART_FRAMES
                        continue
                way.write(view[:size])
                if apart:
                    apart -= 1
                else:
                    last, last_size = pair, size
                break
            if size == DRAINED:
                break
            if moved >= look:
                look, now = moved + FRAMES_PER_LOOK, clock()
                if not deadline:
                    deadline = now + STEP_SECONDS
                elif now >= deadline:
                    if 2 * (self.flooded - flooded) > moved:
                        self.rest = now - deadline + STEP_SECONDS
                    break
        self._last = last, last_size
        self._single = single + 1 if moved <= 1 else 0
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

    def _join(self, way: Port, family: int, size: int) -> tuple[int, int]:
        """Send the frame in the buffer, joined with those that follow it as long as they repeat it.

        :param way: where they go.
        :param family: of the frame, 4 or 6.
        :param size: its bytes, with its virtio-net header.
        :return: what `RunReader.gather` does.
        """
        runs, segment = self._runs, size - HEADERS[family]
        left, joined = runs.gather(self.fd, family, size, min(UDP_MAX_SEGMENTS_SENT, RUN_BYTES // segment) - 1)
        if joined:
            seal(self._buffer, family, segment, segment * (1 + joined))
        way.write(self._view[: runs.end])
        runs.restore(family, left)
        return left, joined

    def _failed(self, failure: int, data: Data) -> Drop | None:
        """Count what the tap did not take; send it frame by frame if that may help."""
        frames = list(split(data)) if failure == errno.EINVAL else []
        if len(frames) > 1:
            self.joins = self.joins and data[GSO_TYPE] != VIRTIO_NET_HDR_GSO_UDP_L4
            reasons = [self.write(VIRTIO_NET_BLANK + frame) for frame in frames]
            return next(filter(None, reasons), None)
        reason = Drop.TAP_FULL if failure == errno.EAGAIN else Drop.TAP_FAILED
        self.counters.drop(reason)
        return reason
