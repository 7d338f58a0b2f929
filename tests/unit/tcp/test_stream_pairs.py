"""Rules of TCP's splice pairs: who may have one, and how each is shown."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gpasst.counters import Drop
from gpasst.flow.sender import StreamSocket
from gpasst.tcp.listener import TcpListener
from gpasst.tcp.pairs import End, StreamPair, StreamPairs
from gpasst.tcp.states import State
from tests.support.addresses import GUEST4, GUEST6, ip
from tests.support.families import FAMILIES, LOOPBACK
from tests.support.replies import refused

NOBODY = cast(StreamSocket, None)
NO_WORKER: Any = None
GUEST = {4: GUEST4, 6: GUEST6}


def end(address: str, port: int) -> End:
    return ip(address), port


def paired(inside: bool = False, port: int = 40000, now: float = 0.0, family: int = 4) -> StreamPair:
    """Return the pair of a client with a port, in the namespace or on the host; its own socket has the next port."""
    address = LOOPBACK[family]
    listener = TcpListener(family, 8080, 80, b"", inside, NOBODY)  # type: ignore[arg-type]
    local, remote = end(address, port + 1), end(address, 80)
    return StreamPair(listener, NOBODY, end(address, port), ip(address), NOBODY, local, remote, NO_WORKER, now)


@FAMILIES
@pytest.mark.parametrize("inside", [False, True])
def test_loopback_may_have_a_pair(family: int, inside: bool) -> None:
    StreamPairs().check(inside, end(LOOPBACK[family], 40000), end(LOOPBACK[family], 8080))


@FAMILIES
@pytest.mark.parametrize("inside", [False, True])
def test_other_addresses_may_not(family: int, inside: bool) -> None:
    for client, addressed in ((GUEST, LOOPBACK), (LOOPBACK, GUEST), (GUEST, GUEST)):
        with refused(Drop.SPLICE_ADDRESS):
            StreamPairs().check(inside, end(client[family], 40000), end(addressed[family], 8080))


@pytest.mark.parametrize("inside", [False, True])
def test_a_pairs_own_socket_is_no_client(inside: bool) -> None:
    """It connects on the other side than its client."""
    pairs, pair = StreamPairs(), paired(inside)
    pairs.add(pair)
    with refused(Drop.HAIRPIN):
        pairs.check(not inside, pair.local, pair.remote)
    for side, client, addressed in (
        (inside, pair.local, pair.remote),
        (not inside, (pair.local[0], 40002), pair.remote),
        (not inside, (ip("127.0.0.2"), pair.local[1]), pair.remote),
        (not inside, pair.local, (pair.remote[0], 81)),
        (not inside, pair.local, (ip("127.0.0.2"), pair.remote[1])),
        (not inside, pair.remote, pair.local),
    ):
        pairs.check(side, client, addressed)
    pairs.remove(pair)
    pairs.check(not inside, pair.local, pair.remote)


def test_pairs_are_counted_and_listed_in_order() -> None:
    pairs, first, second = StreamPairs(), paired(), paired(port=40002)
    for pair in (first, second):
        pairs.add(pair)
    assert (len(pairs), list(pairs), first in pairs) == (2, [first, second], True)
    pairs.remove(first)
    assert (len(pairs), list(pairs), first in pairs) == (1, [second], False)


def test_the_longest_idle_pair() -> None:
    pairs = StreamPairs()
    assert pairs.longest_idle() is None
    made = [paired(port=40000 + 2 * number, now=float(number)) for number in range(3)]
    for pair in made:
        pairs.add(pair)
    assert pairs.longest_idle() is made[0]
    made[0].heard = 5.0
    assert pairs.longest_idle() is made[1]
    made[1].heard, made[2].heard = 6.0, 7.0
    assert pairs.longest_idle() is made[0]


@pytest.mark.parametrize("inside", [False, True])
def test_the_sides_of_a_pair(inside: bool) -> None:
    assert paired(inside).inside is not inside


@pytest.mark.parametrize("inside", [False, True], ids=["to-namespace", "to-host"])
def test_the_state_is_that_of_the_guests_side(inside: bool) -> None:
    """As a connection of the guest has it, and one of a forward."""
    pair = paired(inside)
    guest, host = pair.ways if inside else pair.ways[::-1]
    states = [pair.state]
    pair.connecting = False
    states.append(pair.state)
    host.finished = True
    states.append(pair.state)
    host.finished, guest.finished = False, True
    states.append(pair.state)
    first = State.CONNECTING if inside else State.SYN_SENT
    assert states == [first, State.ESTABLISHED, State.FIN_WAIT_2, State.CLOSE_WAIT]


def test_a_way_begins_with_nothing() -> None:
    way, _ = paired().ways
    assert (bytes(way.kept), way.pipe, way.piped, way.events) == (b"", None, 0, 0)
    assert not (way.due or way.blocked or way.ended or way.finished or way.bulk or way.thorough)
