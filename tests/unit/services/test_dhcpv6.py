"""DHCPv6 message by message and field by field; scapy asks and reads answers as a second opinion."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet import checksum, dns_names
from gpasst.packet.parse import Packet, parse_ip, parse_udp
from gpasst.services import dhcpv6
from tests.support.addresses import GATEWAY6, GUEST6, GUEST_LINK_LOCAL, GUEST_MAC, HOST_LINK_LOCAL, HOST_MAC, ip
from tests.support.need import need_module
from tests.support.networks import family_network, guest_network
from tests.support.replies import refused

SERVERS = "ff02::1:2"
TRANSACTION = b"abc"
(
    SOLICIT,
    ADVERTISE,
    REQUEST,
    CONFIRM,
    RENEW,
    REBIND,
    REPLY,
    RELEASE,
    DECLINE,
    RECONFIGURE,
    INFORMATION_REQUEST,
) = range(1, 12)
CLIENT_ID, SERVER_ID, IA_NA, IA_TA, IAADDR, OPTION_REQUEST = range(1, 7)
STATUS, RAPID_COMMIT, RESOLVERS, SEARCH, IA_PD, FQDN = 13, 14, 23, 24, 25, 39
INFINITE = b"\xff" * 4
CLIENT = bytes.fromhex("00030001") + GUEST_MAC
OURS = dhcpv6.duid(HOST_MAC, 700_000_000)
OTHER, FOREIGN = OURS[:-1] + b"\0", ip("2001:db8:5::77")
ENDLESS = ip(GUEST6) + INFINITE + INFINITE
DISCARDED = b"\0\4Prefix not appropriate for link."
NO_ADDRESSES = b"\0\2One address is all there is."


def option(code: int, data: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def association(*addresses: bytes, kind: int = IA_NA, identifier: bytes = b"iaid") -> bytes:
    head = identifier + (bytes(8) if kind == IA_NA else b"")
    return option(kind, head + b"".join(option(IAADDR, address + bytes(8)) for address in addresses))


def message(kind: int, *options: bytes, client: bytes = CLIENT, server: bytes | None = None) -> bytes:
    head = bytes((kind,)) + TRANSACTION
    named = b"" if server is None else option(SERVER_ID, server)
    return head + option(CLIENT_ID, client) + named + b"".join(options)


def server(
    search: tuple[str, ...] = (), fqdn: str = "", resolvers: tuple[str, ...] = (), **changes: Any
) -> dhcpv6.Server:
    ip6 = family_network(6, resolvers=tuple(map(ip, resolvers)), **changes)
    network = guest_network(ip6=ip6, search=search, fqdn=fqdn)
    return dhcpv6.Server(network, OURS)


def packet(source: str = GUEST_LINK_LOCAL, to: str = SERVERS) -> Packet:
    return Packet(6, ip(source), ip(to), 17, memoryview(b""), 1)


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Take options apart by hand."""
    found = []
    while data:
        code, size = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
        assert len(data) >= 4 + size
        found.append((code, data[4 : 4 + size]))
        data = data[4 + size :]
    return found


class Answer:
    """An answer taken apart by hand, with everything checked that all answers share."""

    def __init__(self, frame: bytes | None, source: str = GATEWAY6, to: str = GUEST_LINK_LOCAL) -> None:
        assert frame is not None
        assert frame[:12] == GUEST_MAC + HOST_MAC
        packet = parse_ip(memoryview(frame))
        assert len(packet.payload) == len(frame) - 54
        assert (packet.source, packet.destination) == (ip(source), ip(to))
        pseudo = checksum.pseudo_sum(packet.source, packet.destination, 17) + len(packet.payload)
        assert checksum.ones_sum(packet.payload, pseudo) == 0xFFFF
        assert any(packet.payload[6:8]), "a checksum is mandatory over IPv6"
        source_port, port, data = parse_udp(packet.payload)
        assert (source_port, port) == (547, 546)
        self.kind = data[0]
        assert data[1:4] == TRANSACTION
        self.options = split(bytes(data[4:]))

    @property
    def codes(self) -> list[int]:
        return [code for code, _ in self.options]

    def get(self, code: int) -> bytes:
        (data,) = [data for found, data in self.options if found == code]
        return data


def answer(data: bytes, **described: Any) -> Answer:
    return Answer(dhcpv6.answer(server(**described), packet(), data, GUEST_MAC))


# Leases


