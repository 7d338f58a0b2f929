"""The table of peers: time is an argument, and what it tracks stays consistent."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.key import down_key, end_key
from gpasst.host.receive import sender_key
from gpasst.udp.mapping import Listener, Mapping, Peer, UdpSocket
from gpasst.udp.table import PEERS_EVICTED, PORTS_TRIED, Expired, Table

GUEST, REMOTE = bytes((192, 0, 2, 2)), bytes((198, 51, 100, 9))
TIMEOUT = 180


def mapping_of(table: Table, port: int) -> Mapping:
    """Give the table's mapping of a guest port, or a new one with a socket of its own."""
    mapping = table.mappings.get(end_key(GUEST, port))
    if mapping is None:
        mapping = Mapping(GUEST, port)
        udp_socket = UdpSocket(4, port)
        udp_socket.mapping = mapping
        mapping.sockets = [udp_socket]
    return mapping


def enter(table: Table, guest_port: int = 33000, port: int = 123) -> tuple[Peer, list[UdpSocket]]:
    mapping = mapping_of(table, guest_port)
    peer = Peer(mapping, mapping.sockets[0], (REMOTE, port), (REMOTE, port, 0), b"")
    return peer, table.add(peer, sender_key(4, REMOTE, port, 0))


def tos_ttl(table: Table, peer: Peer) -> None:
    table.activity[peer.byte] |= peer.bit


def scan(table: Table, now: int, timeout: int = TIMEOUT) -> Expired:
    """Scan to the end; return all that ended."""
    pieces = list(table.scan(now, timeout))
    return Expired(sum(piece.mappings for piece in pieces), [one for piece in pieces for one in piece.sockets])


def test_idle_time_runs_from_the_last_activity() -> None:
    table = Table(now=990)
    peer, _ = enter(table)
    udp_socket = peer.udp_socket
    tos_ttl(table, peer)
    assert scan(table, 1000).mappings == 0
    assert scan(table, 1180).mappings == 0
    assert table.idle_seconds(peer) == TIMEOUT
    expired = scan(table, 1181)
    assert (expired.mappings, expired.sockets) == (1, [udp_socket])
    assert len(table) == 0
    assert not udp_socket.keys
    assert not table.mappings


def test_a_new_peer_is_as_old_as_the_last_scan() -> None:
    table = Table(now=1000)
    enter(table)
    assert scan(table, 1180).mappings == 0
    assert scan(table, 1181).mappings == 1


def test_each_scan_that_sees_activity_starts_the_time_anew() -> None:
    table = Table(now=1000)
    peer, _ = enter(table)
    for now in range(1100, 2000, 100):
        tos_ttl(table, peer)
        assert scan(table, now).mappings == 0
        assert table.idle_seconds(peer) == 0
        assert not any(table.activity)
    assert scan(table, 2081).mappings == 1


def test_a_mapping_ends_with_its_last_peer() -> None:
    table = Table(now=1000)
    first, _ = enter(table, port=1)
    second, _ = enter(table, port=2)
    tos_ttl(table, second)
    scan(table, 1100)
    expired = scan(table, 1181)
    assert (expired.mappings, expired.sockets) == (0, [])
    assert list(table) == [second]
    assert first.down_key not in table.down
    assert scan(table, 1281).sockets == [second.udp_socket]


def test_a_listener_outlives_its_peers() -> None:
    table = Table(now=1000)
    listener = Listener(4, 5000, target=7000)
    mapping = Mapping(GUEST, 7000)
    mapping.sockets = [listener]
    table.add(Peer(mapping, listener, (REMOTE, 9), (REMOTE, 9, 0), b""), sender_key(4, REMOTE, 9, 0))
    expired = scan(table, 1181)
    assert (expired.mappings, expired.sockets) == (1, [])
    assert not listener.keys


def test_every_key_of_a_peer_goes_with_it() -> None:
    table = Table()
    peer, _ = enter(table)
    other = sender_key(4, REMOTE, 123, 0) + bytes((192, 0, 2, 3))
    peer.enter(other)
    assert peer.udp_socket.find(other) is peer
    table.remove(peer)
    assert not peer.udp_socket.keys


def test_the_longest_idle_makes_room() -> None:
    table = Table(now=1000, limit=3)
    peers = [enter(table, guest_port=port)[0] for port in (1, 2, 3)]
    tos_ttl(table, peers[0])
    scan(table, 1001)
    new, closing = enter(table, guest_port=4)
    assert closing == [peers[1].udp_socket]
    assert set(table) == {peers[0], peers[2], new}
    assert end_key(GUEST, 2) not in table.mappings


