"""Superframes cut into the frames that a wire would carry.

Pure: used where single frames are needed, which is the capture file and a link that cannot carry superframes. Checksums
that were left to the kernel are completed, and every segment gets its own lengths and IPv4 identification (as the
kernel's udp4_ufo/__udp_gso_segment do).
"""

from __future__ import annotations

from collections.abc import Iterator

from gpasst.formats import (
    ETHERNET_CODEC,
    ETHERTYPE_IPV4,
    IPV4_CODEC,
    IPV6_CODEC,
    UDP_CODEC,
    VIRTIO_NET_CODEC,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)
from gpasst.packet import checksum

_IP = ETHERNET_CODEC.size


def split(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Give the Ethernet frames, checksums complete, that a superframe stands for.

    :param data: virtio-net header and frame, as they cross the tap.
    """
    virtio = VIRTIO_NET_CODEC.unpack_from(data)
    frame = bytes(data[VIRTIO_NET_CODEC.size :])
    if not virtio["flags"] & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        yield frame
        return
    start, field = virtio["checksum_start"], virtio["checksum_start"] + virtio["checksum_offset"]
    if virtio["gso_type"] != VIRTIO_NET_HDR_GSO_UDP_L4 or not virtio["gso_size"]:
        yield _complete(frame, start, field)
        return
    # The field holds the pseudo header's sum for the whole; each segment has a length of its own.
    whole = int.from_bytes(frame[field : field + 2], "big")
    headers = start + UDP_CODEC.size
    pseudo = whole + (0xFFFF - (len(frame) - start) % 0xFFFF)
    step = virtio["gso_size"]
    for index, position in enumerate(range(headers, len(frame), step)):
        piece = bytearray(frame[:headers] + frame[position : position + step])
        length = len(piece) - start
        if frame[_IP - 2 : _IP] == ETHERTYPE_IPV4.to_bytes(2, "big"):
            _patch_ip4(piece, length + start - _IP, index)
        else:
            at = _IP + IPV6_CODEC.offset("payload_length")
            piece[at : at + 2] = (len(piece) - _IP - IPV6_CODEC.size).to_bytes(2, "big")
        at = start + UDP_CODEC.offset("length")
        piece[at : at + 2] = length.to_bytes(2, "big")
        piece[field : field + 2] = checksum.fold(pseudo + length).to_bytes(2, "big")
        yield _complete(bytes(piece), start, field)


def _complete(frame: bytes, start: int, field: int) -> bytes:
    """Compute the checksum whose pseudo header sum stands in `field`, from `start` on."""
    if field + 2 > len(frame):
        return frame
    value = checksum.internet(frame[start:]) or 0xFFFF
    return frame[:field] + value.to_bytes(2, "big") + frame[field + 2 :]


def _patch_ip4(frame: bytearray, total: int, index: int) -> None:
    at = _IP + IPV4_CODEC.offset("total_length")
    frame[at : at + 2] = total.to_bytes(2, "big")
    at = _IP + IPV4_CODEC.offset("identification")
    identification = (int.from_bytes(frame[at : at + 2], "big") + index) & 0xFFFF
    frame[at : at + 2] = identification.to_bytes(2, "big")
    at = _IP + IPV4_CODEC.offset("checksum")
    frame[at : at + 2] = bytes(2)
    size = 4 * (frame[_IP] & 15)
    frame[at : at + 2] = checksum.internet(frame[_IP : _IP + size]).to_bytes(2, "big")
