"""The states of a connection, and the transitions between them as a table.

Theory of operation: the proxy is the guest's peer, so the states are those of RFC 9293, section 3.3.2, as seen from the
remote end. Two differ:

* `CONNECTING` comes before SYN-RECEIVED: the guest's SYN has come, and the host's socket is being connected. The guest
  gets no SYN+ACK before that has succeeded.
* There is no TIME-WAIT. The side that closes first keeps it: the guest's kernel, or the host's.

An event that has no entry for a state does not change it.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """State of a connection. The value is the name that users see."""

    # The table is looked up with each transition, and each member exists once; Enum hashes the name in Python.
    __hash__ = object.__hash__

    CONNECTING = "CONNECTING"
    """The guest's SYN came; the host's socket is being connected."""
    SYN_RECEIVED = "SYN-RECEIVED"
    """That is done, and the SYN+ACK sent."""
    SYN_SENT = "SYN-SENT"
    """A client of a forward was accepted, and a SYN sent to the guest."""
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    """The host's side has ended, and a FIN was sent to the guest."""
    FIN_WAIT_2 = "FIN-WAIT-2"
    """The guest has acknowledged it."""
    CLOSE_WAIT = "CLOSE-WAIT"
    """The guest's FIN came, and the socket takes no more."""
    CLOSING = "CLOSING"
    """Both sides have ended, and the guest has not acknowledged the FIN."""
    LAST_ACK = "LAST-ACK"
    """Likewise; the guest ended first."""
    CLOSED = "CLOSED"


class Event(Enum):
    """What moves a connection from one state to another."""

    __hash__ = object.__hash__

    CONNECTED = "the host's socket is connected"
    ACKNOWLEDGED = "the guest acknowledged the SYN"
    FIN = "a FIN was sent to the guest"
    FIN_ACKNOWLEDGED = "the guest acknowledged the FIN"
    GUEST_FIN = "all data before the guest's FIN is in the socket, which takes no more"
    ABORT = "a reset or an error of either side, or no answer"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CONNECTING, Event.CONNECTED): State.SYN_RECEIVED,
    (State.SYN_RECEIVED, Event.ACKNOWLEDGED): State.ESTABLISHED,
    (State.SYN_SENT, Event.ACKNOWLEDGED): State.ESTABLISHED,
    (State.ESTABLISHED, Event.FIN): State.FIN_WAIT_1,
    (State.ESTABLISHED, Event.GUEST_FIN): State.CLOSE_WAIT,
    (State.FIN_WAIT_1, Event.FIN_ACKNOWLEDGED): State.FIN_WAIT_2,
    (State.FIN_WAIT_1, Event.GUEST_FIN): State.CLOSING,
    (State.FIN_WAIT_2, Event.GUEST_FIN): State.CLOSED,
    (State.CLOSE_WAIT, Event.FIN): State.LAST_ACK,
    (State.CLOSING, Event.FIN_ACKNOWLEDGED): State.CLOSED,
    (State.LAST_ACK, Event.FIN_ACKNOWLEDGED): State.CLOSED,
    **{(state, Event.ABORT): State.CLOSED for state in State},
}

OPENING = frozenset((State.CONNECTING, State.SYN_RECEIVED, State.SYN_SENT))
"""States before the handshake is over."""
RECEIVING = frozenset((State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2))
"""States in which data of the guest may come."""


def after(state: State, event: Event) -> State:
    """Return the state that an event leads to."""
    return TRANSITIONS.get((state, event), state)
