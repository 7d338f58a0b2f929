"""Datagrams to many peers: which leave together, in which order, with which marks, and what becomes of the refused."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain

import pytest

from gpasst.counters import Drop
from gpasst.flow.sender import Sender
from gpasst.host.receive import RUN_BYTES
from gpasst.host.ring import ENTRIES
from gpasst.host.scatter import ROWS, WORTH, Rows, most
from gpasst.host.send import SEGMENTS_PER_SEND
from gpasst.linux import (
    IORING_OP_SEND,
    IORING_OP_SENDMSG,
    IP_RECVERR,
    IPV6_RECVERR,
)
from gpasst.testing import free_port
from gpasst.udp.header import DEFAULT_TOS_TTL
from tests.support.families import FAMILIES, FAMILY, LEVEL, LOOPBACK
from tests.support.rings import PATIENCE, available
from tests.support.scattering import Service, World, datagrams, in_turns, payload, shapes

SO_NO_CHECK = 11  # asm-generic/socket.h; such a socket sends no superframes
ERRORS = {4: IP_RECVERR, 6: IPV6_RECVERR}
needs_ring = pytest.mark.skipif(not available(), reason="needs io_uring (Linux 6.1, kernel.io_uring_disabled 0)")
RINGS = pytest.mark.parametrize("ringed", [pytest.param(True, marks=needs_ring), False], ids=["ring", "no ring"])
MARKED = 0x28 << 8 | 128  # TOS and TTL
PLAIN = DEFAULT_TOS_TTL
TURNS = pytest.mark.parametrize("turns", [1, 3], ids=["alone", "runs"])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@FAMILIES
@RINGS
def test_runs_of_more_flows_than_entries(stack: ExitStack, family: int, ringed: bool) -> None:
    world = World(stack, ringed)
    flows = world.flows(family, ENTRIES + 3)
    assert world.send(family, in_turns(flows, [8, 8, 8])) == []
    for flow in flows:
        sent = flow.arrived(3)
        assert (datagrams(sent), shapes(sent)) == ([payload(turn) for turn in range(3)], [(8, 3)])
    assert world.tallies() == (3 * len(flows), 24 * len(flows), len(flows))
    assert world.calls == ([[IORING_OP_SENDMSG] * ENTRIES, [IORING_OP_SENDMSG] * 3] if ringed else [])


@FAMILIES
@RINGS
@pytest.mark.parametrize("count", [WORTH, 16, ENTRIES])
def test_a_batch_may_have_as_many_datagrams_as_rows(stack: ExitStack, family: int, ringed: bool, count: int) -> None:
    world = World(stack, ringed)
    flows, each = world.flows(family, count), ROWS // count
    assert world.send(family, in_turns(flows, [2] * each)) == []
    for flow in flows:
        assert datagrams(flow.arrived(each)) == [payload(turn, 2) for turn in range(each)]
    assert world.tallies() == (ROWS, 2 * ROWS, count * -(-each // SEGMENTS_PER_SEND))


@FAMILIES
@RINGS
@pytest.mark.parametrize(
    ("count", "size", "number", "runs"),
    [
        (2, 2, 100, [64, 36]),
        (2, 2, 65, [64, 1]),
        *(
            (count, size, number, runs)
            for count in (2, WORTH)
            for size, number, runs in (
                (2, 64, [64]),
                (1400, 50, [46, 4]),
                (30_000, 3, [2, 1]),
                (0, 3, [1, 1, 1]),
            )
        ),
    ],
)
def test_long_runs_are_cut_in_order(
    stack: ExitStack, family: int, ringed: bool, count: int, size: int, number: int, runs: list[int]
) -> None:
    world = World(stack, ringed)
    flows = world.flows(family, count)
    assert world.send(family, in_turns(flows, [size] * number)) == []
    for flow in flows:
        sent = flow.arrived(number)
        assert datagrams(sent) == [payload(turn, size) for turn in range(number)]
        assert shapes(sent) == [(size if run > 1 else 0, run) for run in runs]
    superframes = sum(run > 1 for run in runs)
    assert world.tallies() == (count * number, count * number * size, count * superframes)
    assert world.counters.drops == {}
    assert len(world.calls) == (len(runs) if ringed and count == WORTH else 0)


def test_a_run_has_no_more_than_the_kernel_takes() -> None:
    assert most(0) == 1
    assert most(1) == most(RUN_BYTES[6] // SEGMENTS_PER_SEND) == SEGMENTS_PER_SEND
    assert most(RUN_BYTES[6] // SEGMENTS_PER_SEND + 1) == SEGMENTS_PER_SEND - 1
    assert most(RUN_BYTES[6]) == 1


@FAMILIES
@RINGS
def test_mixed_lengths_keep_their_order(stack: ExitStack, family: int, ringed: bool) -> None:
    world = World(stack, ringed)
    flows = world.flows(family, WORTH)
    sizes = [20] * 5 + [10] * 3 + [0, 10]
    assert world.send(family, in_turns(flows, sizes)) == []
    for flow in flows:
        sent = flow.arrived(len(sizes))
        assert datagrams(sent) == [payload(turn, size) for turn, size in enumerate(sizes)]
        assert shapes(sent) == [(20, 5), (10, 3), (0, 1), (0, 1)]
    assert world.tallies() == (len(sizes) * WORTH, sum(sizes) * WORTH, 2 * WORTH)


@FAMILIES
@RINGS
def test_flows_may_differ_in_length(stack: ExitStack, family: int, ringed: bool) -> None:
    """Each run of one call has a length of its own, and a number."""
    world = World(stack, ringed)
    flows = world.flows(family, 20)
    sent = [
        (flow, payload(turn, number + 1)) for turn in range(5) for number, flow in enumerate(flows) if turn <= number
    ]
    assert world.send(family, sent) == []
    for number, flow in enumerate(flows):
        count = min(number + 1, 5)
        found = flow.arrived(count)
        assert datagrams(found) == [payload(turn, number + 1) for turn in range(count)]
        assert shapes(found) == [(number + 1 if number else 0, count)]
    assert world.tallies() == (len(sent), sum(len(data) for _, data in sent), 19)
    assert len(world.calls) == (1 if ringed else 0)


@FAMILIES
@RINGS
@pytest.mark.parametrize(
    ("sizes", "calls"), [([8], [64, 8]), ([8, 9, 10], [64, 64, 64, 24]), ([8, 9, 8, 9], 4 * [64, 8])]
)
def test_what_makes_no_runs_leaves_datagram_by_datagram(
    stack: ExitStack, family: int, ringed: bool, sizes: list[int], calls: list[int]
) -> None:
    """Or in runs of one: but never with a later one before an earlier one."""
    world = World(stack, ringed)
    flows = world.flows(family, ENTRIES + WORTH)
    assert world.send(family, in_turns(flows, sizes)) == []
    for flow in flows:
        sent = flow.arrived(len(sizes))
        assert datagrams(sent) == [payload(turn, size) for turn, size in enumerate(sizes)]
        assert shapes(sent) == [(0, 1)] * len(sizes)
    assert world.tallies() == (len(sizes) * len(flows), sum(sizes) * len(flows), 0)
    assert [len(call) for call in world.calls] == (calls if ringed else [])
    if len(set(sizes)) == len(sizes):
        assert set(chain.from_iterable(world.calls)) <= {IORING_OP_SEND}


@needs_ring
@pytest.mark.parametrize(("count", "calls"), [(WORTH - 1, 0), (WORTH, 1), (ENTRIES, 1), (ENTRIES + 1, 2)])
def test_a_ring_is_used_from_some_runs_on(stack: ExitStack, count: int, calls: int) -> None:
    world = World(stack, True)
    flows = world.flows(4, count)
    assert world.send(4, in_turns(flows, [8, 8])) == []
    for flow in flows:
        assert shapes(flow.arrived(2)) == [(8, 2)]
    assert [len(call) for call in world.calls] == [min(count, ENTRIES), count - ENTRIES][:calls]


@FAMILIES
@RINGS
@pytest.mark.parametrize(
    "sizes", [[4] * 4, [4, 4, 6, 6, 4, 4], [4, 4, 4, 6, 6]], ids=["alike", "there and back", "longer"]
)
def test_marks_that_change_stay_with_their_datagrams(
    stack: ExitStack, family: int, ringed: bool, sizes: list[int]
) -> None:
    """At any place among the datagrams; only some flows change theirs."""
    for at in range(1, len(sizes)):
        world = World(stack, ringed)
        flows = world.flows(family, WORTH)
        rows = world.rows(in_turns(flows, sizes[:at]))
        for flow in flows[::2]:
            flow.peer.set_tos_ttl(MARKED)
        later = world.rows(in_turns(flows, sizes[at:], at))
        rows = Rows(
            rows.peers + later.peers,
            rows.senders + later.senders,
            rows.places + later.places,
            rows.lengths + later.lengths,
        )
        assert world.scatter.send(family, rows) == []
        expected = [payload(turn, size) for turn, size in enumerate(sizes)]
        for number, flow in enumerate(flows):
            sent = flow.arrived(len(sizes))
            assert datagrams(sent) == expected
            marks = [one.tos_ttl for one in sent for _ in one.datagrams]
            assert marks == [PLAIN] * at + [PLAIN if number % 2 else MARKED] * (len(sizes) - at)


@FAMILIES
@RINGS
@TURNS
def test_senders_may_need_control_messages(stack: ExitStack, family: int, ringed: bool, turns: int) -> None:
    """Marks, a source address, or both: then these are all that a row has room for."""
    world = World(stack, ringed)
    flows = world.flows(family, 4 * WORTH)
    source = "127.0.0.2" if family == 4 else "::1"
    for number, flow in enumerate(flows):
        if number % 2:
            flow.peer.set_tos_ttl(MARKED)
        if number % 4 > 1:
            flow.peer.local = socket.inet_pton(FAMILY[family], source)
    for _ in range(2):
        assert world.send(family, in_turns(flows, [8] * turns)) == []
        for number, flow in enumerate(flows):
            (sent,) = flow.arrived(turns)
            assert sent == (
                [payload(turn) for turn in range(turns)],
                8 if turns > 1 else 0,
                MARKED if number % 2 else PLAIN,
                source if number % 4 > 1 else LOOPBACK[family],
            )
    assert world.tallies() == (8 * WORTH * turns, 64 * WORTH * turns, 8 * WORTH if turns > 1 else 0)
    if turns == 1:
        # What needs nothing but an address costs the kernel less without a message.
        one = [[IORING_OP_SENDMSG] * 3 * WORTH, [IORING_OP_SEND] * WORTH]
    else:
        one = [[IORING_OP_SENDMSG] * 4 * WORTH]
    assert world.calls == (2 * one if ringed else [])


@RINGS
@TURNS
def test_what_was_sent_before_leaves_no_trace(stack: ExitStack, ringed: bool, turns: int) -> None:
    """A batch of one length may follow one of many, or one with control messages, and the other way round."""
    world = World(stack, ringed)
    flows = world.flows(4, WORTH)
    alike, longer = [8] * WORTH, [9] * WORTH
    unlike = [8, 9] * (WORTH // 2)
    for sizes, tos_ttl in (
        (alike, PLAIN),
        (alike, PLAIN),
        (unlike, PLAIN),
        (alike, PLAIN),
        (alike, MARKED),
        (alike, PLAIN),
        (longer, PLAIN),
        (longer, MARKED),
        (unlike, MARKED),
        (alike, PLAIN),
    ):
        for flow in flows:
            if flow.peer.tos_ttl != tos_ttl:
                flow.peer.set_tos_ttl(tos_ttl)
        sent = [(flow, payload(turn, size)) for turn in range(turns) for flow, size in zip(flows, sizes, strict=True)]
        assert world.send(4, sent) == []
        for flow, size in zip(flows, sizes, strict=True):
            (found,) = flow.arrived(turns)
            segment = size if turns > 1 else 0
            assert found == ([payload(turn, size) for turn in range(turns)], segment, tos_ttl, LOOPBACK[4])


@FAMILIES
@RINGS
@TURNS
@pytest.mark.parametrize("share", [1, 3], ids=["all", "some"])
def test_services_have_their_datagrams_one_by_one(
    stack: ExitStack, family: int, ringed: bool, turns: int, share: int
) -> None:
    world = World(stack, ringed)
    flows = [
        flow
        for number in range(share * WORTH)
        for flow in world.flows(family, 1, service=None if number % share else Service())
    ]
    assert world.send(family, in_turns(flows, [8] * turns)) == []
    for flow in flows:
        found = datagrams(flow.arrived(turns)) if flow.service is None else flow.service.taken
        assert found == [payload(turn) for turn in range(turns)]
    assert world.tallies()[:2] == (turns * len(flows), 8 * turns * len(flows))
    assert world.counters.drops == {}
    assert [len(call) for call in world.calls] == ([len(flows) - WORTH] if ringed and share > 1 else [])


@FAMILIES
@RINGS
@TURNS
@pytest.mark.parametrize("share", [1, 3], ids=["all", "some"])
def test_connected_sockets_stand_among_others(
    stack: ExitStack, family: int, ringed: bool, turns: int, share: int
) -> None:
    """They send to where they are connected, whatever their peer's address is."""
    world = World(stack, ringed)
    flows = [
        flow
        for number in range(share * WORTH)
        for flow in world.flows(family, 1, port=None if number % share else free_port("udp"))
    ]
    for flow in flows[::share]:
        flow.sock.connect(flow.receiver.getsockname())
        flow.peer.sender = Sender(flow.sock)
    assert world.send(family, in_turns(flows, [8] * turns)) == []
    for flow in flows:
        assert datagrams(flow.arrived(turns)) == [payload(turn) for turn in range(turns)]
    assert world.tallies()[:2] == (turns * len(flows), 8 * turns * len(flows))


