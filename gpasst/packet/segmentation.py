"""Segmentation of superframes into the frames that a wire would carry.

Theory of operation: the capture file and links without offloads need single frames with complete checksums, where the
tap carries superframes whose checksums are left to the kernel (virtio-net header). So each segment is cut from its
superframe (`gpasst.packet.superframe`), and its checksum completed.

Where a header contradicts its frame, nothing can be completed, and the frame is yielded as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpasst.packet.superframe import VIRTIO, Buffer, complete, cut, shape


def split(data: Buffer) -> Iterator[bytes]:
    """Yield the Ethernet frames of a superframe, or the one frame, with complete checksums.

    :param data: virtio-net header and frame, as they cross the tap. Any bytes do; without a whole header there is no
        frame.
    """
    if len(data) < VIRTIO:
        return
    data = bytes(data)
    whole = shape(data)
    if whole.count == 1:
        yield complete(data, whole)
        return
    for number in range(whole.count):
        yield complete(cut(data, whole, number, number + 1), whole)
