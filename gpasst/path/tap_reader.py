"""From the tap to host sockets: the reader of the tap.

Theory of operation: `step` reads frames, a bounded number and for a bounded time, so that no flow starves another. An
ordinary UDP frame of a known peer costs one look at its headers, one look-up by their raw bytes and one send
(`fastpath`). Frames that repeat the one before are joined to one send. Every other frame goes to the backlog, which is
dispatched when the known ones have been carried.

Where the frames of a step are of many flows, the next steps read several before they carry them (`tap_columns`), until
that is of no use any more.

Where frames are recorded, or rules of weather are in force, each frame is first shown to these. A frame that weather
has held comes back by `inject`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from gpasst.counters import Counters, Drop
from gpasst.features import ALL, Feature
from gpasst.host.receive import RUN_BYTES
from gpasst.host.ring import Ring
from gpasst.host.send import SEGMENTS_PER_SEND, send_one, sender_to
from gpasst.link.port import FREE, TAKEN, TRANSIENT, LinkGone
from gpasst.link.run_reader import DRAINED, RunReader
from gpasst.link.tap import FRAME_BYTES, Tap
from gpasst.packet.joining import GSO_TYPE
from gpasst.path.backlog import Backlog
from gpasst.path.budget import BACKLOG_SECONDS, CROWDED_PER_STEP, FRAMES_PER_STEP, STEP_SECONDS
from gpasst.path.columns import IDLE_BATCHES, TURNS, Gathered
from gpasst.path.fastpath import FastPath, udp_segment
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.path.tap_columns import TapColumns
from gpasst.path.tcp_frames import TcpFrames
from gpasst.path.udp_sockets import UdpSockets
from gpasst.udp.mapping import Peer
from gpasst.wire import ETHERTYPE_IPV4, PROTOCOL_TCP, TCP4, VIRTIO_NET_CODEC

FRAMES_PER_LOOK = 8  # at the clock
SINGLE_STEPS = 2  # steps with one frame each, after which the next is expected to have one, too
SINGLE_CHECK = 8  # of so many steps, one checks whether that still holds

_VIRTIO = VIRTIO_NET_CODEC.size
_ETHERTYPE, _PROTOCOL4 = TCP4.offset("ethernet.ethertype"), TCP4.offset("ip.protocol")
_IPV4 = ETHERTYPE_IPV4 >> 8  # the first byte, which differs from that of IPv6
_DONE = (0, 0)


class TapReader:
    """Carries frames of the tap to host sockets.

    :param tap: the tap.
    :param fastpath: recognises UDP of known peers.
    :param udp: sends runs to their peers.
    :param icmp: reports to the guest the datagrams that the kernel refuses.
    :param backlog: takes every other frame.
    :param counters: where traffic and drops are counted.
    :param features: the ways to move more than one datagram at once.
    :param clock: returns seconds, for the budget of a step.
    :param tcp: takes segments of known connections, None where TCP is not carried.
    :param ring: makes many sends in one call; None for none.
    """

    def __init__(
        self,
        tap: Tap,
        fastpath: FastPath,
        udp: UdpSockets,
        icmp: IcmpToGuest,
        backlog: Backlog,
        counters: Counters,
        features: frozenset[Feature] = ALL,
        clock: Callable[[], float] = time.perf_counter,
        tcp: TcpFrames | None = None,
        ring: Ring | None = None,
    ) -> None:
        self._tap = tap
        self._fastpath = fastpath
        self._udp = udp
        self._icmp = icmp
        self._backlog = backlog
        self._counters = counters
        self._clock = clock
        self._tcp = tcp
        self._tcp_queue = tcp.queue if tcp is not None else ()
        self._buffer = bytearray(2 * FRAME_BYTES)
        self._view = memoryview(self._buffer)
        self._runs = RunReader(self._buffer, self._view)
        # Without the kernel's help in splitting there is no use in joining.
        self._joins = features >= {Feature.JOIN, Feature.GSO}
        self._last: Peer | None = None
        self._single = 0
        self._turns = 0  # frames of this step that were of another flow than the one before
        self._emptied = True
        self._many = False  # whether frames are read and carried together
        self._columns: TapColumns | None = None
        # Of a step in which frames are carried together.
        self._deadline = 0.0
        self._others = 0  # frames that were no datagrams of known peers
        self._late = False  # whether its time was over when one of these came
        gather = partial(Gathered, fastpath, icmp, counters, features, ring)
        self._make_columns = partial(TapColumns, gather, counters, ring)

    def step(self) -> int:
        """Move frames for at most `STEP_SECONDS`, and return how many it was.

        It is up to `FRAMES_PER_STEP`, or as many of many flows as `gpasst.path.budget.Depth` says.

        :raises LinkGone: if the device is gone. The frames that were read before are moved, or in the backlog.
        """
        backlog, tap = self._backlog, self._tap
        if backlog.behind:
            backlog.step()
            return 0
        fd, counters = tap.fd, self._counters
        watched = tap.recorder is not None or tap.gate is not None
        if self._many and not watched:
            return self._step_of_many()
        vector = [self._buffer]
        readv = os.readv
        # Looking for a second frame costs a system call. Where there was none for a while it is left to the watcher,
        # which calls again at once if there is one, but for now and then.
        single = self._single
        # While others wait in the backlog, that call is the lesser cost.
        alone = single > SINGLE_STEPS and single % SINGLE_CHECK and not backlog.frames
        budget = 1 if alone else CROWDED_PER_STEP if backlog.crowd.lasting else FRAMES_PER_STEP
        if budget == 1:
            self._last = None
        read = size = self._turns = 0
        look, deadline = FRAMES_PER_LOOK, 0.0
        while read < budget:
            try:
                size = readv(fd, vector)
            except BlockingIOError:
                size = DRAINED
                break
            except OSError as error:
                if error.errno in TRANSIENT:
                    size = DRAINED
                    break
                # What the guest sent before it went is not lost: the backlog asks for its own next step.
                backlog.drain(self._clock())
                raise LinkGone(error.strerror) from error
            while size > 0:
                # A frame that ended a run is in the buffer already, and may begin the next one.
                counters.frames_down += 1
                if watched and self._show(size):
                    read += 1
                    break
                if backlog.full and not self._fastpath.may_matter(self._buffer, 0):
                    backlog.overflow(self._view[_VIRTIO:size])
                    read += 1
                    break
                size, joined = self._frame(size)
                counters.frames_down += joined
                read += 1 + joined
            if size == DRAINED:
                break
            if read >= look:
                look, now = read + FRAMES_PER_LOOK, self._clock()
                if not deadline:
                    deadline = now + STEP_SECONDS
                elif now >= deadline:
                    break
        self._single = single + 1 if read <= 1 else 0
        if self._turns >= TURNS:
            self._many = 2 * self._turns > read
        if size == DRAINED:
            self._emptied = True
        if backlog.full or (size != DRAINED and budget > 1):
            backlog.crowd.left(self._clock())
        elif size == DRAINED:
            backlog.crowd.emptied()
        if self._tcp_queue or backlog.frames:
            deadline = deadline or self._clock() + STEP_SECONDS
            # Frames of known flows may wait in the kernel's queue behind others, which only reading overtakes.
            self._follow(deadline, hurries=size != DRAINED and budget > 1)
        return read

    def _step_of_many(self) -> int:
        """Take a step in which frames are carried together; see `step`."""
        if self._columns is None:
            self._columns = self._make_columns()
        columns = self._columns
        self._last = None
        start = self._clock()
        self._deadline = deadline = start + STEP_SECONDS
        self._others, self._late = 0, False
        read, failure = columns.step(self._tap.fd, self._other, self._carry_superframe)
        columns.pace(self._clock() - start)
        if columns.idle >= IDLE_BATCHES:
            self._many, columns.idle = False, 0
        if failure is not None:
            if failure.errno not in TRANSIENT:
                self._backlog.drain(self._clock())
                raise LinkGone(failure.strerror) from failure
            self._emptied = True
        if failure is None or self._backlog.full:
            self._backlog.crowd.left(self._clock())
        else:
            self._backlog.crowd.emptied()
        if self._tcp_queue or self._backlog.frames:
            self._follow(deadline, hurries=failure is None)
        return read

    def _other(self, block: memoryview, at: int, size: int) -> None:
        """Carry one frame of those that are carried together, which is no datagram of a known peer.

        When the step's time is over, it is left to the backlog.

        :param block: where it lies.
        :param at: where its virtio-net header begins.
        :param size: bytes with that.
        """
        self._others += 1
        if not self._others % FRAMES_PER_LOOK:
            self._late = self._clock() >= self._deadline
        if self._tcp is None or self._late or not self._tcp.frame(block, block, at, size):
            self._keep(block[at : at + size])

    def _carry_superframe(self, block: memoryview, at: int, size: int) -> None:
        """Carry a superframe among these; parameters as for `_other`."""
        found = self._fastpath.lookup(block, at, size)
        if found is None:
            self._other(block, at, size)
            return
        peer, start, length = found
        self._superframe(peer, block[at : at + size], block[at + start : at + start + length])

    def scan(self, now: int) -> None:
        """Give back the memory of large frames among those of many flows, which may have been few."""
        del now
        if self._columns is not None:
            self._columns.give_back()

    def emptied(self) -> bool:
        """Return whether the tap's queue was found empty since the last call."""
        emptied, self._emptied = self._emptied, False
        return emptied

    def caught_up(self) -> bool:
        """Let frames of known flows that wait in the backlog be carried; return whether none is left."""
        if self._backlog.behind:
            self._backlog.step()
        return not self._backlog.behind

    def inject(self, data: bytes) -> None:
        """Carry a frame or superframe, given with its virtio-net header, as if it had just been read.

        Not to be called while one that has been read is carried: they share a buffer.
        """
        size = len(data)
        self._buffer[:size] = data
        self._last = None
        self._frame(size)
        self._last = None

    def settle(self) -> None:
        """Do what follows from frames that were injected."""
        self._follow(self._clock() + BACKLOG_SECONDS)

    def _follow(self, deadline: float, hurries: bool = False) -> None:
        """Do the work of connections, and dispatch the backlog, until `deadline`.

        :param hurries: whether the backlog has `BACKLOG_SECONDS` at most.
        """
        if self._tcp_queue:
            assert self._tcp is not None
            self._tcp.run(deadline)
        if self._backlog.crowd.lasting:
            self._backlog.ask()  # its own steps are enough then
        elif self._backlog.frames:
            self._backlog.drain(self._clock() + BACKLOG_SECONDS if hurries else deadline)
            if self._tcp_queue:
                assert self._tcp is not None
                self._tcp.run(self._clock() + BACKLOG_SECONDS)

    def _show(self, size: int) -> bool:
        """Show the frame in the buffer to weather and recorder; return whether weather has taken it."""
        gate, recorder = self._tap.gate, self._tap.recorder
        fate = FREE if gate is None else gate.take(self._view, 0, size)
        if fate != FREE:
            self._last = None  # what is behind it has to be shown, too
        if fate == TAKEN:
            return True
        if recorder is not None:
            recorder.write(False, self._view[:size])
            self._last = None  # recorded frames are read one by one
        return False

    def _frame(self, size: int) -> tuple[int, int]:
        """Carry the frame in the buffer, `size` bytes with its virtio-net header, and those that repeat it.

        :return: size of a frame that has been read but not carried, 0 for none and `DRAINED` if none is left to read;
            and how many frames were joined.
        """
        buffer = self._buffer
        tcp4 = buffer[_PROTOCOL4] == PROTOCOL_TCP and buffer[_ETHERTYPE] == _IPV4
        found = None if tcp4 else self._fastpath.lookup(buffer, 0, size)
        if found is None:
            if self._tcp is None or not self._tcp.frame(buffer, self._view, 0, size):
                self._keep(self._view[:size])
            return _DONE
        peer, start, length = found
        payload = self._view[start : start + length]
        if buffer[GSO_TYPE]:
            self._superframe(peer, self._view[:size], payload)
            return _DONE
        # Others like the one before are expected to follow.
        if peer is self._last and size == start + length:
            return self._join(peer, size, start)
        self._turns += 1
        if self._joins:
            self._last = peer
        failure = send_one(peer.sender or sender_to(peer), payload, self._counters.udp.down, self._counters)
        if failure:
            self._icmp.refused(peer, failure, payload)
        return _DONE

    def _superframe(self, peer: Peer, frame: memoryview, payload: memoryview) -> None:
        """Send the datagrams of a superframe, given with its virtio-net header, to their peer."""
        segment = udp_segment(frame, len(frame))
        if segment >= 0:
            self._udp.send(peer, payload, segment or len(payload))
        else:
            self._counters.drop(Drop.MALFORMED_UDP)

    def _keep(self, frame: memoryview) -> None:
        """Put a frame, given with its virtio-net header, which is none of a known flow, into the backlog."""
        segment = udp_segment(frame, len(frame)) if frame[GSO_TYPE] else 0
        if segment >= 0:
            self._backlog.add(frame[_VIRTIO:], segment)
        else:
            self._counters.drop(Drop.MALFORMED_UDP)

    def _join(self, peer: Peer, size: int, start: int) -> tuple[int, int]:
        """Carry the frame in the buffer, joined with those that follow it as long as they repeat it.

        :param peer: the peer that they are for.
        :param size: bytes of the frame.
        :param start: bytes of its headers.
        :return: as `_frame`.
        """
        runs, segment, family = self._runs, size - start, peer.udp_socket.family
        most = min(SEGMENTS_PER_SEND - 1, (RUN_BYTES[6] - segment) // segment if segment else 0)
        left, joined = runs.gather(self._tap.fd, family, size, most)
        self._udp.send(peer, self._view[start : runs.end], segment)
        runs.restore(family, left)
        return left, joined
