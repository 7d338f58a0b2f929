"""The port of a switch that has a stream behind it: a virtual machine, or another switch.

Theory of operation: a stream carries no offload header, so superframes are cut and their checksums completed on the way
out. That takes far longer than to write one to a tap, up to 10 us for each frame. So what is written waits in a bounded
queue, and is cut in steps of this port's own, in turn with everything else, as far as the peer reads.

On the way in, one receive brings many frames, which are forwarded where they lie (`gpasst.switch.framing`). Those that
a step leaves are forwarded by the next one, before anything is received.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

from gpasst.counters import Counters, Drop
from gpasst.link.port import TRANSIENT, LinkGone
from gpasst.link.stream import QUEUE_BYTES, Stream
from gpasst.link.switch import PAIR, Data, Port, Switch
from gpasst.link.switch_tap import FRAMES_PER_LOOK, FRAMES_PER_STEP, STEP_SECONDS
from gpasst.linux import MSG_DONTWAIT
from gpasst.packet.segmentation import split
from gpasst.switch.framing import Cutter


class StreamPort(Port):
    """A stream as a port.

    :param name: of what is behind it.
    :param stream: writes to it.
    :param switch: the switch.
    :param cutter: cuts what arrives.
    :param again: asks for a call of `step` soon.
    :param send_again: asks for a call of `send` soon.
    :param gone: why frames are dropped while nobody is there.
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
        send_again: Callable[[], None],
        gone: Drop,
        counters: Counters,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(name, counters)
        self.stream = stream
        self._switch = switch
        self._cutter = cutter
        self._again = again
        self._send_again = send_again
        self._gone = gone
        self._clock = clock
        self.left = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._frames: Iterator[bytes] | None = None  # of the superframe that is being cut
        stream.emptied.append(send_again)

    def connect(self) -> None:
        """Begin with the first frame of another peer."""
        self._cutter.clear()
        self.left = False
        self._forget()

    def write(self, data: Data) -> Drop | None:
        """Send a frame or superframe soon; return why it was dropped, None if it was not."""
        if self.stream.socket is None:
            reason = self._gone
        elif self._waiting_bytes + len(data) > QUEUE_BYTES:
            reason = Drop.PORT_FULL
        else:
            if not self._waiting:
                self._send_again()
            self._waiting.append(bytes(data))
            self._waiting_bytes += len(data)
            self.sent += 1
            return None
        self.counters.drop(reason)
        return reason

    def send(self) -> int:
        """Cut and send what waits, for about `STEP_SECONDS`; return how many frames it was.

        What the peer does not read is left waiting, and asked for when it does.
        """
        stream, waiting = self.stream, self._waiting
        if stream.socket is None:
            self._forget()
            return 0
        moved, deadline = 0, self._clock() + STEP_SECONDS
        while not stream.full and (not moved or moved % FRAMES_PER_LOOK or self._clock() < deadline):
            frame = next(self._frames, None) if self._frames is not None else None
            if frame is not None:
                stream.gather(frame)
                moved += 1
            elif waiting:
                data = waiting.popleft()
                self._waiting_bytes -= len(data)
                self._frames = split(data)
            else:
                self._frames = None
                break
        stream.flush()
        if (waiting or self._frames is not None) and not stream.full:
            self._send_again()
        return moved

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
            if not frame:
                # Behind a message there may be many more, and each may take as long as a step; it may have ended this.
                self.left = frame is not None and self.stream.socket is not None
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

    def _forget(self) -> None:
        """Drop what waits."""
        if self._waiting:
            self.counters.drop(self._gone, len(self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0
        self._frames = None
