"""One connection of TCP: segments, sockets and time in any order; what it promises, it holds, and it ends."""

from __future__ import annotations

from gpasst.tcp.states import State
from tests.support.fuzz.choices import Choices
from tests.support.hostile_segments import WHOLE, Step, play

FLAGS = (16, 16, 16, 17, 18, 2, 4, 20, 1, 0, 48, 255)
NEAR = (0, 0, 0, 1, -1, 100, -100, 65535, 65536, -65536, 1 << 31, (1 << 31) - 1)
SIZES = (0, 0, 1, 1000, 65000, WHOLE)
ROOMS = (0, 1, 1000, 1 << 20)
SENDS = (0, 1, 3000, 1 << 20)
SECONDS = (0.0, 0.0, 0.001, 1.0, 40.0)
STEPS = 60


def take(data: bytes) -> None:
    """Play the steps that the bytes say."""
    choices = Choices(data)
    state, shaken = choices.pick((State.CONNECTING, State.SYN_SENT)), choices.flag()
    steps: list[Step] = []
    while choices.more and len(steps) < STEPS:
        steps.append(
            Step(
                _near(choices),
                _near(choices),
                choices.pick(FLAGS),
                choices.pick((0, 1, 1000, 65535)),
                choices.pick(SIZES),
                choices.pick(ROOMS),
                choices.pick(SENDS),
                choices.pick(SECONDS),
            )
        )
    play(state, shaken, steps)


def _near(choices: Choices) -> int:
    """Return how far a number is from the one that is due."""
    return choices.number(1 << 18) - (1 << 17) if choices.flag() else choices.pick(NEAR)
