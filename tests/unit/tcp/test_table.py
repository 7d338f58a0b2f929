"""The table of connections, and which of them gives way."""

from __future__ import annotations

from gpasst.flow.second_chance import LOOKS
from gpasst.tcp.connection import Connection
from gpasst.tcp.header import Header
from gpasst.tcp.segment import Offer
from gpasst.tcp.states import State
from gpasst.tcp.table import CONNECTING, CONNECTING_SECONDS, ConnectionTable
from gpasst.tcp.window import Budget
from tests.support.addresses import GUEST4, GUEST_MAC, HOST_MAC, SERVER4, ip


def held(port: int, heard: float = 0.0, established: bool = True) -> Connection:
    key = ip(GUEST4) + ip(SERVER4) + port.to_bytes(2, "big") + (80).to_bytes(2, "big")
    header, remote = Header(GUEST_MAC, HOST_MAC, key), (ip(SERVER4), 80, 0)
    made = Connection(key, State.ESTABLISHED, header, 0, Budget(), 1460, remote, heard, lambda reason: None)
    made.established = established
    return made


def connecting(port: int, now: float) -> Connection:
    made = held(port, now, established=False)
    made.state = State.CONNECTING
    return made


def filled(*connections: Connection, limit: int = 1000) -> ConnectionTable:
    table = ConnectionTable(limit)
    for connection in connections:
        table.add(connection)
    return table


def test_a_connection_is_found_by_its_key_until_it_is_removed() -> None:
    first, second = held(1), held(2)
    table = filled(first, second, limit=2)
    assert table.full
    assert list(table) == [first, second]
    assert table.by_key[first.key] is first
    table.remove(first)
    assert not table.full
    assert (len(table), first.key in table.by_key) == (1, False)


def test_an_empty_table_has_none_that_is_idle() -> None:
    assert filled().longest_idle() is None


def test_the_connection_without_segments_since_it_was_entered_is_longest_idle() -> None:
    connections = [held(port) for port in range(5)]
    table = filled(*connections)
    for connection in connections[:3]:
        connection.heard = 7.0
    assert table.longest_idle() is connections[3]
    table.remove(connections[3])
    assert table.longest_idle() is connections[4]


def test_where_all_were_active_the_first_gives_way_after_one_round() -> None:
    connections = [held(port) for port in range(5)]
    table = filled(*connections)
    for connection in connections:
        connection.heard = 7.0
    assert table.longest_idle() is connections[0]
    assert list(table) == connections


def test_few_connections_are_looked_at_in_one_call() -> None:
    connections = [held(port) for port in range(2 * LOOKS)]
    table = filled(*connections)
    for connection in connections:
        connection.heard = 7.0
    assert table.longest_idle() is connections[LOOKS]
    assert sum(connection.entered == 7.0 for connection in connections) == LOOKS


def test_ports_of_established_connections_once_each() -> None:
    table = filled(held(9), held(8, established=False), held(7))
    assert table.ports(5) == [9, 7]
    assert table.ports(1) == [9]
    assert table.ports(0) == []


def test_the_ends_of_a_connection() -> None:
    assert held(40000).ends == (ip(GUEST4), ip(SERVER4), 40000, 80)


def test_what_was_not_answered_for_longest_gives_way_when_there_are_many() -> None:
    connections = [connecting(port, 1.0) for port in range(CONNECTING)]
    table = filled(*connections[:-1], limit=2 * CONNECTING)
    late = 1.0 + CONNECTING_SECONDS
    assert table.unanswered(late) is None, "they are not many"
    table.add(connections[-1])
    assert table.unanswered(late - 0.1) is None, "they have not waited long"
    assert table.unanswered(late) is connections[0]
    table.remove(connections[0])
    assert table.unanswered(late) is None
    table.add(connecting(CONNECTING, late))
    assert table.unanswered(late) is connections[1]


def test_what_was_answered_does_not_give_way() -> None:
    connections = [connecting(port, 1.0) for port in range(CONNECTING + 1)]
    table = filled(*connections, limit=2 * CONNECTING)
    for connection in connections[:2]:
        connection.opened(0, Offer(), 1000)
        assert table.connected(connection)
    assert len(table) == CONNECTING + 1
    assert table.unanswered(1.0 + CONNECTING_SECONDS) is None
