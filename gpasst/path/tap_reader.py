"""The data path: superframes from the tap to host sockets (downward), and from host sockets to the tap (upward).

Theory of operation: each direction is one `step` that moves a bounded amount without waiting and returns, so that no
flow starves another.

* `Downward.step` reads frames. An ordinary UDP frame of a known peer costs one look at its headers, one look-up by
  their raw bytes and one send. Everything else takes the long way: `packets` takes it apart, `fragments` joins it,
  services answer it, the guest path sets up its peer.
* `Upward.step` reads runs (`batch`) from one socket. A known sender costs one look-up and one write per run.

A send that the kernel refuses as a superframe (path MTU below the segment, no segmentation on the way) is repeated
datagram by datagram; a refused datagram is counted, and the others go on. What the host's network does not carry is
reported to the guest (`notices`).
"""

from __future__ import annotations

import os
import struct

from gpasst.counters import Counters, Drop
from gpasst.features import ALL, Feature
from gpasst.formats import (
    UDP4,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)
from gpasst.host.receive import RUN_BYTES
from gpasst.host.send import SEGMENTS_PER_SEND, send_one, send_run, sender_to
from gpasst.link.tap import FRAME_BYTES, Tap
from gpasst.path.dispatch import Dispatch
from gpasst.path.fastpath import HEADERS, repeating
from gpasst.path.icmp_to_guest import IcmpToGuest
from gpasst.udp.mapping import Peer
from gpasst.udp.nat import UdpNat

FRAMES_PER_STEP = 128
SINGLE_STEPS = 2  # steps with one frame each after which the next is expected to be like that
SINGLE_CHECK = 8  # every so many steps it is found out whether that still holds

_VIRTIO = VIRTIO_NET_CODEC.size
_GSO_TYPE = UDP4.offset("virtio.gso_type")
_GSO_SIZE = UDP4.offset("virtio.gso_size")
_DONE = (0, 0)
_DRAINED = -1
_REPEATING = {family: repeating(family, 0) for family in (4, 6)}
_gso_size = struct.Struct("<H").unpack_from


class TapReader:
    """From the tap to host sockets.

    :param tap: the tap.
    :param path: the guest path.
    :param dispatch: what becomes of frames that are not UDP of a known peer.
    :param counters: where traffic and drops are counted.
    :param features: what may move more than one datagram at once.
    """

    def __init__(
        self,
        tap: Tap,
        path: UdpNat,
        dispatch: Dispatch,
        counters: Counters,
        features: frozenset[Feature] = ALL,
    ) -> None:
        self._tap = tap
        self._path = path
        self._dispatch = dispatch
        self._counters = counters
        self._notices = IcmpToGuest(tap, path, counters)
        self._buffer = bytearray(2 * FRAME_BYTES)
        self._view = memoryview(self._buffer)
        self._head = bytearray(HEADERS[6])
        # Without the kernel's help in splitting there is no use in joining; captured frames are read one by one.
        self._joins = features >= {Feature.JOIN, Feature.GSO} and tap.capture is None
        self._most = SEGMENTS_PER_SEND if Feature.GSO in features else 1
        self._last: Peer | None = None
        self._single = 0
        self._known = dispatch.known

    def step(self) -> int:
        """Move up to `FRAMES_PER_STEP` frames; give how many it was."""
        fd, counters, capture = self._tap.fd, self._counters, self._tap.capture
        vector = [self._buffer]
        readv = os.readv
        # Looking for a second frame costs a system call. Where there was none for a while it is left to the watcher,
        # which calls again at once if there is one, but for now and then.
        single = self._single
        budget = 1 if single > SINGLE_STEPS and single % SINGLE_CHECK else FRAMES_PER_STEP
        if budget == 1:
            self._last = None
        read = size = 0
        while read < budget:
            try:
                size = readv(fd, vector)
            except BlockingIOError:
                break
            while size > 0:
                # What interrupted a run is in the buffer already, and may begin the next one.
                counters.frames_down += 1
                if capture is not None:
                    capture.write(self._view[:size])
                size, joined = self._frame(size)
                counters.frames_down += joined
                read += 1 + joined
            if size == _DRAINED:
                break
        self._single = single + 1 if read <= 1 else 0
        return read

    def _frame(self, size: int) -> tuple[int, int]:
        """Carry the frame in the buffer, `size` bytes with its virtio-net header, and what repeats it.

        :return: size of a frame that has been read but not carried, 0 for none and `_DRAINED` if there is none to be
            read either; and how many frames were joined.
        """
        found = self._known.lookup(self._buffer, 0, size)
        if found is None:
            for peer, payload in self._dispatch.frame(self._view[_VIRTIO:size]):
                self._send(peer, payload, self._buffer[_GSO_TYPE])
            return _DONE
        peer, start, length = found
        payload = self._view[start : start + length]
        gso = self._buffer[_GSO_TYPE]
        if gso:
            self._send(peer, payload, gso)
            return _DONE
        # Others like the one before are expected to follow.
        if peer is self._last and size == start + length:
            return self._join(peer, size, start)
        if self._joins:
            self._last = peer
        failure = send_one(peer.send or sender_to(peer), payload, self._counters.down, self._counters)
        if failure:
            self._notices.refused(peer, failure, payload)
        return _DONE

    def _join(self, peer: Peer, size: int, start: int) -> tuple[int, int]:
        """Carry the frame in the buffer, and join those that follow it as long as they repeat it.

        Each is read with its headers apart and its payload behind the one before. What does not repeat it ends the run
        and is put at the start of the buffer for the caller.

        :param peer: where to.
        :param size: bytes of the frame.
        :param start: bytes of its headers.
        :return: as `_frame`.
        """
        view, head, fd, readv = self._view, self._head, self._tap.fd, os.readv
        segment = size - start
        end = size
        most = min(SEGMENTS_PER_SEND - 1, (RUN_BYTES[6] - segment) // segment if segment else 0)
        repeats = _REPEATING[peer.udp_socket.family]
        pattern = repeats(self._buffer, 0)
        vector = [memoryview(head)[:start], view[end:]]
        taken = left = 0
        while taken < most:
            try:
                left = readv(fd, vector)
            except BlockingIOError:
                left = _DRAINED
                break
            if left != size or repeats(head, 0) != pattern:
                break
            taken += 1
            end += segment
            left = 0
            vector[1] = view[end:]
        self._send_joined(peer, view[start:end], segment)
        if left > start:
            view[:start] = vector[0]
            view[start:left] = view[end : end + left - start]
        elif left > 0:
            view[:left] = vector[0][:left]
        return left, taken

    def _send_joined(self, peer: Peer, payload: memoryview, segment: int) -> None:
        """Send datagrams of `segment` bytes each, the last perhaps shorter, to `peer`."""
        self._path.tables[peer.udp_socket.family].activity[peer.byte] |= peer.bit
        counters = self._counters
        sender = peer.send or sender_to(peer)
        failure = send_run(sender, payload, segment, self._most, counters.down, counters)
        if failure:
            self._notices.refused(peer, failure, payload[:segment])

    def _send(self, peer: Peer, payload: memoryview, gso: int) -> None:
        """Send a datagram or superframe of the guest to `peer`."""
        segment = len(payload)
        if gso == VIRTIO_NET_HDR_GSO_UDP_L4:
            (segment,) = _gso_size(self._buffer, _GSO_SIZE)
            if not segment:
                self._counters.drop(Drop.MALFORMED_UDP)
                return
        self._send_joined(peer, payload, segment)
