"""A guest that keeps no rule: whatever it sends, a connection holds no more than it promised, and ends."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.tcp.states import State
from tests.support.connections import ACK, FIN, RST, SYN, URG
from tests.support.hostile_segments import WHOLE, Step, play

NEAR = st.sampled_from([0, 0, 0, 1, -1, 100, -100, 65535, 65536, -65536, 1 << 31, (1 << 31) - 1]) | st.integers(
    -70000, 70000
)
STEPS = st.builds(
    Step,
    NEAR,
    NEAR,
    st.sampled_from([ACK, ACK, ACK, ACK | FIN, ACK | SYN, SYN, RST, RST | ACK, FIN, 0, ACK | URG])
    | st.integers(0, 255),
    st.sampled_from([0, 1, 1000, 65535]),
    st.sampled_from([0, 0, 1, 1000, 65000, WHOLE]),
    st.sampled_from([0, 1, 1000, 1 << 20]),
    st.sampled_from([0, 1, 3000, 1 << 20]),
    st.sampled_from([0.0, 0.0, 0.001, 1.0, 40.0]),
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([State.CONNECTING, State.SYN_SENT]), st.booleans(), st.lists(STEPS, max_size=50))
def test_a_connection_holds_no_more_than_it_promised(state: State, shaken: bool, steps: list[Step]) -> None:
    play(state, shaken, steps)
