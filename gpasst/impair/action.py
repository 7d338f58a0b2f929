"""What an engine decides: the parts of a run that leave now, and what is done to them."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from gpasst.counters import Drop
from gpasst.impair.facts import Run
from gpasst.records import dataclass


class Answer(Enum):
    """What the sender of a lost frame is answered with. The value is how a fate shows it."""

    RESET = "reset"  # RST to both ends of the connection
    PORT = "unreachable port"
    HOST = "unreachable host"
    NET = "unreachable net"
    ADMIN = "unreachable admin"
    TOO_BIG = "too big"  # fragmentation needed (RFC 1191), packet too big (RFC 4443, section 3.2)


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done to each frame of an action.

    :ivar lost: why the frames are lost, in words for a capture's comment; empty for frames that pass.
    :ivar drop: the reason that lost frames are counted under, None for frames that pass.
    :ivar answer: what their sender is answered with, once for the action.
    :ivar mtu: bytes of an IP packet that `Answer.TOO_BIG` reports.
    :ivar corrupt: a number below 2 ** 32 that chooses the bit to flip; -1 for none. Such an action is one frame.
    :ivar payload: whether the checksum of a corrupt frame is made right again.
    :ivar mark: whether frames of ECN-capable packets are marked as CE (RFC 3168, section 5).
    :ivar rebind: whether the flow's socket on the host changes its port before the frames leave.
    """

    lost: str = ""
    drop: Drop | None = None
    answer: Answer | None = None
    mtu: int = 0
    corrupt: int = -1
    payload: bool = False
    mark: bool = False
    rebind: bool = False


PASS: Final = Treatment()
LOST: Final = Treatment("lost", Drop.IMPAIRED)


class Action(NamedTuple):
    """Part of a run and its treatment.

    :ivar run: the run that was offered.
    :ivar first: index of the part's first frame.
    :ivar stop: index behind its last; a part that is the whole run has `run.count`.
    :ivar treatment: what is done to its frames.
    """

    run: Run
    first: int
    stop: int
    treatment: Treatment
