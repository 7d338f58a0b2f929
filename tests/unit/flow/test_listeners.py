"""Which listeners the forward rules ask for: tables of rules, of what is bound, and of what follows."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst import config as config_module
from gpasst import portspec
from gpasst.config import Config, PortSide
from gpasst.flow import listeners
from gpasst.flow.listeners import (
    BindAddress,
    ListenerSpec,
    PortRules,
    automatic,
    explicit,
    lay_rules,
    target_bytes,
    unclaimed,
)
from gpasst.portspec import ForwardRule, parse
from tests.support.addresses import ip

BOTH = (4, 6)
EPHEMERAL = (32768, 60999)
GUEST4, GUEST6, LINK_LOCAL = "192.0.2.2", "2001:db8::2", "fe80::2"


class Sock(NamedTuple):
    """A bound socket, as the kernel lists it."""

    family: int
    address: bytes
    port: int
    only6: bool
    inode: int


def sock(address: str, port: int = 7000, only6: bool = False, inode: int = 1) -> Sock:
    packed = ip(address)
    return Sock(4 if len(packed) == 4 else 6, packed, port, only6, inode)


def host(address: str, port: int = 7000, interface: str = "") -> BindAddress:
    return BindAddress(False, ipaddress.ip_address(address).version, address, interface, port)


def namespace(address: str, port: int = 7000, interface: str = "") -> BindAddress:
    return BindAddress(True, ipaddress.ip_address(address).version, address, interface, port)


def laid(*specifications: str, inside: bool = False) -> PortRules:
    """Return the table of these specifications alone."""
    config = Config(udp_ns=specifications) if inside else Config(udp_ports=specifications)
    return lay_rules(config, EPHEMERAL, EPHEMERAL)


def asked(
    *specifications: str, inside: bool = False, families: tuple[int, ...] = BOTH, lo_only: bool = False
) -> list[tuple[BindAddress, int]]:
    """Return places and targets of the listeners that these specifications ask for."""
    rules = laid(*specifications, inside=inside).of(inside)
    return [(spec.bind, spec.target) for spec in explicit(rules, inside, families, lo_only)]


def followed(
    specification: str,
    *bound: Sock,
    inside: bool = False,
    families: tuple[int, ...] = BOTH,
    keep: bool = False,
    own: frozenset[int] = frozenset(),
    lo_only: bool = False,
) -> dict[BindAddress, int]:
    """Return places and targets of the listeners that follow sockets bound on the other side."""
    rules = laid(specification, inside=inside).automatic(inside)
    specs = automatic(rules, inside, families, bound, keep, own, lo_only)
    assert all(bind == spec.bind and spec.rule in rules for bind, spec in specs.items())
    return {bind: spec.target for bind, spec in specs.items()}


# --- Explicit rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specification", "places"),
    [
        ("5000", [host("0.0.0.0", 5000), host("::", 5000)]),
        ("*/5000", [host("0.0.0.0", 5000), host("::", 5000)]),
        ("0.0.0.0/5000", [host("0.0.0.0", 5000)]),
        ("::/5000", [host("::", 5000)]),
        ("127.0.0.1/5000", [host("127.0.0.1", 5000)]),
        (f"{GUEST4}/5000", [host(GUEST4, 5000)]),
        (f"[{GUEST6}]/5000", [host(GUEST6, 5000)]),
        ("%up0/5000", [host("0.0.0.0", 5000, "up0"), host("::", 5000, "up0")]),
        ("*%up0/5000", [host("0.0.0.0", 5000, "up0"), host("::", 5000, "up0")]),
        (f"{GUEST4}%up0/5000", [host(GUEST4, 5000, "up0")]),
        (f"5000:{GUEST4}/6000", [host("0.0.0.0", 5000)]),
        (f"5000:[{GUEST6}]/6000", [host("::", 5000)]),
    ],
)
def test_where_the_host_listens(specification: str, places: list[BindAddress]) -> None:
    assert [place for place, _ in asked(specification)] == places


@pytest.mark.parametrize(
    ("specification", "places"),
    [
        ("53", [namespace("0.0.0.0", 53, "lo"), namespace("::", 53, "lo")]),
        ("%lo/53", [namespace("0.0.0.0", 53, "lo"), namespace("::", 53, "lo")]),
        ("127.0.0.53/53", [namespace("127.0.0.53", 53)]),
        ("::1/53", [namespace("::1", 53)]),
        ("0.0.0.0/53", [namespace("0.0.0.0", 53)]),
        ("127.0.0.53%lo/53", [namespace("127.0.0.53", 53, "lo")]),
    ],
)
def test_where_the_namespace_listens(specification: str, places: list[BindAddress]) -> None:
    """On its loopback alone, unless an address is named: the tap's traffic is not spliced."""
    assert [place for place, _ in asked(specification, inside=True)] == places


