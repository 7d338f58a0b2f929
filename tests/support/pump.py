"""Carries frames between a tap and passt mode's stream, so that a kernel speaks through the stream as qemu's would.

Executed as a file, in a process of its own: `pump.py TAP STREAM CONTROL`, all of them inherited descriptors.

The tap has virtio-net headers and no offloads, so the kernel behind it makes whole frames, and checks those it gets.
What comes over CONTROL makes frames get lost: four bytes say the direction (0 for the guest's own), a mask of TCP
flags, their value under it, and how many such frames; each that was lost is answered with one byte, and so is the
order itself.
"""

from __future__ import annotations

import os
import select
import socket
import sys

VIRTIO_BYTES, LENGTH_BYTES = 10, 4
FRAMES_AT_ONCE = 64
FRAME_BYTES = 1 << 17
ORDER_BYTES = 4
ETHERTYPE = slice(12, 14)
# By EtherType: where the protocol's number stands, and where TCP's flags do.
PLACES = {b"\x08\x00": (23, 47), b"\x86\xdd": (20, 67)}
TCP = 6
HEADER = bytes(VIRTIO_BYTES)


class Loss:
    """What is to be lost in one direction."""

    def __init__(self) -> None:
        self.mask = self.value = self.count = 0

    def takes(self, frame: memoryview) -> bool:
        """Whether a frame gets lost."""
        if not self.count:
            return False
        protocol, flags = PLACES.get(bytes(frame[ETHERTYPE]), (0, 0))
        if not flags or len(frame) <= flags or frame[protocol] != TCP or frame[flags] & self.mask != self.value:
            return False
        self.count -= 1
        return True


def main(tap: int, stream: socket.socket, control: socket.socket) -> None:
    """Carry frames until either end is gone."""
    losses = Loss(), Loss()
    buffer = memoryview(bytearray(FRAME_BYTES))
    left = b""
    ends = tap, stream.fileno(), control.fileno()
    while True:
        ready, _, _ = select.select(ends, [], [])
        if control.fileno() in ready:
            order = control.recv(ORDER_BYTES)
            if not order:
                return
            loss = losses[order[0]]
            loss.mask, loss.value, loss.count = order[1:]
            control.send(b"!")
        if tap in ready:
            frames = []
            for _ in range(FRAMES_AT_ONCE):
                try:
                    size = os.readv(tap, [buffer])
                except BlockingIOError:
                    break
                frame = buffer[VIRTIO_BYTES:size]
                if losses[0].takes(frame):
                    control.send(b"x")
                    continue
                frames += [len(frame).to_bytes(LENGTH_BYTES, "big"), bytes(frame)]
            stream.sendall(b"".join(frames))
        if stream.fileno() in ready:
            data = stream.recv(1 << 20)
            if not data:
                return
            left = _deliver(tap, left + data, losses[1], control)


def _deliver(tap: int, data: bytes, loss: Loss, control: socket.socket) -> bytes:
    """Write whole frames to the tap; return what is left of the last one."""
    view, at = memoryview(data), 0
    while len(data) - at >= LENGTH_BYTES:
        end = at + LENGTH_BYTES + int.from_bytes(view[at : at + LENGTH_BYTES], "big")
        if end > len(data):
            break
        frame = view[at + LENGTH_BYTES : end]
        at = end
        if loss.takes(frame):
            control.send(b"x")
            continue
        try:
            os.writev(tap, [HEADER, frame])
        except OSError:
            continue  # the link is down, as a machine's card may be
    return data[at:]


if __name__ == "__main__":
    main(int(sys.argv[1]), *(socket.socket(fileno=int(number)) for number in sys.argv[2:]))