@pytest.mark.parametrize(
    ("asked", "named", "answered"),
    [
        (SOLICIT, None, ADVERTISE),
        (REQUEST, OURS, REPLY),
        (CONFIRM, None, REPLY),
        (RENEW, OURS, REPLY),
        (REBIND, None, REPLY),
    ],
)
@pytest.mark.parametrize("held", [(), (ip(GUEST6),)])
def test_a_lease_field_by_field(asked: int, named: bytes | None, answered: int, held: tuple[bytes, ...]) -> None:
    described = {"resolvers": ("2001:db8::53", "2001:db8::54"), "search": ("example.org", "b.example.org")}
    got = answer(message(asked, association(*held), server=named), **described)
    assert got.kind == answered
    assert got.options == [
        (SERVER_ID, OURS),
        (IA_NA, b"iaid" + INFINITE + INFINITE + option(IAADDR, ENDLESS)),
        (CLIENT_ID, CLIENT),
        (RESOLVERS, ip("2001:db8::53") + ip("2001:db8::54")),
        (SEARCH, b"\7example\3org\0\1b\7example\3org\0"),
    ]


def test_what_is_not_known_is_not_told() -> None:
    assert answer(message(SOLICIT, association())).codes == [SERVER_ID, IA_NA, CLIENT_ID]
    assert answer(message(SOLICIT), search=("example.org",)).codes == [SERVER_ID, CLIENT_ID, SEARCH]


def test_our_identifier() -> None:
    assert bytes.fromhex("00010001") + (700_000_000).to_bytes(4, "big") + HOST_MAC == OURS
    assert dhcpv6.duid(HOST_MAC, (1 << 32) + 5)[4:8] == bytes((0, 0, 0, 5))
    # RFC 8415, section 11.2: since midnight UTC of 2000-01-01.
    assert dhcpv6.EPOCH == 30 * 365 * 86400 + 7 * 86400


def test_rapid_commit() -> None:
    got = answer(message(SOLICIT, association(), option(RAPID_COMMIT)))
    assert (got.kind, got.codes, got.get(RAPID_COMMIT)) == (REPLY, [SERVER_ID, IA_NA, CLIENT_ID, RAPID_COMMIT], b"")
    assert RAPID_COMMIT not in answer(message(REQUEST, association(), option(RAPID_COMMIT), server=OURS)).codes


def test_temporary_addresses() -> None:
    got = answer(message(SOLICIT, association(kind=IA_TA)))
    assert got.options == [(SERVER_ID, OURS), (IA_TA, b"iaid" + option(IAADDR, ENDLESS)), (CLIENT_ID, CLIENT)]


def test_one_address_is_all_there_is() -> None:
    asked = [association(kind=IA_TA, identifier=b"temp"), association(), association(identifier=b"more")]
    for kind, named in ((SOLICIT, None), (REQUEST, OURS), (REBIND, None)):
        assert answer(message(kind, *asked, server=named)).options == [
            (SERVER_ID, OURS),
            (IA_NA, b"iaid" + INFINITE + INFINITE + option(IAADDR, ENDLESS)),
            (IA_NA, b"more" + INFINITE + INFINITE + option(STATUS, NO_ADDRESSES)),
            (IA_TA, b"temp" + option(STATUS, NO_ADDRESSES)),
            (CLIENT_ID, CLIENT),
        ]


def test_a_guest_in_local_mode_has_no_address_to_get() -> None:
    got = answer(message(SOLICIT, association()), address=None)
    assert got.get(IA_NA) == b"iaid" + INFINITE + INFINITE + option(STATUS, NO_ADDRESSES)
    got = answer(message(REQUEST, association(FOREIGN), server=OURS), address=None)
    assert got.get(IA_NA).endswith(option(STATUS, DISCARDED))


def test_prefixes_are_ignored() -> None:
    got = answer(message(SOLICIT, association(), option(IA_PD, b"iapd" + bytes(8))))
    assert got.codes == [SERVER_ID, IA_NA, CLIENT_ID]


@pytest.mark.parametrize(("gateway", "source"), [(GATEWAY6, GATEWAY6), ("2001:db8::1", HOST_LINK_LOCAL)])
def test_answers_come_from_a_link_local_address(gateway: str, source: str) -> None:
    described = server(gateway=gateway)
    Answer(dhcpv6.answer(described, packet(), message(SOLICIT), GUEST_MAC), source)
    Answer(dhcpv6.answer(described, packet("2001:db8::5"), message(SOLICIT), GUEST_MAC), source, "2001:db8::5")