@FAMILIES
@RINGS
@TURNS
def test_a_refused_one_costs_no_other(stack: ExitStack, family: int, ringed: bool, turns: int) -> None:
    """It is returned, once for a run, and counted; the kernel sends nothing to port 0. One needs control messages."""
    world = World(stack, ringed)
    bad = 2, WORTH + 3
    flows = [flow for number in range(2 * WORTH) for flow in world.flows(family, 1, port=0 if number in bad else None)]
    for flow in flows[WORTH:]:
        flow.peer.set_tos_ttl(MARKED)
    refused = world.send(family, in_turns(flows, [8] * turns))
    found = {(peer, number, bytes(data)) for peer, number, data in refused}
    assert found == {(flows[number].peer, errno.EINVAL, payload(0)) for number in bad}
    assert len(refused) == 2
    for number, flow in enumerate(flows):
        expected = [] if number in bad else [payload(turn) for turn in range(turns)]
        assert datagrams(flow.arrived(len(expected))) == expected
    good = 2 * WORTH - 2
    assert world.tallies() == (good * turns, good * turns * 8, good if turns > 1 else 0)
    assert world.counters.drops == {Drop.SEND_FAILED: 2 * turns}


@RINGS
def test_a_refused_superframe_is_sent_datagram_by_datagram(stack: ExitStack, ringed: bool) -> None:
    world = World(stack, ringed)
    flows = world.flows(4, WORTH)
    flows[3].sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    assert world.send(4, in_turns(flows, [8] * 3)) == []
    for number, flow in enumerate(flows):
        sent = flow.arrived(3)
        assert datagrams(sent) == [payload(turn) for turn in range(3)]
        assert shapes(sent) == ([(0, 1)] * 3 if number == 3 else [(8, 3)])
    assert world.tallies() == (3 * WORTH, 24 * WORTH, WORTH - 1)
    assert world.counters.drops == {}


