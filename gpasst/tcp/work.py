"""Work: what a connection asks its caller to do, as a set of flags."""

from __future__ import annotations

from typing import Final

DISCARD: Final = 1 << 0
"""Discard from the socket's queue what the guest acknowledged."""
REWIND: Final = 1 << 1
"""Peek at the socket from the first byte of its queue on again."""
WRITE: Final = 1 << 2
"""Offer to the socket what is kept, and shut it for writing behind the guest's FIN."""
SYNCHRONISE: Final = 1 << 3
"""Send the SYN, or the SYN with an acknowledgement."""
SEND: Final = 1 << 4
"""Look for data in the socket, and send it."""
LOOK: Final = 1 << 14
"""Look for an answer of the socket, which an event would report as well: only worth a call where little else waits."""
CONFIRM: Final = 1 << 12
"""Send the acknowledgement that ends the handshake: some stacks drop data that comes with it."""
ACKNOWLEDGE: Final = 1 << 5
"""Send an acknowledgement, unless data has carried it."""
LATER: Final = 1 << 13
"""Send an acknowledgement after `gpasst.tcp.timers.DELAY_SECONDS`, unless another segment has carried it."""
PROBE: Final = 1 << 6
"""Send an empty segment with a sequence number that was acknowledged already, which the guest answers."""
KEEP_ALIVE: Final = 1 << 7
"""Let the host's kernel send keep-alives on the socket, as the guest does."""
REFUSE: Final = 1 << 8
"""Send the RST that answers the segment at hand (`Connection.refused`)."""
RESET: Final = 1 << 9
"""Send a RST to the guest."""
ABORT: Final = 1 << 10
"""Close the socket with a RST."""
CLOSE: Final = 1 << 11
"""Close the socket, and forget the connection."""