@pytest.mark.parametrize("named", [None, OURS])
def test_information_without_a_lease(named: bytes | None) -> None:
    got = answer(message(INFORMATION_REQUEST, server=named), resolvers=("2001:db8::53",), search=("example.org",))
    assert (got.kind, got.codes) == (REPLY, [SERVER_ID, CLIENT_ID, RESOLVERS, SEARCH])


@pytest.mark.parametrize("asked", [RELEASE, DECLINE])
def test_what_is_given_back(asked: int) -> None:
    got = answer(message(asked, association(ip(GUEST6)), server=OURS), resolvers=("2001:db8::53",))
    assert got.kind == REPLY
    assert got.options == [(SERVER_ID, OURS), (CLIENT_ID, CLIENT), (STATUS, b"\0\0")]


@pytest.mark.parametrize(("asked", "named"), [(REQUEST, OURS), (RENEW, OURS), (CONFIRM, None)])
@pytest.mark.parametrize("held", [(FOREIGN,), (ip(GUEST6), FOREIGN), (FOREIGN, ip(GUEST6))])
@pytest.mark.parametrize(("kind", "times"), [(IA_NA, INFINITE + INFINITE), (IA_TA, b"")])
def test_other_addresses_are_not_on_the_link(
    asked: int, named: bytes | None, held: tuple[bytes, ...], kind: int, times: bytes
) -> None:
    good = association(ip(GUEST6), identifier=b"good")
    got = answer(message(asked, good, association(*held, kind=kind), server=named), search=("example.org",))
    status = [(STATUS, DISCARDED)] if asked == CONFIRM else []
    assert got.kind == REPLY
    assert got.options == [
        (SERVER_ID, OURS),
        (kind, b"iaid" + times + option(STATUS, DISCARDED)),
        (CLIENT_ID, CLIENT),
        *status,
    ]


def test_a_hint_is_no_demand() -> None:
    got = answer(message(SOLICIT, association(FOREIGN)))
    assert got.get(IA_NA) == b"iaid" + INFINITE + INFINITE + option(IAADDR, ENDLESS)


def test_addresses_that_ended_are_taken_back() -> None:
    got = answer(message(REBIND, association(FOREIGN, ip(GUEST6))))
    expected = option(IAADDR, ENDLESS) + option(IAADDR, FOREIGN + bytes(8))
    assert got.get(IA_NA) == b"iaid" + INFINITE + INFINITE + expected


# Names


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ((), None),
        ((option(OPTION_REQUEST, bytes((0, RESOLVERS, 0, SEARCH))),), None),
        ((option(OPTION_REQUEST, bytes((0, RESOLVERS, 0, FQDN))),), 4),
        ((option(OPTION_REQUEST, bytes((0, FQDN, 0))),), 4),
        ((option(FQDN, b"\0\3old\0"),), 4),
        ((option(FQDN, b"\1\3old\0"),), 6),
        ((option(FQDN),), 4),
    ],
)
def test_the_full_name(options: tuple[bytes, ...], flags: int | None) -> None:
    for asked in (SOLICIT, REBIND, INFORMATION_REQUEST):
        got = answer(message(asked, *options), fqdn="guest.example.org")
        if flags is None:
            assert FQDN not in got.codes
        else:
            assert got.get(FQDN) == bytes((flags,)) + b"\5guest\7example\3org\0"
        assert FQDN not in answer(message(asked, *options)).codes


def test_long_lists_are_cut() -> None:
    search = tuple(f"{number:03}.{'a' * 60}.example" for number in range(40))
    got = answer(message(SOLICIT), search=search, resolvers=tuple(f"2001:db8::{n:x}" for n in range(200)))
    assert len(got.get(RESOLVERS)) == 127 * 16
    assert got.get(SEARCH) == dns_names.encode_names(search, 2032)


# What is not for us


@pytest.mark.parametrize("asked", [REQUEST, RENEW, RELEASE, DECLINE, INFORMATION_REQUEST])
@pytest.mark.parametrize("named", [OTHER, b"", b"\0\1", OURS + b"\0"])
def test_messages_for_other_servers_are_passed_over(asked: int, named: bytes) -> None:
    assert dhcpv6.answer(server(), packet(), message(asked, server=named), GUEST_MAC) is None


