"""Frames of many flows, read and carried together: the same datagrams leave as if each were carried by itself."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.features import ALL, Feature
from gpasst.flow.sender import Sender
from gpasst.formats import VIRTIO_NET_BLANK, VIRTIO_NET_CODEC
from gpasst.host.scatter import WORTH
from gpasst.host.send import sender_to
from gpasst.linux import IP_RECVTOS, IP_RECVTTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS
from gpasst.path import stream_reader, tap_reader
from gpasst.path.budget import SHALLOW
from gpasst.path.columns import IDLE_BATCHES, TURNS
from gpasst.testing import free_port
from tests.support.bench import NOW, server, udp_frame
from tests.support.bench import ringed as ring
from tests.support.families import FAMILIES
from tests.support.floods import LINKS, RINGS, Link, Refusing, by_number, introduce, marked, ports
from tests.support.taps import received, stream, tap

Sent = tuple[int, int, int, int, int, str]

FLOWS = 10
FEW = 4  # flows whose datagrams are worth a send for each
GSO_UDP_L4, NEEDS_CHECKSUM = 5, 1


@FAMILIES
@LINKS
@RINGS
def test_each_flow_keeps_its_order(family: int, link: Link, ringed: bool) -> None:
    with ring(ringed) as made, link(ALL, made) as case, server(family) as host:
        guests, to = ports(100), host.getsockname()[1]
        introduce(case, family, guests, to)
        received(host)
        sent = {bytes([flow]): [bytes([flow, turn]) + bytes(turn % 3) for turn in range(5)] for flow in range(100)}
        got: dict[bytes, list[bytes]] = {}
        for turn in range(5):
            case.give(*(udp_frame(family, port, to, sent[bytes([i])][turn]) for i, port in enumerate(guests)))
            assert case.move() == 100
            for data in received(host):
                got.setdefault(data[:1], []).append(data)
        assert got == sent
        down = case.counters.udp.down
        assert (down.datagrams, down.bytes) == (
            700,
            200 * 5 + sum(len(data) for flow in sent.values() for data in flow),
        )
        assert (case.counters.frames_down, case.counters.drops) == (700, {})


@LINKS
@pytest.mark.parametrize(("count", "calls"), [(50, 1), (WORTH, 1), (WORTH - 1, 0)])
def test_a_ring_sends_many_at_once(link: Link, count: int, calls: int) -> None:
    with ring(True) as made, link(ALL, made) as case, server(4) as host:
        guests, to = ports(count), host.getsockname()[1]
        introduce(case, 4, guests, to)
        case.give(*(udp_frame(4, port, to, b"?") for port in guests))
        assert made is not None
        with mock.patch.object(made, "enter", side_effect=made.enter) as enters:
            case.move()
        assert enters.call_count == calls


@LINKS
@RINGS
def test_datagrams_of_few_flows_leave_in_one_send_for_each(link: Link, ringed: bool) -> None:
    with ring(ringed) as made, link(ALL, made) as case, server(4) as host:
        guests, to = ports(FEW), host.getsockname()[1]
        introduce(case, 4, guests, to)
        received(host)
        sizes = [200] * 5 + [100] * 3 + [0, 100]
        sent = {bytes([i]): [bytes([i, turn]) + bytes(size) for turn, size in enumerate(sizes)] for i in range(FEW)}
        for turn in range(len(sizes)):
            case.give(*(udp_frame(4, port, to, sent[bytes([i])][turn]) for i, port in enumerate(guests)))
        case.move()
        assert by_number(received(host)) == sent
        assert case.counters.udp.down.superframes == 2 * FEW, "one of five, one of three"
        assert case.counters.udp.down.datagrams == FEW * (2 + len(sizes))


@FAMILIES
@LINKS
@RINGS
@pytest.mark.parametrize(("sizes", "reports"), [((0, 0, 0), 1), ((0, 1, 2), 3)], ids=["run", "alone"])
def test_what_the_kernel_refuses_is_reported_and_the_rest_is_sent(
    family: int, link: Link, ringed: bool, sizes: tuple[int, ...], reports: int
) -> None:
    """A run is reported once, as an error of the path that all its datagrams have met."""
    with ring(ringed) as made, link(ALL, made) as case, server(family) as host, closing(Refusing()) as refusing:
        guests, to = ports(FLOWS), host.getsockname()[1]
        introduce(case, family, guests, to)
        received(host)
        first, *others = case.bench.nat.tables[family]
        first.sender = Sender(cast(Any, refusing), sender_to(first).address)
        sent = {bytes([i]): [bytes([i, turn]) + bytes(size) for turn, size in enumerate(sizes)] for i in range(FLOWS)}
        for turn in range(3):
            case.give(*(udp_frame(family, port, to, sent[bytes([i])][turn]) for i, port in enumerate(guests)))
        case.move()
        del sent[bytes([guests.index(first.mapping.port)])]
        assert by_number(received(host)) == sent
        assert case.counters.drops == {Drop.SEND_FAILED: 3}
        assert case.counters.udp.down.datagrams == 2 * FLOWS + 3 * len(others)
        assert len(case.bench.link.frames) == reports


@LINKS
@RINGS
def test_an_earlier_error_of_a_socket_costs_no_datagram(link: Link, ringed: bool) -> None:
    with ring(ringed) as made, link(ALL, made) as case, server(4) as host:
        guests, to = ports(FLOWS), host.getsockname()[1]
        introduce(case, 4, guests, to)
        received(host)
        nobody = free_port("udp")
        case.give(*(udp_frame(4, port, nobody, b"refused by ICMP") for port in guests))
        case.move()
        for turn in range(3):
            case.give(*(udp_frame(4, port, to, bytes([i, turn])) for i, port in enumerate(guests)))
        case.move()
        assert by_number(received(host)) == {bytes([i]): [bytes([i, turn]) for turn in range(3)] for i in range(FLOWS)}
        assert case.counters.drops == {}


@FAMILIES
@LINKS
@RINGS
def test_sends_with_control_messages_stand_among_others(family: int, link: Link, ringed: bool) -> None:
    with ring(ringed) as made, link(ALL, made) as case, server(family) as host:
        guests, to = ports(FLOWS), host.getsockname()[1]
        introduce(case, family, guests, to)
        received(host)
        frames = [udp_frame(family, port, to, bytes([i])) for i, port in enumerate(guests)]
        case.give(*(marked(frame, 32 if i % 2 else 0, 64) for i, frame in enumerate(frames)))
        case.give(*(marked(frame, 32, 64) for frame in frames))
        case.move()
        assert by_number(received(host)) == {bytes([i]): 2 * [bytes([i])] for i in range(FLOWS)}


@FAMILIES
@LINKS
def test_peers_are_active(family: int, link: Link) -> None:
    with link(ALL, None) as case, server(family) as host:
        guests, to = ports(FLOWS), host.getsockname()[1]
        introduce(case, family, guests, to)
        table = case.bench.nat.tables[family]
        for now in (NOW + 1, NOW + 2):
            assert not any(expired.mappings for expired in table.scan(now, 10))
        assert {table.idle_seconds(peer) for peer in table} == {1}
        case.give(*(udp_frame(family, port, to, b"?") for port in guests))
        case.move()
        assert not any(expired.mappings for expired in table.scan(NOW + 3, 10))
        assert {table.idle_seconds(peer) for peer in table} == {0}


@RINGS
def test_a_single_flow_is_joined_again(ringed: bool) -> None:
    with ring(ringed) as made, tap(ALL, made) as case, server(4) as host:
        guests, to = ports(FLOWS), host.getsockname()[1]
        introduce(case, 4, guests, to)
        for _ in range(IDLE_BATCHES):
            case.give(udp_frame(4, guests[0], to, b"lone"))
            case.move()
        before = case.counters.udp.down.superframes
        with mock.patch.object(os, "readv", side_effect=os.readv) as reads:
            case.give(*(udp_frame(4, guests[0], to, bytes([turn])) for turn in range(SHALLOW)))
            case.move()
        assert case.counters.udp.down.superframes > before
        assert max(len(call.args[1]) for call in reads.call_args_list) == 2, "payloads are read apart from headers"


def spoilt(frame: bytes, kind: str) -> tuple[bytes, bytes]:
    """Return a frame as columns do not carry it, and its virtio-net header before it."""
    changed = bytearray(frame)
    four = frame[14] >> 4 == 4
    if kind == "padded":
        changed += bytes(6)
    elif kind == "length":
        changed[17 if four else 19] ^= 1
    elif kind == "UDP length":
        changed[39 if four else 59] ^= 1
    elif kind == "fragment" and four:
        changed[20] |= 0x20
    elif kind == "protocol":
        changed[23 if four else 20] = 6
    elif kind == "options" and four:
        changed[14] = 0x46
    elif kind == "ethertype":
        changed[13] ^= 1
    elif kind == "ARP":
        changed = bytearray(bytes(12) + b"\x08\x06" + bytes(28))
    elif kind == "short":
        del changed[30:]
    elif kind == "superframe":
        return VIRTIO_NET_CODEC.pack(flags=NEEDS_CHECKSUM, gso_type=GSO_UDP_L4, gso_size=40), frame
    return VIRTIO_NET_BLANK, bytes(changed)


KINDS = ["padded", "length", "UDP length", "fragment", "protocol", "options", "ethertype", "ARP", "short", "superframe"]
CHANGES = st.one_of(
    st.tuples(st.just(0), st.integers(0, FLOWS)),  # flow; the last one is new
    st.tuples(st.just(1), st.sampled_from([4, 6])),  # family
    st.tuples(st.just(2), st.sampled_from([0, 1, 1200])),  # bytes
    st.tuples(st.just(3), st.sampled_from([0x28, 0x03])),  # TOS
    st.tuples(st.just(4), st.sampled_from([63, 255])),  # TTL
    st.tuples(st.just(5), st.sampled_from(KINDS)),
    st.tuples(st.just(5), st.sampled_from(KINDS)),
)


@st.composite
def frames_of_many(draw: st.DrawFn) -> list[Sent]:
    """Frames of flows that take turns, all alike but for a few."""
    count, family = draw(st.integers(TURNS, 150)), draw(st.sampled_from([4, 6]))
    flows = draw(st.sampled_from([1, 3, FLOWS, FLOWS]))
    frames: list[list[Any]] = [[i % flows, family, 64, 0, 64, ""] for i in range(count)]
    for at, (field, value) in draw(st.lists(st.tuples(st.integers(0, count - 1), CHANGES), max_size=5)):
        frames[at][field] = value
    return [cast(Sent, tuple(frame)) for frame in frames]


def outcome(link: Link, frames: list[Sent], features: frozenset[Feature], ringed: bool) -> Any:
    """Let the guest send frames; return what each flow carried with which marks, and what was counted."""
    with (
        ring(ringed) as made,
        link(features, made) as case,
        server(4) as four,
        server(6) as six,
    ):
        hosts = {4: four, 6: six}
        for option in (IP_RECVTOS, IP_RECVTTL):
            four.setsockopt(IPPROTO_IP, option, 1)
        for option in (IPV6_RECVTCLASS, IPV6_RECVHOPLIMIT):
            six.setsockopt(IPPROTO_IPV6, option, 1)
        guests = ports(FLOWS + 1)
        for family, host in hosts.items():
            introduce(case, family, guests[:FLOWS], host.getsockname()[1])
            received(host)
        for number, (flow, family, size, tos, ttl, kind) in enumerate(frames):
            data = (bytes([flow, number]) + bytes(size))[: size + 2]
            frame = marked(udp_frame(family, guests[flow], hosts[family].getsockname()[1], data), tos, ttl)
            virtio, spoiled = spoilt(frame, kind if link is tap or kind != "superframe" else "")
            case.give(spoiled, virtio=virtio)
        case.move()
        while case.backlog.frames:
            case.backlog.step()
        flows: dict[tuple[int, int], list[Any]] = {}
        for family, host in hosts.items():
            host.setblocking(False)
            try:
                while True:
                    data, control, _, _ = host.recvmsg(2000, 200)
                    marks = sorted((kind, value[0]) for _, kind, value in control)
                    flows.setdefault((family, data[0]), []).append((data, marks))
            except BlockingIOError:
                pass
        down = case.counters.udp.down
        return (
            flows,
            case.counters.drops,
            case.counters.frames_down,
            down.datagrams,
            down.bytes,
            len(case.bench.link.frames),
        )


@settings(max_examples=100, deadline=None)
@given(
    link=st.sampled_from([tap, stream]),
    frames=frames_of_many(),
    features=st.sampled_from([ALL, ALL - {Feature.GSO}]),
    ringed=st.booleans(),
)
def test_columns_carry_what_rows_carry(
    link: Link, frames: list[Sent], features: frozenset[Feature], ringed: bool
) -> None:
    assert_alike(link, frames, features, ringed)


@FAMILIES
@LINKS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1, 3], ids=["all", "some"])
def test_columns_leave_to_rows_what_is_odd(family: int, link: Link, kind: str, share: int) -> None:
    frames = [(i % FLOWS, family, 64, 0, 64, "" if i % share else kind) for i in range(4 * FLOWS)]
    assert_alike(link, frames, ALL, True)


def assert_alike(link: Link, frames: list[Sent], features: frozenset[Feature], ringed: bool) -> None:
    """Check that frames carried together have the outcome of those carried one by one."""
    together = outcome(link, frames, features, ringed)
    with mock.patch.object(tap_reader, "TURNS", 1 << 30), mock.patch.object(stream_reader, "TURNS", 1 << 30):
        alone = outcome(link, frames, features, ringed)
    assert together == alone
