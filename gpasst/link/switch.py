"""A switch in this process: frames of one port go to the others as they are, superframes whole.

Theory of operation:

1. A frame that comes in by a port is looked at by `Switch.forward`: its source address is learned, and its destination
   leads to one port or to all others (`gpasst.switch.table`).
2. What was decided for a pair of addresses is kept at the port, as the *way* of that pair: the port that it leads to.
   So the next frame of the pair costs one look-up and one call. Only pairs whose frames nobody has to see have a way.
   `Switch.reset` ends all ways, for whoever wants to see frames from now on.
3. What stands between the ports, such as weather and partitions (`Between`), is asked about each frame that has no way:
   when it comes in, and again for each port that it would leave by. Frames are recorded here, at their sender's link
   and at each receiver's.
4. A port of the proxy's own (`InnerPort`) takes frames in the step of the port that they come from, so work that a
   host makes is done in its own time. What one inner port sends to another waits for a step of that port, so nothing
   recurses, and frames that go round between routers take turns with everything else.

NOTE: a switch lives on one hub; only that hub's thread may call it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from gpasst.counters import Counters, Drop
from gpasst.link.recorder import Recorder
from gpasst.packet.superframe import VIRTIO
from gpasst.switch.table import Table
from gpasst.wire import ETHERNET_CODEC

WAYS_PER_PORT: Final = 1024  # pairs of addresses; a host chooses them
WAITING_FRAMES: Final = 1024  # of an inner port
FRAMES_PER_STEP: Final = 32  # of those that wait

_DESTINATION = slice(VIRTIO, VIRTIO + 6)
_SOURCE = slice(VIRTIO + 6, VIRTIO + 12)
PAIR = slice(_DESTINATION.start, _SOURCE.stop)
"""Destination and source address of a frame behind its virtio-net header: the key of its way."""
SHORTEST = VIRTIO + ETHERNET_CODEC.size
"""Bytes of the shortest frame, with its virtio-net header."""

Data = bytes | bytearray | memoryview
Way = Callable[[Data], object]


class Between(Protocol):
    """What stands between the ports of a switch."""

    def enters(self, source: Port, data: Data) -> bool:
        """Return whether a frame that came in by a port goes on now; if not, it has been recorded."""

    def passes(self, source: Port, target: Port, data: Data) -> bool:
        """Return whether a frame leaves by a port now; if not, and it is lost, it has been recorded."""

    def sees(self, source: Port, target: Port) -> bool:
        """Return whether either has to be asked about frames from one port to another."""


class Port:
    """One end of a link: what is behind it sends and receives frames.

    :param name: of what is behind it, as users know it.
    :param counters: where drops are counted.
    :ivar name: as above.
    :ivar inner: whether it leads to a part of this process.
    :ivar joins: whether it takes superframes of UDP, so that frames are worth joining.
    :ivar ways: where frames of a pair of addresses go at once; see the head of this module.
    :ivar received: frames that came in; a superframe counts once.
    :ivar flooded: frames of these that went to all other ports.
    :ivar sent: frames that went out, counted likewise.
    :ivar down: whether the link is cut.
    :ivar beyond: whether it leads to another part of the network.
    """

    inner = False
    joins = False
    beyond = False

    def __init__(self, name: str, counters: Counters) -> None:
        self.name = name
        self.ways: dict[bytes, Port] = {}
        self.received = self.sent = self.flooded = 0
        self.down = False
        self.counters = counters

    def __repr__(self) -> str:
        return f"<port {self.name}>"

    def write(self, data: Data) -> Drop | None:
        """Send a frame or superframe; what cannot be sent is counted.

        :param data: it, behind its virtio-net header; valid during the call.
        :return: why it was dropped, None if it was not.
        """
        raise NotImplementedError

    def later(self, data: Data) -> Drop | None:
        """Send a frame or superframe that comes from an inner port, as `write` does."""
        return self.write(data)

    def unread(self) -> bool:
        """Return whether what is behind it has sent what has not been read."""
        return False


class InnerPort(Port):
    """A port that leads to a part of this process, such as a router.

    :param name: of that part.
    :param take: takes each frame or superframe, behind its virtio-net header; valid during the call.
    :param again: asks for a call of `step` soon.
    :param counters: where drops are counted.
    """

    inner = joins = True

    def __init__(self, name: str, take: Way, again: Callable[[], None], counters: Counters) -> None:
        super().__init__(name, counters)
        self._take = take
        self._again = again
        self._waiting: deque[bytes] = deque()

    def write(self, data: Data) -> None:
        """Hand a frame or superframe over."""
        self.sent += 1
        self._take(data)

    def later(self, data: Data) -> Drop | None:
        """Hand a frame or superframe over in a step of its own."""
        if len(self._waiting) >= WAITING_FRAMES:
            self.counters.drop(Drop.PORT_FULL)
            return Drop.PORT_FULL
        self._waiting.append(bytes(data))
        self._again()
        return None

    def unread(self) -> bool:
        """Return whether frames wait for a step."""
        return bool(self._waiting)

    def step(self) -> int:
        """Hand over what waits; return how many frames it was."""
        waiting = self._waiting
        moved = 0
        while waiting and moved < FRAMES_PER_STEP:
            moved += 1
            self.write(waiting.popleft())
        if waiting:
            self._again()
        return moved


class Switch:
    """The ports of one network, and what passes between them.

    :param counters: where drops are counted.
    :ivar ports: the ports, in the order in which they were added.
    :ivar named: the same by their names.
    :ivar table: the addresses behind them.
    :ivar between: stands between the ports, None while nothing does; to be followed by `reset`.
    :ivar answered: returns whether a frame to a group is a question to the gateway of this part of the network, which
        other parts need not hear: their gateways would answer as well. None without a gateway.
    """

    def __init__(self, counters: Counters) -> None:
        self.ports: list[Port] = []
        self.named: dict[str, Port] = {}
        self.table: Table[Port] = Table()
        self.between: Between | None = None
        self.answered: Callable[[Data], bool] | None = None
        self._recorder: Recorder | None = None
        self._counters = counters
        self._changes = 0

    @property
    def recorder(self) -> Recorder | None:
        """What records the frames at all links, None while nobody wants that."""
        return self._recorder

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self.reset()

    def add(self, port: Port, address: bytes | None = None) -> None:
        """Add a port.

        :param port: the port.
        :param address: the MAC address behind it that nobody else may use; None for a port that has to be learned.
        """
        self.ports.append(port)
        self.named[port.name] = port
        if address is not None:
            self.table.pin(address, port)
        self.reset()

    def remove(self, port: Port) -> None:
        """Remove a port; more calls do nothing."""
        if port in self.ports:
            self.ports.remove(port)
            if self.named.get(port.name) is port:
                del self.named[port.name]
            self.table.remove(port)
            port.ways.clear()
            self.reset()

    def reset(self) -> None:
        """Look at the next frame of every pair of addresses again."""
        self._changes = self.table.changes
        self.table.forget_relied()
        for port in self.ports:
            port.ways.clear()

    def forward(self, source: Port, data: Data) -> None:
        """Forward a frame or superframe that came in by a port.

        :param source: the port.
        :param data: the frame, behind its virtio-net header; valid during the call.
        """
        if source.inner:
            source.received += 1
        way = source.ways.get(bytes(data[PAIR]))
        if way is not None:
            (way.later if source.inner else way.write)(data)
            return
        table = self.table
        if len(data) < SHORTEST:
            self._counters.drop(Drop.FRAME_SHORT)
            return
        if not table.learn(bytes(data[_SOURCE]), source):
            self._counters.drop(Drop.SOURCE_ADDRESS)
            if self._recorder is not None:
                self._recorder.write(False, data, comment=Drop.SOURCE_ADDRESS.value, link=source.name)
            return
        if table.changes != self._changes:
            self.reset()
        if source.down:
            self._counters.drop(Drop.LINK_DOWN)
        elif self.between is None or self.between.enters(source, data):
            if self._recorder is not None:
                data = bytes(data)  # one copy for the records of all links
                self._recorder.write(False, data, link=source.name)
            self.route(source, data)

    def route(self, source: Port, data: Data) -> None:
        """Let a frame or superframe go on that came in by a port, as `forward` does when nothing is in its way."""
        table = self.table
        destination, sender = bytes(data[_DESTINATION]), bytes(data[_SOURCE])
        target = None if destination[0] & 1 else table.find(destination)
        if target is None:
            source.flooded += 1
            stays = self.answered is not None and bool(destination[0] & 1) and self.answered(data)
            for port in self.ports:
                if port is not source and not (stays and port.beyond):
                    self._pass(source, port, data)
        elif target is source:
            # Behind a port that leads to another switch its addressee has the frame already.
            self._counters.drop(Drop.SAME_PORT)
            if self._recorder is not None:
                self._recorder.note(data[VIRTIO:], Drop.SAME_PORT)
        else:
            self._pass(source, target, data)
            if self._direct(source, target):
                ways = source.ways
                if len(ways) >= WAYS_PER_PORT:
                    ways.clear()
                ways[destination + sender] = target
                table.rely(destination)

    def _direct(self, source: Port, target: Port) -> bool:
        """Return whether nobody has to see what passes between two ports."""
        if source.down or target.down or self._recorder is not None:
            return False
        return self.between is None or not self.between.sees(source, target)

    def _pass(self, source: Port, target: Port, data: Data) -> None:
        """Let a frame pass from one port to another, if it may."""
        if self.between is None or self.between.passes(source, target, data):
            self.deliver(target, data, source.inner)

    def leads(self, data: Data) -> Port | None:
        """Return the only port that a frame leads to; None for one that goes to many."""
        return None if data[VIRTIO] & 1 else self.table.find(bytes(data[_DESTINATION]))

    def deliver(self, target: Port, data: Data, later: bool) -> None:
        """Let a frame or superframe leave by a port.

        :param target: the port.
        :param data: the frame, behind its virtio-net header; valid during the call.
        :param later: whether a part of this process takes it in a step of its own.
        """
        recorder = self._recorder
        # What takes it may answer at once, so it is recorded before.
        record = recorder.write(True, data, link=target.name) if recorder is not None else None
        if target.down:
            reason: Drop | None = Drop.LINK_DOWN
            self._counters.drop(Drop.LINK_DOWN)
        else:
            reason = target.later(data) if later else target.write(data)
        if record is not None and reason is not None:
            record.comment = reason.value
