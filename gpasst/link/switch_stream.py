"""The port of a switch that has a stream behind it: a virtual machine, or another switch.

Theory of operation: a stream carries no offload header, so superframes are cut and checksums completed on the way out
(`gpasst.link.stream`). What the other end does not read waits in a bounded queue there, and more is dropped. On the way
in, one receive brings many frames, which are forwarded where they lie (`gpasst.switch.framing`). Those that a step
leaves are forwarded by the next one, before anything is received.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gpasst.counters import Counters, Drop
from gpasst.link.port import TRANSIENT, LinkGone
from gpasst.link.stream import Stream
from gpasst.link.switch import PAIR, Data, Port, Switch
from gpasst.link.switch_tap import FRAMES_PER_LOOK, FRAMES_PER_STEP, STEP_SECONDS
from gpasst.linux import MSG_DONTWAIT
from gpasst.switch.framing import Cutter


class StreamPort(Port):
    """A stream as a port.

    :param name: of what is behind it.
    :param stream: writes to it.
    :param switch: the switch.
    :param cutter: cuts what arrives.
    :param again: asks for a call of `step` soon.
    :param counters: where drops are counted.
    :param clock: returns seconds, for the budget of a step.
    :ivar stream: as above.
    :ivar left: whether whole frames may wait to be cut; until they have been, nothing is received.
    """

    def __init__(
        self,
        name: str,
        stream: Stream,
        switch: Switch,
        cutter: Cutter,
        again: Callable[[], None],
        counters: Counters,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(name, counters)
        self.stream = stream
        self._switch = switch
        self._again = again
        self._clock = clock
        self._cutter = cutter
        self.left = False

    def connect(self) -> None:
        """Begin with the first frame of another peer."""
        self._cutter.clear()
        self.left = False

    def write(self, data: Data) -> Drop | None:
        """Send a frame or superframe; return why any of it was dropped, None if nothing was."""
        reason = self.stream.write_superframe(data)
        self.sent += reason is None
        return reason

    def unread(self) -> bool:
        """Return whether the peer has sent what has not been read."""
        return self.left or self.stream.unread()

    def step(self) -> int:
        """Forward up to `FRAMES_PER_STEP` frames, for about `STEP_SECONDS`; return how many.

        :raises LinkGone: if the peer has gone, and all that it sent before has been forwarded.
        """
        if not self.left:
            self.receive()
        cut, ways = self._cutter.cut, self.ways
        moved, deadline = 0, self._clock() + STEP_SECONDS
        self.left = True
        while moved < FRAMES_PER_STEP and (not moved or moved % FRAMES_PER_LOOK or self._clock() < deadline):
            frame = cut()
            if frame is None:
                self.left = False
                break
            moved += 1
            way = ways.get(bytes(frame[PAIR]))
            if way is not None:
                way.write(frame)
            else:
                self._switch.forward(self, frame)
        if self.left:
            self._again()
        self.received += moved
        return moved

    def receive(self) -> None:
        """Receive what has arrived; whole frames of before must have been cut.

        :raises LinkGone: if the peer has gone.
        """
        sock = self.stream.socket
        if sock is None:
            return
        try:
            size = sock.recv_into(self._cutter.room(), 0, MSG_DONTWAIT)
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise LinkGone(error.strerror) from error
            return
        if not size:
            raise LinkGone("end of stream")
        self._cutter.add(size)
