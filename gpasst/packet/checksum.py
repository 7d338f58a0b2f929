"""Internet checksums (RFC 1071), their pseudo headers and incremental updates (RFC 1624).

Theory of operation
===================

1. All sums are of big-endian 16-bit words; an odd last byte counts as the high half of a word (RFC 1071
   section 1).
2. 65536 is 1 modulo 65535, so a whole buffer read as one big integer leaves the same remainder as its folded
   words. Two divisions in C replace a loop over 32768 words in Python.
3. End-around carry never turns a positive sum into zero, whereas the remainder does; `ones_sum` mends that
   one value. 0xFFFF and 0 are both "zero" in one's complement, but UDP gives 0 a meaning of its own.
4. Partial sums may be passed on unfolded: addition commutes with folding, Python integers do not overflow.

NOTE: nothing here verifies. Frames from the guest may leave their checksums to offload and are not to be
doubted.
"""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview


def fold(total: int) -> int:
    """Fold the carries of `total`, a sum of 16-bit words, not negative, into 16 bits (RFC 1071 section 2)."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ones_sum(data: Buffer, start: int = 0) -> int:
    """Folded one's complement sum of `data` and of the partial sum `start`, not complemented.

    :param data: bytes in network order; memoryviews must be of single bytes.
    :param start: sum so far, folded or not.
    :return: 0 to 0xFFFF; 0 only if all of `data` and `start` are zero.
    """
    number = int.from_bytes(data, "big")
    total = number % 0xFFFF
    if len(data) & 1:
        # The missing byte is put on the right. Shifting the remainder is cheaper than copying 64 KiB.
        total <<= 8
    total = (total + start) % 0xFFFF
    if total == 0 and (number or start):
        return 0xFFFF
    return total


def internet(data: Buffer, start: int = 0) -> int:
    """Checksum of `data`, its checksum field zero, as in IPv4 headers and ICMP (RFC 791, RFC 792).

    :param start: partial sum to include, for example what a template already fixes.
    """
    return 0xFFFF ^ ones_sum(data, start)


def pseudo_sum4(source: bytes, destination: bytes, protocol: int) -> int:
    """Partial sum of the IPv4 pseudo header (RFC 768, RFC 9293 section 3.1): 4-byte addresses and protocol.

    :return: unfolded sum **without** the length, which `transport` and `udp` add.
    """
    return ones_sum(source) + ones_sum(destination) + protocol


def pseudo_sum6(source: bytes, destination: bytes, protocol: int) -> int:
    """Partial sum of the IPv6 pseudo header (RFC 8200 section 8.1): 16-byte addresses, final next header.

    :return: unfolded sum **without** the length, which `transport` and `udp` add.
    """
    return ones_sum(source) + ones_sum(destination) + protocol


def transport(pseudo: int, segment: Buffer) -> int:
    """Checksum of an upper-layer packet (TCP, ICMPv6), from header to end of payload.

    :param pseudo: sum of the pseudo header without length (`pseudo_sum4`, `pseudo_sum6`).
    :param segment: the packet, its checksum field zero. Its length in bytes is summed too; lengths beyond
        65535 come out right, since the two halves of the 32-bit IPv6 length sum to the same remainder.
    """
    return 0xFFFF ^ ones_sum(segment, pseudo + len(segment))


def udp(pseudo: int, segment: Buffer) -> int:
    """Checksum of a UDP datagram: as `transport`, but never 0.

    On the wire 0 says "not computed", which IPv6 forbids, so it is sent as 0xFFFF
    (RFC 768, RFC 8200 section 8.1).
    """
    return transport(pseudo, segment) or 0xFFFF


def update(checksum: int, old_word: int, new_word: int) -> int:
    """Checksum after one 16-bit word of the data changed (RFC 1624, equation 3).

    Equal to the checksum computed anew, unless the change leaves all data zero; no header is.
    """
    return 0xFFFF ^ fold((checksum ^ 0xFFFF) + (old_word ^ 0xFFFF) + new_word)
