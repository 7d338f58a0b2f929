"""TCP segments of the guest: header and the options of a SYN.

Sequence numbers are 32 bits and wrap around (RFC 9293, section 3.4), so only distances between them can be compared:
a number is ahead of another one if it is less than half the space in front of it.
"""

from __future__ import annotations

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.records import dataclass
from gpasst.wire import (
    TCP_CODEC,
    TCP_OPTION_END,
    TCP_OPTION_MSS,
    TCP_OPTION_NOP,
    TCP_OPTION_WINDOW_SCALE,
)

SEQUENCE_MASK = 0xFFFFFFFF
SEQUENCE_HALF = 1 << 31  # distances below it are ahead
TCP_BYTES = TCP_CODEC.size
DATA_OFFSET_UNIT = 4  # bytes (RFC 9293, section 3.1)
DEFAULT_MSS = 536  # bytes, where a SYN names none (RFC 9293, section 3.7.1)
MSS_MINIMUM = 88  # bytes; net/ipv4/tcp_ipv4.c takes no less either (TCP_MIN_MSS), or each byte would be a frame
SCALE_MAXIMUM = 14  # RFC 7323, section 2.3

_pick = TCP_CODEC.picker("sequence", "acknowledgement", "data_offset", "flags", "window").unpack_from
OFFSET_MASK = 0xF0  # of the byte that begins with the data offset
OFFSET_SHIFT = 2  # from the upper half of a byte to bytes: 4 to the right, times 4
_MSS_BYTES = 4
_SCALE_BYTES = 3
_OPTION_MINIMUM = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment.

    :ivar sequence: its sequence number.
    :ivar acknowledgement: its acknowledgement number.
    :ivar flags: its flags.
    :ivar window: the window field, not scaled.
    :ivar payload: its data.
    :ivar options: its options, raw.
    """

    sequence: int
    acknowledgement: int
    flags: int
    window: int
    payload: memoryview
    options: bytes = b""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a SYN offers.

    :ivar mss: the largest segment that its sender takes, in bytes of payload.
    :ivar scale: shift of the windows that its sender advertises; None if it scales none.
    """

    mss: int = DEFAULT_MSS
    scale: int | None = None


def parse(data: memoryview) -> Segment:
    """Parse the payload of an IP packet.

    :raises PacketError: `Drop.MALFORMED_TCP`, if the header is not whole.
    """
    if len(data) < TCP_BYTES:
        raise PacketError(Drop.MALFORMED_TCP)
    # A dictionary of names would cost more than everything else here.
    sequence, acknowledgement, offset, flags, window = _pick(data)
    start = (offset & OFFSET_MASK) >> OFFSET_SHIFT
    if not TCP_BYTES <= start <= len(data):
        raise PacketError(Drop.MALFORMED_TCP)
    return Segment(sequence, acknowledgement, flags, window, data[start:], bytes(data[TCP_BYTES:start]))


def parse_options(options: bytes) -> Offer:
    """Parse the options of a SYN; unknown ones are skipped, and an option that is cut off ends them.

    :param options: at most 40 bytes, which is all that a header has room for.
    """
    mss, scale = DEFAULT_MSS, None
    at = 0
    while at < len(options) and options[at] != TCP_OPTION_END:
        if options[at] == TCP_OPTION_NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < _OPTION_MINIMUM or at + length > len(options):
            break
        if options[at] == TCP_OPTION_MSS and length == _MSS_BYTES:
            mss = max(MSS_MINIMUM, int.from_bytes(options[at + 2 : at + 4], "big"))
        elif options[at] == TCP_OPTION_WINDOW_SCALE and length == _SCALE_BYTES:
            scale = min(options[at + 2], SCALE_MAXIMUM)
        at += length
    return Offer(mss, scale)
