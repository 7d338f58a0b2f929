"""Splice pairs: where the first datagram of a sender leads, and what ends it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.activity import Ages
from gpasst.flow.loopback import LoopbackTargets
from gpasst.flow.sender import Sender
from gpasst.host.receive import sender_key
from gpasst.portspec import parse, reverse
from gpasst.udp.mapping import Listener
from gpasst.udp.pairs import PAIRS_LIMIT, UNBOUND, Pair, Pairs, Route
from tests.support.addresses import GUEST4, GUEST6, GUEST_LINK_LOCAL, ip
from tests.support.networks import rules

SCOPE = 9  # of the tap in the namespace
TIMEOUT = 180
START = 1000
CLIENT = 40000
OTHER4, OTHER6 = "192.0.2.9", "2001:db8::9"
STUB = "127.0.0.53"  # where local resolvers like to be


def splice_rules(
    guest4: str | None = GUEST4,
    guest6: str | None = GUEST6,
    link_local: str | None = GUEST_LINK_LOCAL,
    keep: bool = False,
    shown_inside: Mapping[int, int] | None = None,
    shown_outside: Mapping[int, int] | None = None,
    limit: int = PAIRS_LIMIT,
) -> Pairs:
    """Give rules for a guest with these addresses."""
    addresses = {4: rules(4, address=guest4), 6: rules(6, link_local=link_local, address=guest6)}
    return Pairs(LoopbackTargets(addresses, keep, SCOPE), shown_inside or {}, shown_outside or {}, START, limit)


def listener(inside: bool, port: int = 8053, target: int = 53, family: int = 4, address: str = "") -> Listener:
    """A listener in the namespace or on the host."""
    target_address = ip(address) if address else b""
    return Listener(family, port, target=target, target_address=target_address, inside=inside, splices=True)


def route(pairs: Pairs, at: Listener, source: str, addressed: str, port: int = CLIENT) -> Route:
    return pairs.route(at, ip(source), port, ip(addressed))


def enter(
    pairs: Pairs, at: Listener, source: str = "127.0.0.1", port: int = CLIENT, local: tuple[str, int] | None = None
) -> tuple[Pair, list[Pair]]:
    """Set up a pair as the adapter does; its socket is bound to `local`, or as the route has it."""
    address, addressed = ip(source), ip("127.0.0.1" if at.family == 4 else "::1")
    chosen = pairs.route(at, address, port, addressed)
    bound = (ip(local[0]), local[1]) if local else (chosen.source or chosen.address, chosen.source_port)
    sock = socket.socket()
    sock.close()
    key = sender_key(at.family, address, port, 0) + addressed
    pair = Pair(at, key, (address, port, 0), addressed, chosen, sock, bound, Sender(sock), Sender(sock))
    return pair, pairs.add(pair)


def touch(pairs: Pairs, pair: Pair) -> None:
    pairs.ages.activity[pair.byte] |= pair.bit


# --- Where a pair leads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "addressed", "target", "scope"),
    [
        ({}, "127.0.0.1", GUEST4, 0),
        ({}, "127.0.0.53", GUEST4, 0),
        ({}, "::1", GUEST6, 0),
        ({"guest6": None}, "::1", GUEST_LINK_LOCAL, SCOPE),
        ({"guest6": None, "link_local": None}, "127.0.0.1", GUEST4, 0),
    ],
)
def test_from_the_host_a_pair_leads_to_the_guests_own_address(
    known: dict[str, Any], addressed: str, target: str, scope: int
) -> None:
    """What listens on the namespace's loopback alone is not exposed."""
    at = listener(inside=False, family=6 if ":" in addressed else 4)
    found = route(splice_rules(**known), at, addressed, addressed)
    assert found == Route(ip(target), 53, scope, UNBOUND, CLIENT)


@pytest.mark.parametrize(
    ("known", "addressed"),
    [({"guest4": None}, "127.0.0.1"), ({"guest6": None, "link_local": None}, "::1")],
)
def test_without_an_address_of_the_guest_there_is_nowhere_to_lead(known: dict[str, Any], addressed: str) -> None:
    at = listener(inside=False, family=6 if ":" in addressed else 4)
    with pytest.raises(PacketError) as caught:
        route(splice_rules(**known), at, addressed, addressed)
    assert caught.value.reason is Drop.NO_GUEST_ADDRESS