@pytest.mark.parametrize(
    "data",
    [
        message(SOLICIT, server=OURS),
        message(SOLICIT, server=OTHER),
        message(CONFIRM, server=OURS),
        message(REBIND, server=OURS),
        message(REQUEST),
        message(RENEW),
        message(RELEASE),
        message(DECLINE),
        message(INFORMATION_REQUEST, association()),
        message(INFORMATION_REQUEST, association(kind=IA_TA)),
        message(SOLICIT, client=b""),
        message(SOLICIT, client=b"x" * 129),
        bytes((SOLICIT,)) + TRANSACTION,
        bytes((INFORMATION_REQUEST,)) + TRANSACTION,
    ],
)
def test_messages_against_the_rules(data: bytes) -> None:
    with refused(Drop.MALFORMED_DHCPV6):
        dhcpv6.answer(server(), packet(), data, GUEST_MAC)


def test_the_longest_client_identifier() -> None:
    assert answer(message(SOLICIT, client=b"x" * 128)).get(CLIENT_ID) == b"x" * 128


@pytest.mark.parametrize("asked", [0, ADVERTISE, REPLY, RECONFIGURE, 12, 13, 14, 255])
def test_what_is_not_served(asked: int) -> None:
    with refused(Drop.SERVICE):
        dhcpv6.answer(server(), packet(), message(asked, server=OURS), GUEST_MAC)


@pytest.mark.parametrize(
    ("source", "to", "reason"),
    [
        (GUEST_LINK_LOCAL, GATEWAY6, Drop.SERVICE),
        (GUEST_LINK_LOCAL, "2001:db8::1", Drop.SERVICE),
        ("::", SERVERS, Drop.UNSPECIFIED_ADDRESS),
        ("ff02::1", SERVERS, Drop.UNSPECIFIED_ADDRESS),
        ("::1", SERVERS, Drop.LOOPBACK_ADDRESS),
    ],
)
def test_addresses_that_are_not_served(source: str, to: str, reason: Drop) -> None:
    with refused(reason):
        dhcpv6.answer(server(), packet(source, to), message(SOLICIT), GUEST_MAC)


# What can be wrong


def test_truncation_at_every_byte() -> None:
    whole = message(REQUEST, association(FOREIGN), server=OURS)
    ends = {4 + sum(4 + len(data) for _, data in split(whole[4:])[:count]) for count in range(4)}
    for size in range(len(whole)):
        if size in ends:
            continue
        with refused(Drop.MALFORMED_DHCPV6):
            dhcpv6.answer(server(), packet(), whole[:size], GUEST_MAC)
    # As much is missing within the association.
    inner = split(whole[4:])[-1][1]
    for size in range(len(inner)):
        if size == 12:
            continue
        with refused(Drop.MALFORMED_DHCPV6):
            answer(message(REQUEST, option(IA_NA, inner[:size]), server=OURS))
    # And within the address.
    for size in range(24):
        with refused(Drop.MALFORMED_DHCPV6):
            answer(message(REBIND, option(IA_NA, bytes(12) + option(IAADDR, bytes(size)))))
    with refused(Drop.MALFORMED_DHCPV6):
        answer(message(REBIND, option(IA_NA, bytes(12) + option(IAADDR, bytes(25)))))


@given(st.binary(min_size=1, max_size=3))
def test_trailing_bytes_are_half_an_option(trailing: bytes) -> None:
    with refused(Drop.MALFORMED_DHCPV6):
        answer(message(SOLICIT) + trailing)


def test_unknown_options_are_skipped_and_the_first_of_two_counts() -> None:
    got = answer(message(SOLICIT, option(8, b"\0\0"), option(65000, b"x"), option(CLIENT_ID, b"second")))
    assert got.options == [(SERVER_ID, OURS), (CLIENT_ID, CLIENT)]
    nested = option(IA_NA, b"iaid" + bytes(8) + option(STATUS, b"\0\0") + option(IAADDR, ENDLESS + option(STATUS)))
    assert answer(message(REQUEST, nested, server=OURS)).codes == [SERVER_ID, IA_NA, CLIENT_ID]