def test_room_for_a_peer_is_not_made_by_closing_its_own_socket() -> None:
    table = Table(now=1000, limit=1)
    first, _ = enter(table, port=1)
    second, closing = enter(table, port=2)
    assert closing == []
    assert second.udp_socket is first.udp_socket
    assert second.udp_socket.mapping is second.mapping
    assert second.mapping.sockets == [second.udp_socket]
    assert table.mappings == {end_key(GUEST, 33000): second.mapping}
    assert second.mapping.peers == 1


def test_the_sockets_of_the_longest_idle_mapping_go_first() -> None:
    table = Table(now=1000)
    peers = [enter(table, guest_port=port)[0] for port in (1, 2, 3)]
    again, _ = enter(table, guest_port=1, port=124)
    tos_ttl(table, peers[1])
    scan(table, 1001)
    assert table.evict() == [peers[2].udp_socket]
    assert set(table) == {peers[0], again, peers[1]}
    assert table.evict() == [peers[0].udp_socket], "with all of its peers"
    assert table.evict() == [peers[1].udp_socket]
    assert (len(table), table.mappings, table.evict()) == (0, {}, [])


def test_a_mapping_with_many_peers_goes_in_steps() -> None:
    table = Table(now=1000)
    peers = [enter(table, port=port)[0] for port in range(1, 2 * PEERS_EVICTED)]
    assert table.evict() == []
    assert len(table) == PEERS_EVICTED - 1
    assert table.evict() == [peers[0].udp_socket]
    assert len(table) == 0


def test_peers_of_a_listener_outlive_the_own_socket() -> None:
    table = Table(now=1000)
    own, _ = enter(table)
    mapping, listener = own.mapping, Listener(4, 5000, target=33000)
    other = Peer(mapping, listener, (REMOTE, 9), (REMOTE, 9, 0), b"")
    table.add(other, sender_key(4, REMOTE, 9, 0))
    assert table.evict() == [own.udp_socket]
    assert (list(table), mapping.sockets, own.udp_socket.mapping) == ([other], [], None)
    assert table.evict() == []


def test_slots_of_the_bitmap_are_used_again() -> None:
    table = Table()
    for _ in range(3):
        peers = [enter(table, port=port)[0] for port in range(1, 18)]
        assert len(table.activity) == 3
        assert len({(peer.byte, peer.bit) for peer in peers}) == 17
        for peer in peers:
            tos_ttl(table, peer)
            table.remove(peer)
        assert not any(table.activity)


def test_an_old_activity_bit_does_not_keep_a_new_peer() -> None:
    table = Table(now=1000)
    old, _ = enter(table, port=1)
    tos_ttl(table, old)
    table.remove(old)
    new, _ = enter(table, port=2)
    assert (new.byte, new.bit) == (old.byte, old.bit)
    scan(table, 1100)
    assert table.idle_seconds(new) == 100


def test_the_down_key_is_the_headers_own_bytes() -> None:
    assert down_key(GUEST, REMOTE, 0x1234, 0x5678) == GUEST + REMOTE + b"\x12\x34\x56\x78"


def test_free_ports_begin_above_the_ephemeral_ones_and_go_on_from_there() -> None:
    table = Table()
    assert table.free_port(GUEST, REMOTE, 33000, 123) == 61000
    enter(table, port=61001)
    assert table.free_port(GUEST, REMOTE, 33000, 123) == 61002
    assert table.free_port(GUEST, REMOTE, 33000, 61003) == 61004


def test_free_ports_go_around() -> None:
    table = Table()
    found = [table.free_port(GUEST, REMOTE, 33000, 123) for _ in range(61000, 65536)]
    assert found == list(range(61000, 65536))
    assert table.free_port(GUEST, REMOTE, 33000, 123) == 1024


class Counting(dict[bytes, Peer]):
    """A dictionary that counts how often it is asked."""

    asked = 0

    def __contains__(self, key: object) -> bool:
        self.asked += 1
        return super().__contains__(key)


def test_look_alikes_in_number_cost_no_more_than_one() -> None:
    table = Table()
    table.down = asked = Counting()
    for _ in range(5000):
        port = table.free_port(GUEST, REMOTE, 33000, 123)
        table.down[down_key(GUEST, REMOTE, 33000, port)] = None  # type: ignore[assignment]
    assert asked.asked == 5000