@FAMILIES
@RINGS
@TURNS
def test_an_earlier_error_of_a_socket_costs_nothing(stack: ExitStack, family: int, ringed: bool, turns: int) -> None:
    world = World(stack, ringed)
    flows = world.flows(family, WORTH + 1)
    for flow in flows[::2]:
        flow.sock.setsockopt(LEVEL[family], ERRORS[family], 1)
        flow.sock.sendto(b"?", (LOOPBACK[family], free_port("udp")))
        poll = select.poll()
        poll.register(flow.sock, 0)
        assert poll.poll(1000 * PATIENCE) == [(flow.sock.fileno(), select.POLLERR)]
    assert world.send(family, in_turns(flows, [8] * turns)) == []
    for flow in flows:
        assert datagrams(flow.arrived(turns)) == [payload(turn) for turn in range(turns)]
    assert world.tallies()[:2] == (turns * len(flows), 8 * turns * len(flows))
    assert world.counters.drops == {}


@FAMILIES
@RINGS
@TURNS
def test_without_groups_there_are_no_superframes(stack: ExitStack, family: int, ringed: bool, turns: int) -> None:
    """Not even ones of one datagram."""
    world = World(stack, ringed, groups=False)
    flows = world.flows(family, 3 * WORTH)
    for flow in flows[::2]:
        flow.peer.set_tos_ttl(MARKED)
    assert world.send(family, in_turns(flows, [8] * turns)) == []
    alone = [(flow.peer, flow.sender, 8, [world.put(payload(turns))]) for flow in flows]
    assert world.scatter.send_runs(family, alone) == []
    assert world.scatter.send_runs(family, alone[1::2]) == []
    for number, flow in enumerate(flows):
        count = turns + 1 + number % 2
        sent = flow.arrived(count)
        assert datagrams(sent)[: turns + 1] == [payload(turn) for turn in range(turns + 1)]
        assert {(one.segment, one.tos_ttl) for one in sent} == {(0, PLAIN if number % 2 else MARKED)}
    if world.asked is not None:
        assert set(world.asked.segments) == {0}
    assert world.counters.udp.down.superframes == 0


@needs_ring
@FAMILIES
def test_new_peers_stand_among_those_that_were_sent_to(stack: ExitStack, family: int) -> None:
    world = World(stack, True)
    flows = world.flows(family, 3 * WORTH)
    for count in (WORTH, 2 * WORTH, 3 * WORTH, WORTH):
        for sizes in ([8], [8, 8]):
            assert world.send(family, in_turns(flows[:count], sizes)) == []
            for number, flow in enumerate(flows):
                expected = [payload(turn) for turn in range(len(sizes))] if number < count else []
                assert datagrams(flow.arrived(len(expected))) == expected
    assert len(world.calls) == 8
