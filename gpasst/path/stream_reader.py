"""From a guest's stream to host sockets: the reader of the stream.

Theory of operation: one receive brings as many frames as have arrived. They are parsed where they lie: an ordinary UDP
frame of a known peer costs one look at its headers and one look-up by their raw bytes (`fastpath`). As long as the
frames behind it repeat its headers and size they belong to the same run, which leaves in one send of slices. Every
other frame goes to the backlog, which is dispatched when the known ones have been carried. The rest of a frame that has
not arrived whole is moved to the front of the buffer. Whole frames stay where they are when a step's time is over, and
nothing is received until they have been moved; `again` asks for that step, since the socket may have nothing more to
read.

Where the frames of a step are of many flows, the next steps carry several together (`stream_columns`), until that is of
no use any more.

A frame of illegal length is skipped, as many bytes as its length says.

The place in the stream moves past a frame before the frame is carried, and what has been received is kept whatever is
raised. An internal error therefore costs the frame that met it, and the next step goes on behind that frame.

Where frames are recorded, or rules of weather are in force, each frame is first shown to these. A frame that weather
has held comes back by `inject`.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import partial

from gpasst.counters import Counters, Drop
from gpasst.features import ALL, Feature
from gpasst.host.arena import Arena
from gpasst.host.receive import RUN_BYTES
from gpasst.host.ring import Ring
from gpasst.host.send import SEGMENTS_PER_SEND, send_one, send_slices, sender_to
from gpasst.link.port import FREE, PASSED, TAKEN, TRANSIENT, LinkGone
from gpasst.link.stream import Stream
from gpasst.linux import MSG_DONTWAIT
from gpasst.packet.joining import repeating
from gpasst.path.backlog import Backlog
from gpasst.path.budget import BACKLOG_SECONDS, RECEIVES_PER_STEP, STEP_SECONDS
from gpasst.path.columns import IDLE_BATCHES, TURNS, Gathered
from gpasst.path.fastpath import FastPath
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.stream_columns import StreamColumns
from gpasst.path.tcp_frames import TcpFrames
from gpasst.switch.framing import FRAME_MAXIMUM, FRAME_MINIMUM
from gpasst.udp.mapping import Peer
from gpasst.wire import STREAM_LEAD_BYTES, STREAM_LENGTH_BYTES, VIRTIO_NET_BLANK

BUFFER_BYTES = 1 << 19  # about what a stream's socket holds, and more than eight of the largest frames
WINDOW_LEAST = 1 << 14  # bytes
RUNS_PER_LOOK = 16  # at the clock; a frame of illegal length counts as one

_START = 16  # of the first frame in the buffer, so that there is room for that header
_REPEATING = {family: repeating(family, STREAM_LEAD_BYTES) for family in (4, 6)}
_length = struct.Struct(">I").unpack_from


class StreamReader:
    """Carries frames of a guest's stream to host sockets.

    :param stream: the stream.
    :param fastpath: recognises UDP of known peers.
    :param icmp: reports to the guest the datagrams that the kernel refuses.
    :param backlog: takes every other frame.
    :param again: asks for a call of `step` soon.
    :param counters: where traffic and drops are counted.
    :param features: the ways to move more than one datagram at once.
    :param clock: returns seconds, for the budget of a step.
    :param tcp: takes segments of known connections, None where TCP is not carried.
    :param ring: makes many sends in one call; None for none.
    """

    def __init__(
        self,
        stream: Stream,
        fastpath: FastPath,
        icmp: IcmpToGuest,
        backlog: Backlog,
        again: Callable[[], None],
        counters: Counters,
        features: frozenset[Feature] = ALL,
        clock: Callable[[], float] = time.perf_counter,
        tcp: TcpFrames | None = None,
        ring: Ring | None = None,
    ) -> None:
        self._stream = stream
        self._fastpath = fastpath
        self._icmp = icmp
        self._backlog = backlog
        self._again = again
        self._counters = counters
        self._clock = clock
        self._tcp = tcp
        self._tcp_queue = tcp.queue if tcp is not None else ()
        self._most = SEGMENTS_PER_SEND if features >= {Feature.JOIN, Feature.GSO} else 1
        arena = Arena(BUFFER_BYTES)
        self._view = arena.bytes
        self._many = False  # whether frames are carried together
        self._turns = 0  # frames of this step that were of another flow than the one before, and alone
        self._last: Peer | None = None
        self._columns: StreamColumns | None = None
        self._make_columns = partial(StreamColumns, partial(Gathered, fastpath, icmp, counters, features, ring), arena)
        self._at = self._end = _START
        self._window = BUFFER_BYTES
        self._skip = 0
        self._unread = False
        self._gone = ""  # why the guest has gone, while frames of it wait

    def connect(self) -> None:
        """Begin with the first frame of a new guest."""
        self._at = self._end = _START
        self._skip, self._unread, self._gone = 0, False, ""
        self._backlog.clear()

    def step(self) -> int:
        """Move what has arrived, for at most `STEP_SECONDS`; return how many frames it was.

        :raises LinkGone: if the guest has gone, and all frames that it sent before have been moved. Until they
            have, the socket stays readable, and its watcher calls again.
        """
        if self._backlog.behind:
            self._backlog.step()
            if self._unread:
                self._again()
            return 0
        deadline = self._clock() + STEP_SECONDS
        moved = self._turns = 0
        hurries = False
        try:
            if self._unread:
                moved = self._frames(self._end, deadline)
            for _ in range(RECEIVES_PER_STEP):
                sock = self._stream.socket
                if sock is None or self._unread or self._gone:
                    break
                room = min(BUFFER_BYTES - self._end, self._window)
                try:
                    size = sock.recv_into(self._view[self._end : self._end + room], room, MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno not in TRANSIENT:
                        self._gone = str(error.strerror)
                    break
                if not size:
                    self._gone = "end of stream"
                    break
                moved += self._frames(self._end + size, deadline)
                if self._unread:
                    self._window = max(WINDOW_LEAST, self._window >> 1)
                elif size == self._window:
                    self._window = min(BUFFER_BYTES, self._window << 1)
                if size < room:
                    hurries = False
                    break
                hurries = True
        finally:
            if self._unread:
                self._again()
        self._many = self._many or (self._turns >= TURNS and 2 * self._turns > moved)
        if hurries or self._unread or self._backlog.full:
            self._backlog.crowd.left(self._clock())
        else:
            self._backlog.crowd.emptied()
        self._follow(deadline)
        if self._gone and not self._backlog.frames:
            raise LinkGone(self._gone)
        return moved

    def _frames(self, end: int, deadline: float) -> int:
        """Move the frames in the buffer from `_at` to `end`, until `deadline`; return how many it was.

        `_unread` is set if whole frames may be left, which is so after an error too.
        """
        view, counters = self._view, self._counters
        watched = self._stream.recorder is not None or self._stream.gate is not None
        backlog = self._backlog
        at, moved, runs, passed = self._at, 0, 0, 0
        # Also where the next line that is reached is that of an error.
        self._unread = True
        try:
            while True:
                if self._skip:
                    skipped = min(self._skip, end - at)
                    at += skipped
                    self._skip -= skipped
                if backlog.full and not watched and not self._skip:
                    at, count = self._fastpath.pass_over(view, at, end)
                    passed += count
                if end - at < STREAM_LENGTH_BYTES:
                    self._unread = False
                    break
                runs += 1
                if not runs % RUNS_PER_LOOK and self._clock() >= deadline:
                    break
                if self._many and not watched and (sizes := self._sizes(at, end)):
                    start = at
                    at += sum(sizes)
                    runs += RUNS_PER_LOOK - 1 - runs % RUNS_PER_LOOK
                    count = self._together(start, sizes)
                    at -= sum(sizes[count:])
                    moved += count
                    continue
                (length,) = _length(view, at)
                if not FRAME_MINIMUM <= length <= FRAME_MAXIMUM:
                    counters.drop(Drop.FRAME_LENGTH)
                    self._skip = length
                    at += STREAM_LENGTH_BYTES
                    continue
                size = STREAM_LENGTH_BYTES + length
                if end - at < size:
                    self._unread = False
                    break
                start = at
                at += size
                moved += 1
                behind = end
                if watched and (fate := self._show(start, at)) != FREE:
                    if fate == TAKEN:
                        continue
                    behind = at
                taken = self._frame(view, start, size, behind)
                if taken > 1:
                    moved += taken - 1
                    at += (taken - 1) * size
        finally:
            if not self._unread:
                left = end - at
                if at > _START and left:
                    view[_START : _START + left] = bytes(view[at:end])
                at, end = _START, _START + left
            self._at, self._end = at, end
            counters.frames_down += moved + passed
            if passed:
                counters.drop(Drop.BACKLOG, passed)
        return moved + passed

    def caught_up(self) -> bool:
        """Let frames of known flows that wait in the backlog be carried; return whether none is left."""
        if self._backlog.behind:
            self._backlog.step()
        return not self._backlog.behind

    def inject(self, data: bytes) -> None:
        """Carry a frame, given with its virtio-net header, as if it had just been received."""
        self._frame(memoryview(data), STREAM_LEAD_BYTES, len(data) - STREAM_LEAD_BYTES, len(data))

    def settle(self) -> None:
        """Do what follows from frames that were injected."""
        self._follow(self._clock() + BACKLOG_SECONDS)

    def _follow(self, deadline: float) -> None:
        """Do the work of connections, and dispatch the backlog, until `deadline`."""
        if self._tcp_queue:
            assert self._tcp is not None
            self._tcp.run(deadline)
        if self._backlog.crowd.lasting:
            self._backlog.ask()  # its own steps are enough then
        elif self._backlog.frames:
            self._backlog.drain(min(deadline, self._clock() + BACKLOG_SECONDS))
            if self._tcp_queue:
                assert self._tcp is not None
                self._tcp.run(self._clock() + BACKLOG_SECONDS)

    def _show(self, start: int, end: int) -> int:
        """Show the frame from `start` to `end` to weather and recorder; return what becomes of it.

        That is `FREE` where those that repeat it may be joined with it.
        """
        gate, recorder = self._stream.gate, self._stream.recorder
        fate = FREE if gate is None else gate.take(self._view, start - STREAM_LEAD_BYTES, end)
        if recorder is not None and fate != TAKEN:
            recorder.write(False, VIRTIO_NET_BLANK, self._view[start + STREAM_LENGTH_BYTES : end])
            return PASSED
        return fate

    def _sizes(self, at: int, end: int) -> list[int]:
        """Return the sizes of frames that are carried together; see `StreamColumns.sizes`."""
        if self._columns is None:
            self._columns = self._make_columns()
        return self._columns.sizes(at, end)

    def _together(self, at: int, sizes: list[int]) -> int:
        """Carry frames together; parameters and result as for `StreamColumns.carry`."""
        columns = self._columns
        assert columns is not None
        count = columns.carry(at, sizes, self._other)
        if columns.idle >= IDLE_BATCHES:
            self._many, columns.idle = False, 0
        return count

    def _other(self, view: memoryview, at: int, size: int, end: int = 0) -> int:
        """Carry a frame that is no datagram of a known peer; parameters and result are those of `_frame`."""
        if self._tcp is not None:
            taken = self._tcp.frame(view, view, at - STREAM_LEAD_BYTES, size + STREAM_LEAD_BYTES, end)
            if taken:
                return taken
        self._backlog.add(view[at + STREAM_LENGTH_BYTES : at + size], 0)
        return 1

    def _frame(self, view: memoryview, at: int, size: int, end: int) -> int:
        """Carry the frame of `size` bytes at `at`, and those up to `end` that repeat it; return how many it was."""
        found = self._fastpath.lookup(view, at - STREAM_LEAD_BYTES, size + STREAM_LEAD_BYTES)
        if found is None:
            return self._other(view, at, size, end)
        peer, headers, length = found
        counters = self._counters
        sender = peer.sender or sender_to(peer)
        most = min(self._most, (end - at) // size, RUN_BYTES[6] // length if length else 1)
        taken = 1
        if most > 1:
            repeats = _REPEATING[peer.udp_socket.family]
            pattern = repeats(view, at)
            behind = at + size
            while taken < most and repeats(view, behind) == pattern:
                taken += 1
                behind += size
        first = at - STREAM_LEAD_BYTES + headers
        payload = view[first : first + length]
        if taken == 1:
            if peer is not self._last:
                self._turns += 1
                self._last = peer
            failure = send_one(sender, payload, counters.udp.down, counters)
        else:
            slices = [view[i : i + length] for i in range(first, first + taken * size, size)]
            failure = send_slices(sender, slices, length, counters.udp.down, counters)
        if failure:
            self._icmp.refused(peer, failure, payload)
        return taken