def test_ranges_and_remaps_port_by_port() -> None:
    assert asked("5000-5002:7000-7002", families=(4,)) == [
        (host("0.0.0.0", 5000), 7000),
        (host("0.0.0.0", 5001), 7001),
        (host("0.0.0.0", 5002), 7002),
    ]


@pytest.mark.parametrize(("families", "addresses"), [((4,), ["0.0.0.0"]), ((6,), ["::"]), (BOTH, ["0.0.0.0", "::"])])
@pytest.mark.parametrize("inside", [False, True])
def test_families_that_are_not_in_use_want_nothing(
    families: tuple[int, ...], addresses: list[str], inside: bool
) -> None:
    assert [place.address for place, _ in asked("5000", inside=inside, families=families)] == addresses
    named = "::1" if families == (4,) else "127.0.0.1"
    assert len(asked(f"{named}/5000", inside=inside, families=families)) == (families == BOTH)


def test_without_a_tap_only_loopback_is_listened_on() -> None:
    assert [place for place, _ in asked("5000", lo_only=True)] == [host("0.0.0.0", 5000, "lo"), host("::", 5000, "lo")]
    assert [place for place, _ in asked("127.0.0.1/5000", lo_only=True)] == [host("127.0.0.1", 5000)]


def test_automatic_rules_ask_for_nothing_by_themselves() -> None:
    assert asked("auto") == asked("5000-5010,auto") == asked("auto", inside=True) == []
    assert asked("auto", "6000", families=(4,)) == [(host("0.0.0.0", 6000), 6000)]


def test_all_is_every_port_but_those_the_kernel_hands_out() -> None:
    first, last = EPHEMERAL
    assert [place.port for place, _ in asked("all", families=(4,))] == [*range(1, first), *range(last + 1, 65536)]


def test_one_listener_for_one_place() -> None:
    """Whatever is named, the last option wins."""
    wanted = asked("5000-5010", "5005:6000", "%up0/5015", f"{GUEST4}%up0/5020", f"{GUEST4}%up0/5020:6020")
    places = [place for place, _ in wanted]
    assert len(set(places)) == len(places) == 2 * 12 + 1
    assert dict(wanted)[host(GUEST4, 5020, "up0")] == 6020
    assert dict(wanted)[host("0.0.0.0", 5005)] == 6000


@given(st.data())
def test_a_remap_to_lower_ports_wants_exactly_its_ports(data: st.DataObject) -> None:
    """Nothing wraps, and nothing but the rule's ports is opened."""
    width = data.draw(st.integers(1, 50))
    target = data.draw(st.integers(1, 65535 - width))
    first = data.draw(st.integers(target + 1, 65536 - width))
    specification = f"{first}-{first + width - 1}:{target}-{target + width - 1}"
    expected = {host("0.0.0.0", first + i): target + i for i in range(width)}
    assert dict(asked(specification, families=(4,))) == expected
    # The same, followed: of all ports that may be bound there, exactly those lead back to a listener.
    bound = [sock("0.0.0.0", port) for port in range(max(1, target - 5), min(65535, target + width + 5))]
    assert followed(f"{specification},auto", *bound, families=(4,)) == expected


@pytest.mark.parametrize(
    ("place", "everywhere", "loopback"),
    [
        (host("0.0.0.0"), True, True),
        (host("::"), True, True),
        (host("0.0.0.0", interface="lo"), False, True),
        (host("::", interface="lo"), False, True),
        (host("0.0.0.0", interface="up0"), False, False),
        (host("127.0.0.1"), False, True),
        (host("127.0.0.53"), False, True),
        (host("::1"), False, True),
        (host("127.0.0.1", interface="lo"), False, True),
        (host("127.0.0.1", interface="up0"), False, False),
        (host(GUEST4), False, False),
        (host(GUEST6), False, False),
        (host(LINK_LOCAL, interface="up0"), False, False),
    ],
)
def test_which_listeners_get_loopback_traffic(place: BindAddress, everywhere: bool, loopback: bool) -> None:
    """None but those on loopback addresses, and those on every address."""
    assert (place.everywhere, place.loopback) == (everywhere, loopback)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (host("0.0.0.0", 5000), "port 5000 on 0.0.0.0"),
        (host("::", 5000, "up0"), "port 5000 on ::%up0"),
        (namespace("127.0.0.53", 53), "port 53 on 127.0.0.53 in the namespace"),
        (namespace("0.0.0.0", 53, "lo"), "port 53 on 0.0.0.0%lo in the namespace"),
    ],
)
def test_a_place_in_words(place: BindAddress, text: str) -> None:
    assert str(place) == text