def test_what_the_guest_turns_out_to_use_is_the_target() -> None:
    addresses = {4: rules(4), 6: rules(6)}
    pairs = Pairs(LoopbackTargets(addresses, False, SCOPE), {}, {})
    addresses[4].learn(ip(OTHER4))
    assert route(pairs, listener(inside=False), "127.0.0.1", "127.0.0.1").address == ip(OTHER4)


@pytest.mark.parametrize("addressed", ["127.0.0.1", STUB, "127.255.255.254", "::1"])
@pytest.mark.parametrize(("inside", "keep"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("known", [True, False])
def test_loopback_addresses_are_kept(addressed: str, inside: bool, keep: bool, known: bool) -> None:
    """From the namespace always, from the host if asked for; then nothing of the guest need be known."""
    pairs = splice_rules(keep=keep) if known else splice_rules(None, None, None, keep=keep)
    source = "127.0.0.7" if "." in addressed else addressed
    found = route(pairs, listener(inside, family=6 if ":" in addressed else 4), source, addressed)
    assert found == Route(ip(addressed), 53, 0, ip(source), CLIENT)


@pytest.mark.parametrize("target", [OTHER4, STUB])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_the_rules_own_target_address_comes_before_all_others(inside: bool, keep: bool, target: str) -> None:
    found = route(splice_rules(None, keep=keep), listener(inside, address=target), "127.0.0.1", "127.0.0.1")
    assert found == Route(ip(target), 53, 0, ip("127.0.0.1") if target == STUB else UNBOUND, CLIENT)


@pytest.mark.parametrize("source", ["192.0.2.2", "198.51.100.9"])
def test_a_sender_beyond_loopback_is_not_bound_to_on_the_other_side(source: str) -> None:
    """The other side does not have its address, or has it and means itself."""
    found = route(splice_rules(), listener(inside=True), source, "127.0.0.1")
    assert found == Route(ip("127.0.0.1"), 53, 0, UNBOUND, CLIENT)


@pytest.mark.parametrize(
    ("addressed", "port", "reason"),
    [
        ("127.0.0.1", 0, Drop.SOURCE_PORT_ZERO),
        ("192.0.2.2", CLIENT, Drop.SPLICE_ADDRESS),
        ("224.0.0.251", CLIENT, Drop.SPLICE_ADDRESS),
        ("0.0.0.0", CLIENT, Drop.SPLICE_ADDRESS),
        ("2001:db8::2", CLIENT, Drop.SPLICE_ADDRESS),
        ("fe80::1", CLIENT, Drop.SPLICE_ADDRESS),
        ("::ffff:127.0.0.1", CLIENT, Drop.SPLICE_ADDRESS),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_dropped(inside: bool, addressed: str, port: int, reason: Drop) -> None:
    at = listener(inside, family=6 if ":" in addressed else 4)
    with pytest.raises(PacketError) as caught:
        route(splice_rules(), at, "::1" if ":" in addressed else "127.0.0.1", addressed, port)
    assert caught.value.reason is reason


# --- The port that a sender is shown under -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "port", "shown"),
    [
        (False, 53, 5300),  # the namespace knows the host's port 53 as 5300 (-U 5300:53)
        (False, 5300, 5300),
        (False, 8080, 8080),
        (True, 80, 8080),  # the host knows the namespace's port 80 as 8080 (-u 8080:80)
        (True, 8080, 8080),
        (True, 53, 53),
    ],
)
def test_a_forwarded_port_is_shown_under_the_forwards_number(inside: bool, port: int, shown: int) -> None:
    pairs = splice_rules(
        keep=True,
        shown_inside=reverse(parse("-U", ["5300:53"], "udp")),
        shown_outside=reverse(parse("-u", ["8080:80"], "udp")),
    )
    found = route(pairs, listener(inside, 7000, 7777), "127.0.0.1", "127.0.0.1", port)
    assert found.source_port == shown


@pytest.mark.parametrize("specification", ["5300:53,5400:53", "53,5300:53"])
def test_an_ambiguous_port_keeps_its_number(specification: str) -> None:
    """Two forwards lead to it, so neither number is its own."""
    pairs = splice_rules(shown_inside=reverse(parse("-U", [specification], "udp")))
    assert route(pairs, listener(False, 7000, 7777), "127.0.0.1", "127.0.0.1", 53).source_port == 53


@given(port=st.integers(1, 65535), target=st.integers(1, 65535), sender=st.integers(1, 65535))
def test_any_remap_is_turned_around_exactly(port: int, target: int, sender: int) -> None:
    """Up or down, the map holds one port and no other."""
    shown = reverse(parse("-u", [f"{port}:{target}"], "udp"))
    pairs = splice_rules(shown_outside=shown)
    expected = port if sender == target else sender
    # To a target that never is the shown port, which has a rule of its own.
    found = route(pairs, listener(True, 7000, expected % 65535 + 1), "127.0.0.1", "127.0.0.1", sender)
    assert found.source_port == expected


@pytest.mark.parametrize(
    ("inside", "keep", "source", "addressed", "target", "port"),
    [
        (True, False, "127.0.0.1", "127.0.0.1", "", 0),
        (True, False, "127.0.0.2", "127.0.0.1", "", 53),  # another address, so another end
        (False, True, STUB, STUB, "", 0),
        (False, True, "127.0.0.1", STUB, "", 53),
        (False, False, "127.0.0.1", "127.0.0.1", "", 0),  # to the guest's address, from one that the kernel chooses
        (False, False, "127.0.0.1", "127.0.0.1", STUB, 53),
        (True, False, "192.0.2.2", "127.0.0.1", "", 0),
    ],
)
def test_no_socket_is_bound_to_its_own_target(
    inside: bool, keep: bool, source: str, addressed: str, target: str, port: int
) -> None:
    """It would hear itself; any other port will do instead."""
    found = route(splice_rules(keep=keep), listener(inside, address=target), source, addressed, 53)
    assert found.source_port == port
    assert (found.source, found.source_port) != (found.address, found.port)


def test_nor_under_the_number_that_it_is_shown_under() -> None:
    pairs = splice_rules(shown_inside={53: 7777}, keep=True)
    assert route(pairs, listener(False, 7000, 7777), "127.0.0.1", "127.0.0.1", 53).source_port == 0


# --- What is tracked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_what_a_pairs_own_socket_sends_sets_up_no_other(inside: bool) -> None:
    pairs = splice_rules(keep=True)
    there, back = listener(inside, 5000, 5000), listener(not inside, 5000, 5000)
    pair, _ = enter(pairs, there)
    with pytest.raises(PacketError) as caught:
        route(pairs, back, "127.0.0.1", "127.0.0.1", CLIENT)
    assert caught.value.reason is Drop.HAIRPIN
    # The same end on the other side is somebody else's, and so is any other end on this side.
    assert route(pairs, there, "127.0.0.1", "127.0.0.1", CLIENT)
    assert route(pairs, back, "127.0.0.2", "127.0.0.1", CLIENT)
    assert route(pairs, back, "127.0.0.1", "127.0.0.1", CLIENT + 1)
    pairs.remove(pair)
    assert route(pairs, back, "127.0.0.1", "127.0.0.1", CLIENT)


def test_the_end_that_counts_is_the_one_the_socket_has() -> None:
    pairs = splice_rules(keep=True)
    enter(pairs, listener(inside=False), local=("127.0.0.1", 50123))
    back = listener(inside=True)
    assert route(pairs, back, "127.0.0.1", "127.0.0.1", CLIENT)
    with pytest.raises(PacketError):
        route(pairs, back, "127.0.0.1", "127.0.0.1", 50123)


def test_a_pair_is_found_by_its_senders_key() -> None:
    pairs = splice_rules()
    at = listener(inside=True)
    one, _ = enter(pairs, at, port=1)
    two, _ = enter(pairs, at, "127.0.0.2", port=1, local=("127.0.0.2", 1))
    assert set(pairs) == set(pairs.of(at).values()) == {one, two}
    assert pairs.of(at)[one.key] is one
    pairs.remove(one)
    assert list(pairs) == list(pairs.of(at).values()) == [two]


def scan(pairs: Pairs, now: int) -> list[Pair]:
    """Scan to the end; return all that ended."""
    return [pair for ended in pairs.scan(now, TIMEOUT) for pair in ended]


def test_a_pair_is_kept_until_the_timeout_and_no_longer() -> None:
    pairs = splice_rules()
    at = listener(inside=True)
    pair, _ = enter(pairs, at)
    assert scan(pairs, START + TIMEOUT) == []
    touch(pairs, pair)
    assert scan(pairs, START + TIMEOUT + 1) == []
    assert pairs.ages.idle_seconds(pair) == 0
    assert scan(pairs, START + 2 * TIMEOUT + 1) == []
    assert pairs.ages.idle_seconds(pair) == TIMEOUT
    assert scan(pairs, START + 2 * TIMEOUT + 2) == [pair]
    assert not pairs.of(at)
    assert len(pairs) == 0


def test_at_the_limit_the_longest_idle_goes_first() -> None:
    pairs = splice_rules(limit=3)
    at = listener(inside=True)
    first, second, third = (enter(pairs, at, port=port)[0] for port in (1, 2, 3))
    touch(pairs, first)
    scan(pairs, START + 1)
    fourth, ended = enter(pairs, at, port=4)
    assert ended == [second]
    assert second.key not in pairs.of(at)
    assert set(pairs) == {first, third, fourth}
    _, ended = enter(pairs, at, port=5)
    assert ended == [third]
    # The end of the one that went is free to be anybody's.
    assert route(pairs, listener(inside=False), "127.0.0.1", "127.0.0.1", 2)


class Tracking(RuleBasedStateMachine):
    """Pairs against a plain dictionary, most recently active last."""

    limit = 4

    def __init__(self) -> None:
        super().__init__()
        self.pairs = splice_rules(keep=True, limit=self.limit)
        self.listeners = {inside: listener(inside, 7000, 7777) for inside in (False, True)}
        self.now = START
        self.active: dict[Pair, int] = {}
        self.touched: set[Pair] = set()

    def own(self) -> set[tuple[bool, bytes, int]]:
        return {(pair.inside, *pair.local) for pair in self.active}

    @rule(inside=st.booleans(), last=st.integers(1, 3), port=st.integers(1, 3))
    def send(self, inside: bool, last: int, port: int) -> None:
        at, source = self.listeners[inside], f"127.0.0.{last}"
        key = sender_key(4, ip(source), port, 0) + ip("127.0.0.1")
        known = self.pairs.of(at).get(key)
        assert known in self.active or known is None
        if known is not None:
            touch(self.pairs, known)
            self.touched.add(known)
        elif (inside, ip(source), port) in self.own():
            with pytest.raises(PacketError) as caught:
                enter(self.pairs, at, source, port)
            assert caught.value.reason is Drop.HAIRPIN
        else:
            pair, ended = enter(self.pairs, at, source, port)
            expected = [next(iter(self.active))] if len(self.active) == self.limit else []
            assert ended == expected
            self.forget(ended)
            self.active[pair] = self.now

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(list(self.active)))
        self.pairs.remove(pair)
        self.forget([pair])

    @rule(seconds=st.sampled_from([0, 1, 90, TIMEOUT, TIMEOUT + 1]))
    def scan(self, seconds: int) -> None:
        self.now += seconds
        # Among those that one scan finds active the order is that of their bits.
        for pair in sorted(self.touched, key=lambda pair: (pair.byte, pair.bit)):
            del self.active[pair]
            self.active[pair] = self.now
        self.touched.clear()
        idle = [pair for pair, when in self.active.items() if self.now - when > TIMEOUT]
        assert scan(self.pairs, self.now) == idle
        self.forget(idle)

    def forget(self, ended: list[Pair]) -> None:
        for pair in ended:
            del self.active[pair]
            self.touched.discard(pair)

    @invariant()
    def nothing_is_left_over(self) -> None:
        assert list(self.pairs) == list(self.active)
        assert len(self.pairs) == len(self.active) <= self.limit
        found = [pair for at in self.listeners.values() for pair in self.pairs.of(at).values()]
        assert len(found) == len(self.active) and set(found) == set(self.active)
        assert all(self.pairs.of(pair.listener)[pair.key] is pair for pair in found)
        ages: Ages[Pair] = self.pairs.ages
        assert sum(byte.bit_count() for byte in ages.activity) == len(self.touched)
        assert len(ages.activity) <= 1


TestTracking = Tracking.TestCase
TestTracking.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
