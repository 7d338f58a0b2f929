"""What a proxy shows: flows of both kinds, and each reason for a drop in the log at most once in ten seconds."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gpasst.counters import Counters, Drop
from gpasst.flow.record import Flow
from gpasst.proxy.observe import DROP_LOG_SECONDS, DropLog, Splices, flows, statistics
from gpasst.tcp.connection import Connection
from gpasst.tcp.header import Header
from gpasst.tcp.listener import TcpListener
from gpasst.tcp.pairs import StreamPair
from gpasst.tcp.states import State
from gpasst.tcp.table import ConnectionTable
from gpasst.tcp.window import Budget
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, HOST_MAC, ip
from tests.support.nat import Host

SERVER = "198.51.100.9"
NO_PAIRS = Splices(None, ())


def test_a_peer_is_shown_from_both_sides_with_its_age() -> None:
    host = Host()
    peer = host.down(33000, SERVER, 53)
    assert flows(host.path, NO_PAIRS, (), 0.0) == (
        Flow("udp", (GUEST4, 33000), (SERVER, 53), (SERVER, 53), peer.udp_socket.port, 0, spliced=False),
    )
    for _ in host.path.scan(1007, 180):
        pass
    assert flows(host.path, NO_PAIRS, (), 0.0)[0].idle == 7


def held(guest: str, port: int, shown: str, remote: tuple[str, int], state: State, heard: float) -> Connection:
    key = ip(guest) + ip(shown) + port.to_bytes(2, "big") + (80).to_bytes(2, "big")
    header = Header(GUEST_MAC, HOST_MAC, key)
    return Connection(key, state, header, 0, Budget(), 1460, (ip(remote[0]), remote[1], 0), heard, Counters().drop)


def test_a_connection_is_shown_with_its_state() -> None:
    table = ConnectionTable()
    first = held(GUEST6, 40000, "2001:db8::1", ("2001:db8:9::9", 8080), State.ESTABLISHED, 997.0)
    table.add(first)
    table.add(held(GUEST4, 40001, SERVER, (SERVER, 80), State.SYN_RECEIVED, 1000.0))
    host, counters = Host(), Counters()
    assert flows(host.path, NO_PAIRS, table, 1000.0) == (
        Flow(
            "tcp",
            (GUEST6, 40000),
            ("2001:db8::1", 80),
            ("2001:db8:9::9", 8080),
            0,
            3,
            spliced=False,
            state="ESTABLISHED",
        ),
        Flow("tcp", (GUEST4, 40001), (SERVER, 80), (SERVER, 80), 0, 0, state="SYN-RECEIVED"),
    )
    counters.traffic["tcp"].up.datagrams = 5
    counters.tcp.down.bytes = 7
    found = statistics(counters, host.path, NO_PAIRS, table)
    assert (found.connections, found.segments_up, found.tcp_bytes_down) == (2, 5, 7)
    assert (found.datagrams_up, found.bytes_down, found.peers) == (0, 0, 0)


@pytest.mark.parametrize("inside", [False, True], ids=["to-namespace", "to-host"])
def test_a_splice_pair_is_shown_from_both_sides(inside: bool) -> None:
    nobody: Any = None
    client, local, remote = ((ip("127.0.0.1"), port) for port in (40000, 40001, 80))
    if not inside:
        local, remote = (ip(GUEST4), 40001), (ip(GUEST4), 80)
    listener = TcpListener(4, 8080, 80, b"", inside, nobody)
    pair = StreamPair(listener, nobody, client, ip("127.0.0.1"), nobody, local, remote, nobody, 997.0)
    host, counters = Host(), Counters()
    (flow,) = flows(host.path, Splices(None, [pair]), (), 1000.0)
    source = ("127.0.0.1", 40000)
    if inside:
        expected = Flow("tcp", source, ("127.0.0.1", 8080), ("127.0.0.1", 80), 40001, 3, True, "CONNECTING")
    else:
        expected = Flow("tcp", (GUEST4, 80), (GUEST4, 40001), source, 8080, 3, True, "SYN-SENT")
    assert flow == expected
    counters.tcp.spliced.bytes = 9
    found = statistics(counters, host.path, Splices(None, [pair]), ())
    assert (found.pairs, found.connections, found.tcp_bytes_spliced, found.bytes_spliced) == (1, 0, 9, 0)


def test_statistics_count_mappings_and_peers() -> None:
    host, counters = Host(), Counters()
    host.down(33000, SERVER, 53)
    host.down(33000, SERVER, 54)
    host.down(33001, SERVER, 53)
    counters.udp.down.datagrams = 3
    found = statistics(counters, host.path, NO_PAIRS, ())
    assert (found.mappings, found.peers, found.pairs, found.datagrams_down) == (2, 3, 0, 3)


def test_a_reason_is_logged_with_all_that_was_held_back(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters()
    log = DropLog(counters)
    counters.drop(Drop.MALFORMED_UDP, 2)
    log.write(1000)
    counters.drop(Drop.MALFORMED_UDP, 3)
    log.write(1000 + DROP_LOG_SECONDS - 1)
    assert [record.getMessage() for record in caplog.records] == [f"dropped 2: {Drop.MALFORMED_UDP.value}"]
    counters.drop(Drop.MALFORMED_UDP)
    log.write(1000 + DROP_LOG_SECONDS)
    log.write(1000 + 2 * DROP_LOG_SECONDS)
    assert [record.getMessage() for record in caplog.records[1:]] == [f"dropped 4: {Drop.MALFORMED_UDP.value}"]


def test_at_the_end_nothing_is_held_back(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters()
    log = DropLog(counters)
    for count in (1, 2):
        counters.drop(Drop.STREAM_FULL, count)
        log.write(1000 if count == 1 else None)
    assert [record.args for record in caplog.records] == [(1, Drop.STREAM_FULL.value), (2, Drop.STREAM_FULL.value)]


def test_what_guests_send_by_themselves_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    counters = Counters()
    counters.drop(Drop.ETHERTYPE)
    counters.drop(Drop.TAP_FULL)
    DropLog(counters).write(1000)
    levels = {record.args[1]: record.levelno for record in caplog.records if isinstance(record.args, tuple)}
    assert levels == {Drop.ETHERTYPE.value: logging.DEBUG, Drop.TAP_FULL.value: logging.WARNING}