@pytest.mark.parametrize(
    ("specification", "packed"), [("5000", b""), (f"5000:{GUEST4}/1", ip(GUEST4)), (f"5000:[{GUEST6}]/1", ip(GUEST6))]
)
def test_target_addresses_as_bytes(specification: str, packed: bytes) -> None:
    assert target_bytes(laid(specification).of(inside=False)[0], 6 if len(packed) == 16 else 4) == packed


def test_a_rule_that_leads_to_a_host_has_an_address_of_it_in_each_family_that_it_has() -> None:
    rule = replace(laid("5000").of(inside=False)[0], host=(GUEST6, GUEST4))
    assert sorted(rule.families) == [4, 6]
    assert [target_bytes(rule, family) for family in (4, 6)] == [ip(GUEST4), ip(GUEST6)]
    assert replace(rule, host=(GUEST6,)).families == (6,)
    named = replace(rule, target_address="192.0.2.77")
    assert named.families == (4,)
    assert target_bytes(named, 4) == ip("192.0.2.77")


# --- Automatic rules: the host follows what is bound in the namespace ----------------------------------------------


@pytest.mark.parametrize(
    ("bound", "places"),
    [
        (sock("0.0.0.0"), [host("0.0.0.0")]),
        (sock("::"), [host("0.0.0.0"), host("::")]),
        (sock("::", only6=True), [host("::")]),
        (sock("::ffff:0.0.0.0"), [host("0.0.0.0")]),
        (sock(GUEST4), [host("0.0.0.0")]),
        (sock(f"::ffff:{GUEST4}"), [host("0.0.0.0")]),
        (sock(GUEST6), [host("::")]),
        (sock(LINK_LOCAL), [host("::")]),
        (sock("127.0.0.1"), []),
        (sock("127.0.0.53"), []),
        (sock("::1"), []),
        (sock("::ffff:127.0.0.1"), []),
        (sock("224.0.0.251"), []),
        (sock("ff02::fb"), []),
        (sock("::ffff:224.0.0.251"), []),
    ],
)
@pytest.mark.parametrize("family", [4, 6, None])
def test_what_the_host_follows(bound: Sock, places: list[BindAddress], family: int | None) -> None:
    families = BOTH if family is None else (family,)
    assert followed("auto", bound, families=families) == {
        place: bound.port for place in places if place.family in families
    }


@pytest.mark.parametrize(
    ("bound", "place"),
    [
        (sock("127.0.0.1"), host("127.0.0.1")),
        (sock("127.0.0.53"), host("127.0.0.53")),
        (sock("::1"), host("::1")),
        (sock("::ffff:127.0.0.1"), host("127.0.0.1")),
        (sock("0.0.0.0"), host("0.0.0.0")),
    ],
)
def test_where_loopback_is_kept_it_is_followed_address_by_address(bound: Sock, place: BindAddress) -> None:
    assert followed("auto", bound, keep=True) == {place: bound.port}


def test_without_a_tap_the_host_follows_on_loopback() -> None:
    found = followed("auto", sock("0.0.0.0"), sock("127.0.0.1", 7001), families=(4,), keep=True, lo_only=True)
    assert found == {host("0.0.0.0", interface="lo"): 7000, host("127.0.0.1", 7001): 7001}


# --- Automatic rules: the namespace follows what is bound on the host ----------------------------------------------