def test_the_search_for_a_free_port_ends_and_is_taken_up_again() -> None:
    table = Table()
    peer, _ = enter(table)
    free = 61000 + PORTS_TRIED
    table.down.update((down_key(GUEST, REMOTE, 1, port), peer) for port in range(1024, 65536) if port != free)
    with pytest.raises(PacketError) as caught:
        table.free_port(GUEST, REMOTE, 1, 123)
    assert caught.value.reason is Drop.PORTS_EXHAUSTED
    assert table.free_port(GUEST, REMOTE, 1, 123) == free


class TableMachine(RuleBasedStateMachine):
    """Random use of a small table, next to a model of when each peer was last active."""

    LIMIT = 6

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.table = Table(self.now, self.LIMIT)
        self.last: dict[Peer, int] = {}
        self.with_tos_ttl: set[Peer] = set()
        self.open: set[UdpSocket] = set()
        self.largest = 0

    def gone(self, peers: set[Peer], closing: list[UdpSocket]) -> None:
        for peer in peers:
            del self.last[peer]
            self.with_tos_ttl.discard(peer)
        assert len(closing) == len(set(closing))
        assert set(closing) <= self.open, "closed twice"
        self.open -= set(closing)

    @rule(guest_port=st.integers(1, 3), port=st.integers(1, 4))
    def add(self, guest_port: int, port: int) -> None:
        if down_key(GUEST, REMOTE, guest_port, port) in self.table.down:
            return
        before = set(self.table)
        oldest = max(map(self.table.idle_seconds, before), default=0)
        peer, closing = enter(self.table, guest_port, port)
        evicted = before - set(self.table)
        assert len(evicted) == (len(before) == self.LIMIT)
        assert all(self.now - self.last[one] == oldest for one in evicted)
        self.open.add(peer.udp_socket)
        self.last[peer] = self.now
        self.gone(evicted, closing)
        self.largest = max(self.largest, len(self.table))

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def tos_ttl(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(list(self.last)))
        tos_ttl(self.table, peer)
        self.with_tos_ttl.add(peer)

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(list(self.last)))
        self.gone({peer}, self.table.remove(peer))

    @precondition(lambda self: self.last)
    @rule(data=st.data(), tail=st.binary(min_size=4, max_size=4))
    def alias(self, data: st.DataObject, tail: bytes) -> None:
        peer = data.draw(st.sampled_from(list(self.last)))
        key = peer.up_keys[0] + tail
        if peer.udp_socket.find(key) is None:
            peer.enter(key)

    @rule(passed=st.integers(0, 200), timeout=st.sampled_from([1, 60, 180]))
    def scan(self, passed: int, timeout: int) -> None:
        self.now += passed
        for peer in self.with_tos_ttl:
            self.last[peer] = self.now
        self.with_tos_ttl.clear()
        before = set(self.table.mappings)
        expired = scan(self.table, self.now, timeout)
        assert expired.mappings == len(before) - len(self.table.mappings)
        self.gone({peer for peer, last in self.last.items() if self.now - last > timeout}, expired.sockets)

    @invariant()
    def holds_the_same_peers_everywhere(self) -> None:
        table = self.table
        assert set(table) == set(self.last)
        assert {key: peer.down_key for key, peer in table.down.items()} == {key: key for key in table.down}
        assert set(table.down.values()) == set(self.last)
        assert all(table.idle_seconds(peer) == self.now - last for peer, last in self.last.items())

    @invariant()
    def endpoints_and_peers_name_each_other(self) -> None:
        for peer in self.last:
            assert peer.udp_socket.mapping is peer.mapping
            assert all(peer.udp_socket.find(key) is peer for key in peer.up_keys)
        keys = sum(udp_socket.keys for udp_socket in self.open)
        assert keys == sum(len(peer.up_keys) for peer in self.last)

    @invariant()
    def mappings_are_those_of_the_peers(self) -> None:
        mappings = {peer.mapping for peer in self.last}
        assert set(self.table.mappings.values()) == mappings
        assert {udp_socket for mapping in mappings for udp_socket in mapping.sockets} == self.open
        for key, mapping in self.table.mappings.items():
            assert key == end_key(mapping.guest, mapping.port)
            assert mapping.peers == len([peer for peer in self.last if peer.mapping is mapping])

    @invariant()
    def bits_are_those_of_marked_peers(self) -> None:
        assert len({(peer.byte, peer.bit) for peer in self.last}) == len(self.last)
        expected = bytearray(len(self.table.activity))
        for peer in self.with_tos_ttl:
            expected[peer.byte] |= peer.bit
        assert self.table.activity == expected
        assert len(self.table.activity) == (self.largest + 7) // 8


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
