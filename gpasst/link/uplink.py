"""The gateway's end of a network of hosts: what it writes goes into the switch of this process.

Theory of operation: a switch carries frames and superframes with their virtio-net header, as taps do, so a run becomes
one buffer and one call. What cannot be delivered is counted by the port that it leaves by.
"""

from __future__ import annotations

from collections.abc import Callable

from gpasst.counters import Counters
from gpasst.link.port import RunHeader
from gpasst.link.recorder import Recorder
from gpasst.wire import VIRTIO_NET_BLANK


class Uplink:
    """The gateway's end (`gpasst.link.port.Link`).

    :param counters: where traffic is counted.
    :ivar forward: takes a frame or superframe with its virtio-net header, which is its own from then on.
    """

    ready = True  # there may be hosts at any time
    full = False  # and the switch takes every frame at once
    recorder: Recorder | None = None  # the switch has recorders of its own

    def __init__(self, counters: Counters) -> None:
        self.forward: Callable[[bytes], object] = _nowhere
        self._counters = counters
        self._tallies = {protocol: traffic.up for protocol, traffic in counters.traffic.items()}

    def write_run(self, header: RunHeader, total: int, segment: int, payload: list[memoryview]) -> None:
        """Write one run; see `gpasst.link.port.Link`."""
        tally = self._tallies[header.protocol]
        self.forward(b"".join((header.fill(total, segment), *payload)))
        tally.bytes += total
        if segment >= total:
            tally.datagrams += 1
        else:
            tally.superframes += 1
            tally.datagrams += -(-total // segment)

    def write_bare(self, header: RunHeader) -> None:
        """Write one frame without payload."""
        self.forward(bytes(header.fill(0, 0)))
        self._tallies[header.protocol].datagrams += 1

    def write_frame(self, frame: bytes) -> None:
        """Write one complete Ethernet frame."""
        self.forward(VIRTIO_NET_BLANK + frame)
        self._counters.frames_up += 1

    def flush(self) -> None:
        """Do nothing: every frame has been forwarded at once."""


def _nowhere(data: bytes) -> None:
    """Take a frame before there is a switch, or after its end."""
