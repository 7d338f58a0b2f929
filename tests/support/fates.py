"""The fates of rules, as text that every interpreter has to print alike.

``python -m tests.support.fates`` prints what `tests/unit/impair/fates.txt` holds: for each rule the fates of its first
frames, and a digest of many more. Executed as a file it needs nothing but the package's pure modules, so that other
interpreters than the one that runs the tests can execute it, and older ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import blake2b

from gpasst.impair.engine import Engine
from gpasst.impair.facts import UDP, Flow, Run
from gpasst.impair.grammar import parse

SHOWN = 24  # frames of each rule
FRAMES = 4000
RULES = (
    "to guest udp dport 53: loss 30% delay 20ms±5ms seed 7",
    "to guest udp dport 53: loss 30% delay 20ms±5ms seed 8",
    "loss 0.1% seed 7",
    "loss burst seed 7",
    "loss burst p=5% r=50% good=1% bad=80% seed 1",
    "delay 20ms±5ms distribution normal seed 7",
    "delay 1s±300ms distribution pareto seed 7",
    "distribution 18ms,19ms,20ms,50ms seed 7",
    "delay 30ms reorder 25% seed 7",
    "reorder 25% gap 3 seed 7",
    "duplicate 10% corrupt 10% ecn mark 10% seed 7",
    "corrupt payload 20% seed 18446744073709551615",
    "nth every 3: loss 50% seed 7",
    "nth 2,5-9,1000-: delay 5ms±4ms duplicate 20% seed 0",
    "mtu 1000 seed 7",
    "unreachable host seed 7",
    "udp: rebind seed 7",
)


def fates(text: str, frames: int, batch: int) -> list[tuple[int, str]]:
    """Return number and fate of each frame that a rule matches.

    :param text: the rule, with its seed.
    :param frames: frames that are offered, of lengths that change.
    :param batch: frames that are offered at once.
    """
    rule = parse(text)
    engine = Engine("guest")
    assert rule.seed is not None
    active = engine.add(rule, rule.seed)
    flow = Flow(UDP, 4, bytes((192, 0, 2, 2)), bytes((192, 0, 2, 53)), 40000, 53)
    for first in range(0, frames, batch):
        count = min(batch, frames - first)
        # Only the last frame of a run may be shorter.
        engine.offer(Run(flow, first, 1400, 600 if not (first + count) % 5 else 0, count), first / frames)
    return active.log.fates


def lines() -> Iterator[str]:
    """Yield what the file holds."""
    for text in RULES:
        found = fates(text, FRAMES, 1)
        yield f"[{text}]"
        for n, fate in found[:SHOWN]:
            yield f"{n} {fate}"
        digest = blake2b(repr(found).encode(), digest_size=16).hexdigest()
        yield f"{len(found)} fates of {FRAMES} frames: {digest}"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print("\n".join(lines()))