@given(
    kind=st.integers(0, 255),
    options=st.lists(
        st.tuples(st.sampled_from((1, 2, 3, 4, 5, 6, 13, 14, 25, 39, 500)), st.binary(max_size=40)), max_size=5
    ),
    rest=st.binary(max_size=30),
)
def test_arbitrary_bytes_are_answered_or_refused(kind: int, options: list[tuple[int, bytes]], rest: bytes) -> None:
    listed = b"".join(option(code, data) for code, data in options)
    described = server(search=("example.org",), fqdn="guest.example.org", resolvers=("2001:db8::53",))
    for data in (rest, bytes((kind,)) + TRANSACTION + listed + rest, message(kind % 12, listed, server=OURS) + rest):
        for asked in (data, memoryview(data)):
            try:
                dhcpv6.answer(described, packet(), asked, GUEST_MAC)
            except PacketError as error:
                assert error.reason in (Drop.MALFORMED_DHCPV6, Drop.SERVICE)


# A second opinion


@pytest.fixture(scope="module")
def scapy() -> Any:
    need_module("scapy.layers.inet6")
    return need_module("scapy.layers.dhcp6")


def test_scapy_understands_and_is_understood(scapy: Any) -> None:
    client = scapy.DHCP6OptClientId(duid=scapy.DUID_LL(lladdr="52:54:00:12:34:56"))
    wanted = scapy.DHCP6OptIA_NA(iaid=7, ianaopts=[scapy.DHCP6OptIAAddress(addr=GUEST6)])
    asked = scapy.DHCP6OptOptReq(reqopts=[RESOLVERS, SEARCH, FQDN])
    described = server(search=("example.org",), fqdn="guest.example.org", resolvers=("2001:db8::53",))
    solicit = scapy.DHCP6_Solicit(trid=0x616263) / client / wanted / asked
    advertise = dissect(scapy, dhcpv6.answer(described, packet(), bytes(solicit), GUEST_MAC))
    assert advertise.haslayer(scapy.DHCP6_Advertise)
    check(scapy, advertise)
    ours = advertise[scapy.DHCP6OptServerId]
    request = scapy.DHCP6_Request(trid=0x616263) / client / scapy.DHCP6OptServerId(duid=ours.duid) / wanted / asked
    reply = dissect(scapy, dhcpv6.answer(described, packet(), bytes(request), GUEST_MAC))
    assert reply.haslayer(scapy.DHCP6_Reply)
    check(scapy, reply)
    other = scapy.DHCP6OptIA_NA(iaid=7, ianaopts=[scapy.DHCP6OptIAAddress(addr="2001:db8:5::77")])
    confirm = scapy.DHCP6_Confirm(trid=0x616263) / client / other
    refusal = dissect(scapy, dhcpv6.answer(described, packet(), bytes(confirm), GUEST_MAC))
    (status,) = refusal[scapy.DHCP6OptIA_NA].ianaopts
    assert (status.statuscode, status.statusmsg) == (4, b"Prefix not appropriate for link.")
    assert refusal[scapy.DHCP6OptStatusCode].statuscode == 4


def dissect(scapy: Any, frame: bytes | None) -> Any:
    """Let scapy take an answer apart; rebuilt without them, length and checksum must come out the same."""
    ethernet = need_module("scapy.layers.l2").Ether(frame)
    inet6, inet = need_module("scapy.layers.inet6"), need_module("scapy.layers.inet")
    rebuilt = ethernet.copy()
    del rebuilt[inet6.IPv6].plen, rebuilt[inet.UDP].len, rebuilt[inet.UDP].chksum
    assert bytes(rebuilt) == frame
    return ethernet


def check(scapy: Any, message: Any) -> None:
    ours = message[scapy.DHCP6OptServerId].duid
    assert (ours.type, ours.hwtype, ours.timeval) == (1, 1, 700_000_000)
    assert ours.lladdr == "9a:55:9a:55:9a:55"
    assert message[scapy.DHCP6OptClientId].duid.lladdr == "52:54:00:12:34:56"
    given = message[scapy.DHCP6OptIA_NA]
    assert (given.iaid, given.T1, given.T2) == (7, 0xFFFFFFFF, 0xFFFFFFFF)
    (address,) = given.ianaopts
    assert (address.addr, address.preflft, address.validlft) == (GUEST6, 0xFFFFFFFF, 0xFFFFFFFF)
    assert message[scapy.DHCP6OptDNSServers].dnsservers == ["2001:db8::53"]
    assert message[scapy.DHCP6OptDNSDomains].dnsdomains == ["example.org."]
    assert message[scapy.DHCP6OptClientFQDN].fqdn == b"guest.example.org."
