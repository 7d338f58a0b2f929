"""Initial sequence numbers (RFC 6528): a clock plus a keyed hash of the connection's addresses and ports.

The clock keeps the numbers of one connection after another apart, the hash keeps those of different connections
unpredictable.
"""

from __future__ import annotations

from _blake2 import blake2s  # the one of hashlib, which loads OpenSSL besides: 3 ms and 1 MB
from collections.abc import Callable

from gpasst.tcp.segment import SEQUENCE_MASK

TICK_NANOSECONDS = 32  # one turn of the numbers in 137 s, longer than a segment lives (RFC 6528, section 3: 4 us)
SECRET_BYTES = 16
_DIGEST_BYTES = 8
_WORD_BITS = 32

Hash = Callable[[bytes], int]


def keyed_hash(secret: bytes) -> Hash:
    """Return a hash of 64 bits, keyed with a secret of `SECRET_BYTES` that is drawn at the start."""

    def hashed(key: bytes) -> int:
        return int.from_bytes(blake2s(key, digest_size=_DIGEST_BYTES, key=secret).digest(), "big")

    return hashed


def initial_sequence(hashed: int, seconds: float) -> int:
    """Return the initial sequence number of a connection.

    :param hashed: the keyed hash of its key, 64 bits.
    :param seconds: monotonic time.
    """
    folded = (hashed >> _WORD_BITS) ^ (hashed & SEQUENCE_MASK)
    return (folded + int(seconds * 1_000_000_000) // TICK_NANOSECONDS) & SEQUENCE_MASK
