"""Internet checksums (RFC 1071) and pseudo headers.

Theory of operation
===================

1. All sums are of big-endian 16-bit words; an odd last byte counts as the high half of a word (RFC 1071
   section 1).
2. 65536 is 1 modulo 65535, so a whole buffer read as one big integer leaves the same remainder as its folded
   words, and so does the sum of pieces of whole words. So a long one is cut into pieces, their sum is halved by
   additions, which cost a fraction of a division, and the rest is divided once: no loop over 32768 words in Python.
3. End-around carry never turns a positive sum into zero, whereas the remainder may be zero; `ones_sum` returns
   0xFFFF then. Both are "zero" in one's complement, but a UDP checksum of 0 means "not computed".
4. Partial sums may be passed on unfolded: addition commutes with folding, and Python integers do not overflow.

NOTE: nothing here verifies a checksum. The guest may leave those of its frames to the device (checksum offload).
"""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview

ONES = 0xFFFF
"""The 16-bit word of all ones: minus zero in one's complement, and the mask of a word."""


_PIECE_BYTES = 4096  # that a long buffer is read by; even
_DIVIDED_BITS = 2048  # from which on halving costs more than dividing
_MASKS: dict[int, int] = {}
_MASKS_LIMIT = 1024  # sizes of halves whose masks are kept; a guest chooses the sizes


def _mask(bits: int) -> int:
    """Return a mask of so many ones, and keep it."""
    if len(_MASKS) >= _MASKS_LIMIT:
        _MASKS.clear()
    mask = _MASKS[bits] = (1 << bits) - 1
    return mask


def fold(total: int) -> int:
    """Fold the carries of `total`, a sum of 16-bit words that is not negative, into 16 bits (RFC 1071 section 2)."""
    while total > ONES:
        total = (total & ONES) + (total >> 16)
    return total


def ones_sum(data: Buffer, start: int = 0) -> int:
    """Return the folded one's complement sum of `data` and of the partial sum `start`, not complemented.

    :param data: bytes in network order; memoryviews must be of single bytes.
    :param start: sum so far, folded or not.
    :return: 0 to 0xFFFF; 0 only if all of `data` and `start` are zero.
    """
    size = len(data)
    if size <= _PIECE_BYTES:
        number = int.from_bytes(data, "big")
        bits = 8 * size
    else:
        if size & 1:
            # In the other pieces each byte has its place in a word already.
            start += data[-1] << 8
            size -= 1
            data = data[:size]
        number = sum(int.from_bytes(data[at : at + _PIECE_BYTES], "big") for at in range(0, size, _PIECE_BYTES))
        bits = 8 * _PIECE_BYTES
    while bits > _DIVIDED_BITS:
        bits = (bits >> 1) + 15 & ~15
        mask = _MASKS.get(bits)
        if mask is None:
            mask = _mask(bits)
        number = (number & mask) + (number >> bits)
    total = number % ONES
    if size & 1:
        # The missing byte belongs on the right. Shifting the remainder is cheaper than copying 64 KiB.
        total <<= 8
    total = (total + start) % ONES
    if total == 0 and (number or start):
        return ONES
    return total


def internet(data: Buffer, start: int = 0) -> int:
    """Return the checksum of an IPv4 header or ICMP message (RFC 791, RFC 792).

    :param data: its bytes, the checksum field zero.
    :param start: partial sum to include, for example that of constant header fields.
    """
    return ONES ^ ones_sum(data, start)


def pseudo_sum(source: bytes, destination: bytes, protocol: int) -> int:
    """Return the partial sum of a pseudo header without the length, which `transport` and `udp` add.

    The pseudo headers of IPv4 (RFC 9293, section 3.1) and IPv6 (RFC 8200, section 8.1) have the same sum.

    :param source: 4 or 16 bytes.
    :param destination: as long as `source`.
    :param protocol: IP protocol number, or the final next header.
    :return: unfolded.
    """
    return ones_sum(source) + ones_sum(destination) + protocol


def transport(pseudo: int, segment: Buffer) -> int:
    """Return the checksum of an upper-layer packet (TCP, ICMPv6), from header to end of payload.

    :param pseudo: sum of the pseudo header without length (`pseudo_sum`).
    :param segment: the packet, its checksum field zero. Its length in bytes is added; lengths beyond 65535 are
        correct, too, since the two halves of the 32-bit IPv6 length sum to the same remainder.
    """
    return ONES ^ ones_sum(segment, pseudo + len(segment))


def udp(pseudo: int, segment: Buffer) -> int:
    """Return the checksum of a UDP datagram: as `transport`, but never 0.

    On the wire 0 means "not computed", which IPv6 forbids, so it is sent as 0xFFFF
    (RFC 768, RFC 8200 section 8.1).
    """
    return transport(pseudo, segment) or ONES
