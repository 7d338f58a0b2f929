"""A guest and a remote end, with the proxy between them and a link that loses, repeats, reorders and delays."""

from __future__ import annotations

import errno
import itertools
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.linux import EPOLLERR, EPOLLHUP, EPOLLIN
from tests.support.tcp_guest import Guest
from tests.support.tcp_world import ORDINARY, Fate, Remote, World

STREAM = random.Random(1).randbytes(1 << 18)
STEPS = 40_000  # more events than any run needs
SECONDS = 300  # more than the slowest program needs, and than a flight is sent again without answer

FATES = st.lists(
    st.sampled_from(
        [ORDINARY, ORDINARY, ORDINARY, Fate(copies=0), Fate(copies=2), Fate(seconds=0.004), Fate(seconds=0.4)]
    ),
    max_size=40,
)
GUESTS = st.builds(
    Guest,
    data=st.integers(0, 60_000).map(lambda size: STREAM[:size]),
    capacity=st.sampled_from([200, 1500, 20_000, 300_000]),
    reads=st.sampled_from([100, 2000, 100_000]),
    mss=st.sampled_from([88, 536, 1460]),
    scale=st.sampled_from([None, 0, 3, 7]),
    start=st.sampled_from([0, 1 << 31, 0xFFFFF000]),
    waits=st.booleans(),
    probes_with_data=st.booleans(),
    starves=st.sampled_from([0, 0, 2, 7]),
    delays=st.booleans(),
)
REMOTES = st.builds(
    Remote,
    data=st.integers(0, 60_000).map(lambda size: STREAM[-size:] if size else b""),
    writes=st.sampled_from([100, 3000, 100_000]),
    reads=st.sampled_from([100, 3000, 100_000]),
    room=st.sampled_from([50, 1000, 5000, 100_000]),
    waits=st.booleans(),
)


def carried(guest: Guest, remote: Remote, **options: Any) -> World:
    """Let a connection run to its end, and check that both streams are whole."""
    if guest.waits and remote.waits:
        # Somebody has to end first.
        remote = Remote(remote.data, remote.writes, remote.reads, remote.room)
    world = World(guest, remote, **options)
    world.start()
    assert world.clock.run(lambda: world.over, STEPS), (world.connection.state, world.clock.now)
    assert world.clock.now < SECONDS
    # A reset answers the last FIN of a guest that has missed its acknowledgement: nothing waits for that.
    assert world.guest.arrived == remote.data
    assert bytes(world.host.taken) == guest.data
    assert world.host.shut
    assert not world.host.was_reset
    assert world.connection.budget.promised == 0
    # A gap keeps few pieces; what is ahead of it is sent again.
    assert set(world.connection.drops) <= {Drop.TCP_BUDGET}
    return world


@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize("peek_offset", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("guest_waits", "remote_waits"), [(False, False), (True, False), (False, True)])
def test_both_streams_are_carried(
    inbound: bool, stream: bool, peek_offset: bool, guest_waits: bool, remote_waits: bool
) -> None:
    guest = Guest(data=STREAM[:50_000], waits=guest_waits)
    world = carried(
        guest,
        Remote(STREAM[50_000:100_000], waits=remote_waits),
        inbound=inbound,
        peek_offset=peek_offset,
        stream=stream,
    )
    assert not world.guest.was_reset


@pytest.mark.parametrize("inbound", [False, True])
@pytest.mark.parametrize("carried_before", [0, 1, 2, 4, 9, 19, 39, 59])
@pytest.mark.parametrize("size", [0, 30_000])
def test_a_connection_ends_when_its_guest_is_gone(inbound: bool, carried_before: int, size: int) -> None:
    # One of the guest's segments opens a connection, or is the answer to it.
    down = itertools.chain(itertools.repeat(ORDINARY, carried_before + (not inbound)), itertools.repeat(Fate(copies=0)))
    world = World(Guest(data=STREAM[:size], waits=True), Remote(STREAM[:size], waits=True), down, inbound=inbound)
    world.start()
    assert world.clock.run(lambda: world.host.closed, STEPS)
    assert world.host.was_reset
    assert world.clock.now - world.connection.heard < 7440 + 1920 + 60
    assert len(world.table) == 0
    assert world.connection.budget.promised == 0


def test_a_guest_that_reads_nothing_keeps_its_connection() -> None:
    world = World(Guest(capacity=1500, reads=0), Remote(STREAM[:30_000]))
    world.start()
    assert world.clock.run(lambda: world.clock.now > 10_000, STEPS)
    assert len(world.table) == 1
    assert world.guest.arrived == STREAM[:1500]


def test_a_connect_that_is_refused_is_refused_to_the_guest() -> None:
    world = World(Guest(), Remote())
    world.connects = EPOLLERR | EPOLLHUP
    world.start()
    assert world.clock.run(lambda: world.over, STEPS)
    assert world.guest.was_reset
    assert world.clock.now < 0.01
    assert world.connection.budget.promised == 0


@pytest.mark.parametrize("inbound", [False, True])
def test_an_error_of_the_socket_resets_both_sides(inbound: bool) -> None:
    world = World(Guest(waits=True), Remote(waits=True), inbound=inbound)
    world.start()
    world.clock.run(lambda: world.clock.now > 0.05, STEPS)
    world.event(EPOLLIN | EPOLLERR | EPOLLHUP)
    assert world.clock.run(lambda: world.over, STEPS)
    assert world.guest.was_reset
    assert world.host.was_reset
    assert world.connection.budget.promised == 0


def test_data_that_the_socket_refuses_resets_both_sides() -> None:
    world = World(Guest(data=STREAM[:5000]), Remote(waits=True))
    world.host.failure = errno.ECONNRESET
    world.start()
    assert world.clock.run(lambda: world.over, STEPS)
    assert world.guest.was_reset
    assert world.host.was_reset
    assert world.counters.socket_errors == 1


def test_data_that_nobody_reads_any_more_counts_as_taken() -> None:
    world = World(Guest(data=STREAM[:50_000]), Remote(STREAM[:50_000]))
    world.host.failure = errno.EPIPE
    world.start()
    assert world.clock.run(lambda: world.over, STEPS)
    assert not world.guest.was_reset
    assert world.guest.arrived == STREAM[:50_000]
    assert not world.host.taken


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    guest=GUESTS,
    remote=REMOTES,
    down=FATES,
    up=FATES,
    inbound=st.booleans(),
    peek_offset=st.booleans(),
    limit=st.sampled_from([0, 1 << 20]),
    fills=st.sampled_from([0, 0, 1, 5]),
    stream=st.booleans(),
)
def test_bytes_arrive_whole_and_in_order_whatever_the_link_does(
    guest: Guest,
    remote: Remote,
    down: list[Fate],
    up: list[Fate],
    inbound: bool,
    peek_offset: bool,
    limit: int,
    fills: int,
    stream: bool,
) -> None:
    carried(
        guest,
        remote,
        down=down,
        up=up,
        inbound=inbound,
        peek_offset=peek_offset,
        limit=limit,
        fills=fills,
        stream=stream,
    )