@pytest.mark.parametrize(
    ("bound", "places"),
    [
        (sock("0.0.0.0"), [namespace("0.0.0.0", interface="lo")]),
        (sock("::"), [namespace("0.0.0.0", interface="lo"), namespace("::", interface="lo")]),
        (sock("::", only6=True), [namespace("::", interface="lo")]),
        (sock("127.0.0.1"), [namespace("127.0.0.1")]),
        (sock("127.0.0.53"), [namespace("127.0.0.53")]),
        (sock("::1"), [namespace("::1")]),
        (sock("::ffff:127.0.0.1"), [namespace("127.0.0.1")]),
        (sock(GUEST4), []),
        (sock(GUEST6), []),
        (sock(LINK_LOCAL), []),
        (sock("224.0.0.251"), []),
        (sock("ff02::fb"), []),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_what_the_namespace_follows(bound: Sock, places: list[BindAddress], keep: bool) -> None:
    """Loopback services address by address; what has an address of its own is reached through the tap."""
    assert followed("auto", bound, inside=True, keep=keep) == dict.fromkeys(places, bound.port)


@pytest.mark.parametrize(
    ("place", "claim", "taken"),
    [
        ("0.0.0.0", sock("0.0.0.0", 53), True),
        ("0.0.0.0", sock(GUEST4, 53), True),
        ("0.0.0.0", sock("::", 53), True),
        ("0.0.0.0", sock("::", 53, only6=True), False),
        ("0.0.0.0", sock("0.0.0.0", 54), False),
        ("0.0.0.0", sock("0.0.0.0", 53, inode=7), False),
        ("127.0.0.53", sock("0.0.0.0", 53), True),
        ("127.0.0.53", sock("127.0.0.53", 53), True),
        ("127.0.0.53", sock("127.0.0.1", 53), False),
    ],
)
def test_what_a_program_in_the_namespace_has_bound_is_its_own(place: str, claim: Sock, taken: bool) -> None:
    rules = laid("auto", inside=True).automatic(True)
    specs = automatic(rules, True, (4,), [sock(place, 53)], False, ())
    assert len(specs) == 1
    assert unclaimed(specs, [claim], {7}) == ({} if taken else specs)


# --- Automatic rules: both sides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_the_proxys_own_sockets_are_not_followed(inside: bool) -> None:
    """Or each direction would follow the listeners of the other for ever."""
    bound = [sock("0.0.0.0", 7000 + i, inode=i) for i in range(4)]
    found = followed("auto", *bound, inside=inside, families=(4,), own=frozenset({1, 3}))
    assert [place.port for place in found] == [7000, 7002]


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ("auto", {6999: 6999, 7000: 7000, 7005: 7005, 7010: 7010, 7011: 7011}),
        ("7000-7010,auto", {7000: 7000, 7005: 7005, 7010: 7010}),
        ("~7000-7005,auto", {6999: 6999, 7010: 7010, 7011: 7011}),
        ("7000-7010,~7005,auto", {7000: 7000, 7010: 7010}),
        ("8000-8010:7000-7010,auto", {8000: 7000, 8005: 7005, 8010: 7010}),
        ("7000,8001-8010:7001-7010,auto", {7000: 7000, 8005: 7005, 8010: 7010}),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_the_ports_of_the_list_are_followed_and_no_others(
    specification: str, expected: dict[int, int], inside: bool
) -> None:
    bound = [sock("0.0.0.0", port) for port in (6999, 7000, 7005, 7010, 7011)]
    found = followed(specification, *bound, inside=inside)
    assert {place.port: target for place, target in found.items()} == expected


@pytest.mark.parametrize(
    ("specification", "places"),
    [
        (f"{GUEST4}/auto", [host(GUEST4)]),
        (f"{GUEST6}/auto", [host(GUEST6)]),
        ("%up0/auto", [host("0.0.0.0", interface="up0"), host("::", interface="up0")]),
        (f"{GUEST4}%up0/auto", [host(GUEST4, interface="up0")]),
    ],
)
def test_a_rule_for_one_place_listens_there_only(specification: str, places: list[BindAddress]) -> None:
    assert list(followed(specification, sock("::"))) == places


@pytest.mark.parametrize("specification", ["%up0/auto", f"{GUEST4}/auto", "127.0.0.5/auto"])
def test_a_rule_for_one_place_does_not_follow_what_only_another_leads_to(specification: str) -> None:
    """Loopback addresses are kept, so 127.0.0.1 is reached from 127.0.0.1, where this rule does not listen."""
    assert followed(specification, sock("127.0.0.1"), keep=True) == {}


@pytest.mark.parametrize("specification", ["127.0.0.53/auto", "::1/auto"])
def test_likewise_in_the_namespace(specification: str) -> None:
    assert followed(specification, sock("127.0.0.1"), inside=True) == {}


def test_several_sockets_of_a_port_share_a_listener() -> None:
    bound = [sock("0.0.0.0"), sock(GUEST4), sock("::", inode=2), sock(GUEST6)]
    assert followed("auto", *bound) == {host("0.0.0.0"): 7000, host("::"): 7000}


def test_of_two_rules_for_a_place_the_first_counts() -> None:
    first, second = (laid(text).of(inside=False)[0] for text in ("7000,auto", "7000:7001,auto"))
    bound = [sock("0.0.0.0", 7000), sock("0.0.0.0", 7001)]
    specs = automatic([first, second], False, (4,), bound, False, ())
    assert specs == {host("0.0.0.0"): ListenerSpec(host("0.0.0.0"), 7000, first)}


def test_nothing_follows_without_an_automatic_rule() -> None:
    rules = laid("7000", "all")
    assert rules.of(inside=False)
    assert rules.automatic(inside=False) == ()
    assert automatic((), False, BOTH, [sock("0.0.0.0")], False, ()) == {}


# --- The table -----------------------------------------------------------------------------------------------------


def test_each_side_has_its_own_ephemeral_range() -> None:
    config = Config(udp_ports=("all",), udp_ns=("all",))
    rules = lay_rules(config, (101, 65535), (11, 65535))
    assert [(rule.first, rule.last) for rule in rules.of(inside=False)] == [(1, 100)]
    assert [(rule.first, rule.last) for rule in rules.of(inside=True)] == [(1, 10)]


def test_without_a_namespace_nothing_listens_there() -> None:
    rules = lay_rules(Config(udp_ports=("5000:6000",), udp_ns=("53:5300",)), EPHEMERAL, None)
    assert [rule.first for rule in rules.of(inside=False)] == [5000]
    assert rules.of(inside=True) == ()
    assert rules.shown(inside=True) == {}


def test_a_protocol_that_is_switched_off_has_no_rules() -> None:
    rules = lay_rules(Config(udp_ports=("5000", "auto"), udp_ns=("auto",), no_udp=True), EPHEMERAL, EPHEMERAL)
    assert dict(rules.table) == {}


def test_each_side_knows_the_others_ports_by_its_own() -> None:
    rules = lay_rules(Config(udp_ports=("8080:80",), udp_ns=("5300:53",)), EPHEMERAL, EPHEMERAL)
    assert rules.shown(inside=True) == {53: 5300}
    assert rules.shown(inside=False) == {80: 8080}


def test_rules_come_and_go() -> None:
    rules = lay_rules(Config(udp_ports=("8080:80",)), EPHEMERAL, None)
    side = PortSide("udp", inside=False)
    shown = rules.shown(inside=False)
    more = rules.lay(side, parse("-u", ["5300:53", "~53,~80"], "udp"))
    rules.add(side, more)
    assert shown == {80: 8080, 53: 5300}
    assert not any(rule.first <= EPHEMERAL[0] <= rule.last for rule in rules.of(inside=False)), "laid like the others"
    # An equal rule is another one.
    again = parse("-u", ["5300:53"], "udp")
    rules.remove(side, again)
    assert shown == {80: 8080, 53: 5300}
    rules.remove(side, more)
    assert shown == {80: 8080}
    assert rules.lay(PortSide("udp", inside=True), again) == ()


def test_the_table_is_kept_by_protocol() -> None:
    (rule,) = parse("--tcp-ports", ["8080:80", "auto"], "tcp")[:1]
    rules = PortRules({PortSide("tcp", inside=False): (rule,)})
    assert rules.of(False, "tcp") == (rule,)
    assert rules.shown(False, "tcp") == {80: 8080}
    assert rules.of(False) == rules.automatic(False, "tcp") == ()


def test_specifications_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the options are read: neither the checks of a command nor a proxy's table parse them again."""
    parsed: list[tuple[str, tuple[str, ...]]] = []

    def counting(option: str, specifications: Iterable[str], protocol: str) -> tuple[ForwardRule, ...]:
        parsed.append((option, tuple(specifications)))
        return parse(option, specifications, protocol)

    for module in (config_module, listeners, portspec):
        monkeypatch.setattr(module, "parse", counting, raising=False)
    config = Config(udp_ports=("5000-5010", "all"), udp_ns=("53", "127.0.0.53/auto"))
    config.check_mode("pasta")
    for _ in range(2):
        rules = lay_rules(config, EPHEMERAL, EPHEMERAL)
        for inside in (False, True):
            rules.shown(inside)
            rules.automatic(inside)
    assert parsed.pop(0) == ("--tcp-ports", ())
    assert parsed == [
        ("--udp-ports", ("5000-5010", "all")),
        ("--tcp-ns", ()),
        ("--udp-ns", ("53", "127.0.0.53/auto")),
    ]
