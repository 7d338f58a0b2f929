"""A rule of weather: which frames it is about, and what happens to them.

Quantities are whole numbers, so that a rule means the same in every Python: probabilities in parts of `CERTAIN`, times
in microseconds, rates in bits a second. `gpasst.impair.grammar` makes rules of text and of keywords, and checks them;
`gpasst.impair.parts` is the table of what can stand in one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gpasst.ranges import Range
from gpasst.records import dataclass, field

CERTAIN: Final = 1_000_000_000
"""The probability 1: probabilities are counted in billionths."""

SECOND: Final = 1_000_000
"""Microseconds in a second: times are counted in microseconds."""

Prefix = tuple[bytes, int]
"""An address of 4 or 16 bytes in network order, and the bits of it that count."""


@dataclass(frozen=True, slots=True)
class Burst:
    """Loss in bursts: a link that changes between a good state and a bad one (Gilbert 1960, Elliott 1963).

    It begins in the good state. Each frame is first lost with the probability of the state, and then the state may
    change, as in netem (Linux, net/sched/sch_netem.c: loss_gilb_ell).

    :ivar p: probability that a frame turns the good state into the bad one.
    :ivar r: probability that a frame turns the bad state into the good one; a burst is CERTAIN / r frames on average.
    :ivar good: probability of a loss in the good state.
    :ivar bad: probability of a loss in the bad state.
    """

    p: int
    r: int
    good: int
    bad: int


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits for a rate at most. One of the limits is set.

    :ivar frames: frames.
    :ivar size: bytes.
    :ivar time: microseconds that a frame waits.
    :ivar head: whether the oldest frame is dropped for a new one, instead of the new one.
    """

    frames: int = 0
    size: int = 0
    time: int = 0
    head: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. A part that is not in the rule has its default.

    :ivar to: ``"guest"`` or ``"host"``; empty for both directions, each of which counts for itself.
    :ivar protocols: names from `gpasst.impair.facts`; empty for TCP, UDP and ICMP.
    :ivar src: source addresses; empty for all.
    :ivar dst: destination addresses; empty for all.
    :ivar sport: ranges of source ports; empty for all.
    :ivar dport: ranges of destination ports; empty for all.
    :ivar size: ranges of bytes of the frame, from the Ethernet header on; empty for all.
    :ivar nth: ranges of numbers, from 1 on, among the frames that the rest of the match fits; empty for all.
    :ivar every: only each so many-th of these frames; 0 for all.
    :ivar flags: TCP flags that are set.
    :ivar no_flags: TCP flags that are not set.
    :ivar when: returns whether a parsed frame is meant; None for all.
    :ivar loss: probability that a frame is lost.
    :ivar burst: loss in bursts instead.
    :ivar delay: microseconds that each frame is held.
    :ivar jitter: microseconds by which that varies.
    :ivar distribution: how it varies, a name in `gpasst.impair.chance`; empty for uniformly.
    :ivar delays: delays that were measured, in microseconds, of which each frame has one.
    :ivar reorder: probability that a frame changes its place.
    :ivar in_order: whether no frame overtakes another, however its delay varies.
    :ivar gap: frames that such a frame lets pass before it; 0 for one that leaves without delay.
    :ivar duplicate: probability that a frame crosses twice.
    :ivar corrupt: probability that one bit of a frame is flipped.
    :ivar payload: whether such a frame has a right checksum.
    :ivar rate: bits a second; 0 for no limit.
    :ivar queue: what waits for the rate, None for `gpasst.impair.hold.ORDINARY`.
    :ivar mtu: bytes of IP packets that pass; 0 for no limit.
    :ivar icmp: whether the sender of a longer one has an ICMP error.
    :ivar mark: probability that an ECN-capable packet is marked as CE.
    :ivar reset: whether TCP connections are reset.
    :ivar unreachable: with what frames are answered: port, host, net or admin; empty for none.
    :ivar partition: whether all frames are lost, of every protocol.
    :ivar rebind: whether the flow's port on the host changes.
    :ivar goes_on: whether later rules are asked too.
    :ivar seed: what chance depends on, None where it is chosen later.
    """

    to: str = ""
    protocols: tuple[str, ...] = ()
    src: tuple[Prefix, ...] = ()
    dst: tuple[Prefix, ...] = ()
    sport: tuple[Range, ...] = ()
    dport: tuple[Range, ...] = ()
    size: tuple[Range, ...] = ()
    nth: tuple[Range, ...] = ()
    every: int = 0
    flags: int = 0
    no_flags: int = 0
    when: Callable[[Any], bool] | None = field(default=None, compare=False)
    loss: int = 0
    burst: Burst | None = None
    delay: int = 0
    jitter: int = 0
    distribution: str = ""
    delays: tuple[int, ...] = ()
    reorder: int = 0
    in_order: bool = False
    gap: int = 0
    duplicate: int = 0
    corrupt: int = 0
    payload: bool = False
    rate: int = 0
    queue: Queue | None = None
    mtu: int = 0
    icmp: bool = False
    mark: int = 0
    reset: bool = False
    unreachable: str = ""
    partition: bool = False
    rebind: bool = False
    goes_on: bool = False
    seed: int | None = None
