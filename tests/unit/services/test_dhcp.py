"""Leases field by field, and what is refused; scapy asks and reads answers as a second opinion."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.network import GuestNetwork
from gpasst.packet import checksum, dns_names
from gpasst.packet.parse import parse_ip, parse_udp
from gpasst.services import dhcp
from tests.support.addresses import GATEWAY4, GUEST4, GUEST_MAC, HOST_MAC, ip
from tests.support.need import need_module
from tests.support.networks import family_network, guest_network
from tests.support.replies import refused

BROADCAST_MAC, BROADCAST = b"\xff" * 6, b"\xff" * 4
COOKIE = bytes.fromhex("63825363")
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
ZERO = bytes(4)
OTHER = ip("192.0.2.77")
TRANSACTION = bytes.fromhex("deadbeef")
EVERYTHING: dict[str, Any] = {
    "resolvers": ("198.51.100.53", "198.51.100.54"),
    "search": ("example.org", "b.example.org"),
    "hostname": "guest",
    "fqdn": "guest.example.org",
}


def network(
    mtu: int = 1500,
    search: tuple[str, ...] = (),
    hostname: str = "",
    fqdn: str = "",
    resolvers: tuple[str, ...] = (),
    **changes: Any,
) -> GuestNetwork:
    ip4 = family_network(4, resolvers=tuple(map(ip, resolvers)), **changes)
    return guest_network(ip4=ip4, mtu=mtu, search=search, hostname=hostname, fqdn=fqdn)


def option(code: int, data: bytes = b"") -> bytes:
    return bytes((code, len(data))) + data


def message(
    kind: int | None,
    *options: bytes,
    flags: int = 0,
    client: bytes = ZERO,
    relay: bytes = ZERO,
    operation: int = 1,
    name: bytes = b"",
    file: bytes = b"",
    end: bytes = b"\xff",
) -> bytes:
    """A request as RFC 2131 lays it out, written down by hand."""
    head = bytes((operation, 1, 6, 3)) + TRANSACTION + (77).to_bytes(2, "big") + flags.to_bytes(2, "big")
    addresses = client + OTHER + OTHER + relay
    fixed = head + addresses + GUEST_MAC.ljust(16, b"\0") + name.ljust(64, b"\0") + file.ljust(128, b"\0")
    assert len(fixed) == 236
    typed = b"" if kind is None else option(53, bytes((kind,)))
    return fixed + COOKIE + typed + b"".join(options) + end


class Answer:
    """An answer taken apart by hand, with everything checked that all answers share."""

    def __init__(self, frame: bytes | None) -> None:
        assert frame is not None
        assert frame[6:12] == HOST_MAC
        self.mac = frame[:6]
        packet = parse_ip(memoryview(frame))
        assert len(packet.payload) == len(frame) - 34
        assert checksum.ones_sum(frame[14:34]) == 0xFFFF
        assert packet.source == ip(GATEWAY4)
        self.to = packet.destination
        source, port, data = parse_udp(packet.payload)
        assert (source, port, bytes(packet.payload[6:8])) == (67, 68, b"\0\0")
        self.data = bytes(data)
        # Operation, hardware, hops, transaction, seconds.
        assert self.data[:10] == bytes((2, 1, 6, 0)) + TRANSACTION + b"\0\0"
        self.flags = int.from_bytes(self.data[10:12], "big")
        self.client, self.yours, self.server, self.relay = (self.data[at : at + 4] for at in range(12, 28, 4))
        assert self.server == ZERO
        assert self.data[28:44] == GUEST_MAC.ljust(16, b"\0")
        assert self.data[44:236] == bytes(192)
        assert self.data[236:240] == COOKIE
        assert len(self.data) >= 300
        self.options: list[tuple[int, bytes]] = []
        rest = self.data[240:]
        while rest[0] != 255:
            self.options.append((rest[0], rest[2 : 2 + rest[1]]))
            rest = rest[2 + rest[1] :]
        assert not any(rest[1:])

    @property
    def codes(self) -> list[int]:
        return [code for code, _ in self.options]

    def get(self, code: int) -> bytes:
        return b"".join(data for found, data in self.options if found == code)


def answer(data: bytes, **described: Any) -> Answer:
    return Answer(dhcp.answer(network(**described), data, GUEST_MAC))


# Leases


@pytest.mark.parametrize(("asked", "answered"), [(DISCOVER, OFFER), (REQUEST, ACK)])
def test_a_lease_field_by_field(asked: int, answered: int) -> None:
    got = answer(message(asked), **EVERYTHING)
    assert (got.mac, got.to, got.flags) == (GUEST_MAC, ip(GUEST4), 0)
    assert (got.client, got.yours, got.relay) == (ZERO, ip(GUEST4), ZERO)
    assert got.options == [
        (53, bytes((answered,))),
        (1, bytes((255, 255, 255, 0))),
        (3, ip(GATEWAY4)),
        (6, ip("198.51.100.53") + ip("198.51.100.54")),
        (12, b"guest"),
        (26, (1500).to_bytes(2, "big")),
        (51, b"\xff" * 4),
        (54, ip(GATEWAY4)),
        (119, b"\7example\3org\0\1b\xc0\0"),
    ]
    assert len(got.data) == max(300, 240 + sum(2 + len(data) for _, data in got.options) + 1)


def test_what_is_not_known_is_not_told() -> None:
    assert answer(message(DISCOVER), mtu=0).codes == [53, 1, 3, 51, 54]
    assert answer(message(REQUEST)).codes == [53, 1, 3, 26, 51, 54]


@pytest.mark.parametrize(
    ("requested", "codes"),
    [
        (b"", [53, 1, 3, 6, 12, 26, 51, 54, 119]),
        (bytes((119, 6, 3, 1)), [53, 119, 6, 3, 1, 12, 26, 51, 54]),
        (bytes((1, 28, 2, 121, 15, 6, 12, 33, 119)), [53, 1, 6, 12, 119, 3, 26, 51, 54]),
        (bytes((54, 51, 53, 54, 0, 255, 82)), [53, 54, 51, 1, 3, 6, 12, 26, 119]),
    ],
)
def test_what_is_requested_comes_first_and_in_that_order(requested: bytes, codes: list[int]) -> None:
    assert answer(message(DISCOVER, option(55, requested)), **EVERYTHING).codes == codes
    # In two pieces (RFC 3396).
    pieces = option(55, requested[:2]), option(55, requested[2:])
    assert answer(message(DISCOVER, *pieces), **EVERYTHING).codes == codes


@pytest.mark.parametrize(
    ("prefix", "mask"),
    [
        (0, "0.0.0.0"),
        (1, "128.0.0.0"),
        (8, "255.0.0.0"),
        (20, "255.255.240.0"),
        (24, "255.255.255.0"),
        (30, "255.255.255.252"),
        (32, "255.255.255.255"),
    ],
)
def test_masks(prefix: int, mask: str) -> None:
    assert answer(message(DISCOVER), prefix=prefix).get(1) == ip(mask)


@pytest.mark.parametrize(
    ("prefix", "gateway", "reported"),
    [
        (24, GATEWAY4, False),
        (30, "192.0.2.1", False),
        (32, GATEWAY4, True),
        (24, "192.0.3.1", True),
        (0, "203.0.113.1", False),
    ],
)
def test_a_gateway_outside_the_subnet_is_a_route_of_its_own(prefix: int, gateway: str, reported: bool) -> None:
    frame = dhcp.answer(network(prefix=prefix, gateway=gateway), message(DISCOVER), GUEST_MAC)
    assert frame is not None
    assert frame[26:30] == ip(gateway)
    route = option(121, b"\x20" + ip(gateway) + ZERO + b"\0" + ip(gateway))
    assert len(route) == 2 + 14
    assert (route in frame) == reported
    assert option(3, ip(gateway)) in frame


def test_a_guest_without_default_route_gets_no_router() -> None:
    gateway = "169.254.2.2"
    frame = dhcp.answer(network(gateway=gateway, routed=False), message(DISCOVER), GUEST_MAC)
    assert frame is not None
    assert frame[26:30] == ip(gateway)
    assert option(3, ip(gateway)) not in frame
    assert option(121, b"\x20" + ip(gateway) + ZERO) in frame, "the route to the address that stands for the host"


def test_rapid_commit() -> None:
    got = answer(message(DISCOVER, option(80)))
    assert got.codes == [53, 1, 3, 26, 51, 54, 80]
    assert (got.get(53), got.get(80), got.yours) == (bytes((ACK,)), b"", ip(GUEST4))
    assert 80 not in answer(message(REQUEST, option(80))).codes


@pytest.mark.parametrize("kind", [DISCOVER, REQUEST, None])
def test_broadcast_on_demand(kind: int | None) -> None:
    got = answer(message(kind, flags=0x8000))
    assert (got.mac, got.to, got.flags) == (BROADCAST_MAC, BROADCAST, 0x8000)
    # Other bits are reserved.
    got = answer(message(kind, flags=0x7FFF))
    assert (got.mac, got.to, got.flags) == (GUEST_MAC, ip(GUEST4), 0x7FFF)


def test_a_client_that_has_its_address_needs_no_broadcast() -> None:
    got = answer(message(REQUEST, flags=0x8000, client=ip(GUEST4)))
    assert (got.mac, got.to, got.client) == (GUEST_MAC, ip(GUEST4), ip(GUEST4))


def test_a_relays_address_is_kept() -> None:
    got = answer(message(DISCOVER, relay=OTHER))
    assert (got.relay, got.to) == (OTHER, ip(GUEST4))


@pytest.mark.parametrize("identifier", [b"\1" + GUEST_MAC, b"\xff" * 255])
def test_the_client_finds_its_identifier_again(identifier: bytes) -> None:
    for kind in (DISCOVER, REQUEST, INFORM):
        assert answer(message(kind, option(61, identifier))).get(61) == identifier
    assert answer(message(REQUEST, option(61, identifier), option(50, OTHER))).get(61) == identifier
    assert answer(message(DISCOVER, option(61, b"\xff" * 255), option(61, b"1"))).get(61) == b""


# Requests


@pytest.mark.parametrize(
    ("options", "client", "answered"),
    [
        ((), ZERO, ACK),
        ((option(54, ip(GATEWAY4)), option(50, ip(GUEST4))), ZERO, ACK),
        ((option(50, ip(GUEST4)),), ZERO, ACK),
        ((option(50, ZERO),), ZERO, ACK),
        ((), ip(GUEST4), ACK),
        ((option(50, OTHER),), ZERO, NAK),
        ((option(54, ip(GATEWAY4)), option(50, OTHER)), ZERO, NAK),
        ((), OTHER, NAK),
        ((option(50, ip(GUEST4)),), OTHER, NAK),
        ((option(54, OTHER), option(50, ip(GUEST4))), ZERO, None),
        ((option(54, OTHER), option(50, OTHER)), ZERO, None),
    ],
)
def test_requests_for_this_address_and_others(options: tuple[bytes, ...], client: bytes, answered: int | None) -> None:
    frame = dhcp.answer(network(), message(REQUEST, *options, client=client), GUEST_MAC)
    if answered is None:
        assert frame is None
    else:
        assert Answer(frame).get(53) == bytes((answered,))


def test_a_refusal_field_by_field() -> None:
    got = answer(message(REQUEST, option(55, bytes((1, 3, 51, 119))), client=OTHER), **EVERYTHING)
    assert (got.mac, got.to) == (BROADCAST_MAC, BROADCAST)
    assert (got.client, got.yours) == (ZERO, ZERO)
    assert got.options == [(53, bytes((NAK,))), (54, ip(GATEWAY4)), (56, b"not the address of this guest")]


@pytest.mark.parametrize("client", [OTHER, ip(GUEST4)])
def test_who_informs_itself_gets_no_address(client: bytes) -> None:
    got = answer(message(INFORM, client=client), **EVERYTHING)
    assert (got.mac, got.to) == (GUEST_MAC, client)
    assert (got.client, got.yours) == (client, ZERO)
    assert got.codes == [53, 1, 3, 6, 12, 26, 54, 119]
    assert got.get(53) == bytes((ACK,))


@pytest.mark.parametrize("client", [ZERO, ip("127.0.0.1")])
def test_who_informs_itself_without_an_address_is_told_by_broadcast(client: bytes) -> None:
    got = answer(message(INFORM, client=client))
    assert (got.mac, got.to) == (BROADCAST_MAC, BROADCAST)


@pytest.mark.parametrize("kind", [RELEASE, DECLINE])
def test_what_needs_no_answer(kind: int) -> None:
    assert dhcp.answer(network(), message(kind, client=ip(GUEST4)), GUEST_MAC) is None


@pytest.mark.parametrize("kind", [0, OFFER, ACK, NAK, 9, 18, 255])
def test_what_is_not_served(kind: int) -> None:
    with refused(Drop.SERVICE):
        dhcp.answer(network(), message(kind), GUEST_MAC)


@pytest.mark.parametrize("operation", [0, 2, 3, 255])
def test_answers_of_others_are_not_served(operation: int) -> None:
    with refused(Drop.SERVICE):
        dhcp.answer(network(), message(DISCOVER, operation=operation), GUEST_MAC)


# BOOTP


@pytest.mark.parametrize(
    "data",
    [message(None), message(None, end=b""), message(None)[:236], message(None)[:236] + bytes(64), message(None)[:238]],
)
def test_bootp(data: bytes) -> None:
    got = answer(data, **EVERYTHING)
    assert (got.to, got.yours) == (ip(GUEST4), ip(GUEST4))
    assert got.codes == [1, 3, 6, 12, 26, 119]
    # The message has the size that RFC 951 gives it.
    assert len(got.data) == 300


def test_bootp_takes_no_more_than_its_vendor_field() -> None:
    got = answer(message(None), hostname="x" * 50, resolvers=("192.0.2.53",) * 12, search=("example.org",))
    assert got.codes == [1, 3, 26, 119]
    assert len(got.data) == 300


# Names


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ((), b""),
        ((option(55, bytes((81,))),), b"\x0c\xff\xff\5guest\7example\3org\0"),
        ((option(81, b"\x04\0\0\3old\0"),), b"\x0c\xff\xff\5guest\7example\3org\0"),
        ((option(81, b"\x05\0\0"),), b"\x0e\xff\xff\5guest\7example\3org\0"),
        ((option(81, b"\x00\0\0old"),), b"\x08\xff\xffguest.example.org"),
        ((option(81, b"\x01\0\0old"),), b"\x0a\xff\xffguest.example.org"),
        ((option(81),), b"\x0c\xff\xff\5guest\7example\3org\0"),
    ],
)
def test_the_full_name_is_told_as_the_client_writes_its_own(options: tuple[bytes, ...], reported: bytes) -> None:
    for kind in (DISCOVER, REQUEST):
        assert answer(message(kind, *options), fqdn="guest.example.org.").get(81) == reported
        assert answer(message(kind, *options)).get(81) == b""


def test_host_names_beyond_ascii() -> None:
    assert answer(message(DISCOVER), hostname="gäst").get(12) == b"xn--gst-qla"


# Sizes


def test_long_lists_are_split() -> None:
    search = tuple(f"{number:02}.{chr(97 + number) * 40}.example" for number in range(19))
    resolvers = tuple(f"192.0.2.{number}" for number in range(1, 71))
    got = answer(message(DISCOVER, option(57, (1500).to_bytes(2, "big"))), search=search, resolvers=resolvers)
    sizes = [len(data) for code, data in got.options if code == 6]
    assert sizes == [255, 25]
    assert got.get(6) == b"".join(map(ip, resolvers))
    assert got.get(119) == dns_names.compress_names(search, 9999)
    assert [len(data) for code, data in got.options if code == 119][:3] == [255, 255, 255]
    assert len(got.data) <= 1500 - 28


@pytest.mark.parametrize(
    ("given", "size"), [(None, 576), (b"\0\0", 576), ((575).to_bytes(2, "big"), 576), ((600).to_bytes(2, "big"), 600)]
)
def test_no_more_than_the_client_takes(given: bytes | None, size: int) -> None:
    search = tuple(f"{number:02}.{chr(97 + number) * 40}.example" for number in range(20))
    limit = () if given is None else (option(57, given),)
    got = answer(message(DISCOVER, *limit), search=search, hostname="guest")
    # The search list is cut between names.
    assert size - 28 - 44 < len(got.data) <= size - 28
    assert got.codes[:7] == [53, 1, 3, 12, 26, 51, 54]
    assert dns_names.compress_names(search, 9999).startswith(got.get(119))
    # What does not fit is left out.
    got = answer(message(DISCOVER, *limit), resolvers=("192.0.2.53",) * 200, search=("example.org",))
    assert got.codes == [53, 1, 3, 26, 51, 54, 119]


@given(
    requested=st.binary(max_size=255),
    limit=st.none() | st.integers(0, 65535),
    identifier=st.binary(max_size=255),
    kind=st.sampled_from((None, DISCOVER, REQUEST, INFORM)),
    resolvers=st.integers(0, 100),
    count=st.integers(0, 40),
)
def test_any_size_is_kept(
    requested: bytes, limit: int | None, identifier: bytes, kind: int | None, resolvers: int, count: int
) -> None:
    options = [option(55, requested), option(61, identifier)]
    if limit is not None:
        options.append(option(57, limit.to_bytes(2, "big")))
    search = tuple(f"{number}.{'a' * number}.example" for number in range(1, count + 1))
    got = answer(message(kind, *options), search=search, resolvers=("192.0.2.53",) * resolvers)
    assert len(got.data) <= (300 if kind is None else max(limit or 0, 576) - 28)
    if kind is not None:
        assert got.codes[0] == 53
        assert got.get(61) == identifier
        assert (54 in got.codes, 51 in got.codes) == (True, kind != INFORM)


# What can be wrong


@pytest.mark.parametrize("size", range(236))
def test_a_message_without_its_fixed_part_is_malformed(size: int) -> None:
    with refused(Drop.MALFORMED_DHCP):
        dhcp.answer(network(), message(DISCOVER)[:size], GUEST_MAC)


@pytest.mark.parametrize(
    "options",
    [
        b"\x35",
        b"\x35\x01",
        b"\x35\x00\xff",
        b"\x35\x02\x01\x01\xff",
        b"\x35\x01\x01\x35\x01\x01\xff",
        b"\x35\x01\x01\x0c\x05abcd",
        b"\x35\x01\x01\x37\xff\xff",
        b"\x35\x01\x01\x39\x01\x05\xff",
        b"\x35\x01\x03\x32\x03\xc0\x00\x02\xff",
        b"\x35\x01\x03\x36\x05\xc0\x00\x02\x01\x01\xff",
        b"\x35\x01\x01\x34\x02\x01\x01\xff",
    ],
)
def test_options_that_lie_about_their_length(options: bytes) -> None:
    with refused(Drop.MALFORMED_DHCP):
        dhcp.answer(network(), message(None, end=b"") + options, GUEST_MAC)


def test_truncation_at_every_byte() -> None:
    whole = message(DISCOVER, b"\0\0", option(55, bytes((1, 3, 6))), option(61, b"\1" + GUEST_MAC), b"\0", option(80))
    for size in range(240, len(whole)):
        try:
            dhcp.answer(network(), whole[:size], GUEST_MAC)
        except PacketError as error:
            assert error.reason is Drop.MALFORMED_DHCP


@given(st.binary(max_size=40))
def test_what_follows_the_end_does_not_matter(trailing: bytes) -> None:
    expected = dhcp.answer(network(), message(DISCOVER), GUEST_MAC)
    assert dhcp.answer(network(), message(DISCOVER) + trailing, GUEST_MAC) == expected
    assert dhcp.answer(network(), memoryview(message(DISCOVER) + trailing), GUEST_MAC) == expected


def test_padding_between_options_and_no_end() -> None:
    expected = dhcp.answer(network(), message(DISCOVER, option(80)), GUEST_MAC)
    padded = message(DISCOVER, bytes(5), option(80), bytes(9))
    assert dhcp.answer(network(), padded, GUEST_MAC) == expected
    assert dhcp.answer(network(), message(DISCOVER, option(80), end=b""), GUEST_MAC) == expected


@pytest.mark.parametrize(
    ("overload", "file", "name", "answered"),
    [
        (1, option(50, OTHER) + b"\xff", b"", NAK),
        (2, b"", option(50, OTHER) + b"\xff", NAK),
        (3, option(50, OTHER[:2]) + b"\xff", option(50, OTHER[2:]) + b"\xff", NAK),
        (3, option(50, ip(GUEST4)), option(54, ip(GATEWAY4)), ACK),
        (1, b"", option(50, OTHER) + b"\xff", ACK),
        (0, option(50, OTHER), option(50, OTHER), ACK),
    ],
)
def test_options_in_the_fields_for_names(overload: int, file: bytes, name: bytes, answered: int) -> None:
    got = answer(message(REQUEST, option(52, bytes((overload,))), file=file, name=name))
    assert got.get(53) == bytes((answered,))


def test_options_beyond_the_field_for_names() -> None:
    with refused(Drop.MALFORMED_DHCP):
        answer(message(REQUEST, option(52, b"\2"), name=option(12, b"x" * 70)[:64]))


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_answered_or_refused(data: bytes) -> None:
    for asked in (data, message(None, end=b"") + data, message(DISCOVER, end=b"") + data):
        try:
            dhcp.answer(network(**EVERYTHING), asked, GUEST_MAC)
        except PacketError as error:
            assert error.reason in (Drop.MALFORMED_DHCP, Drop.SERVICE)


@given(fixed=st.binary(min_size=236, max_size=236), kind=st.integers(0, 9), options=st.binary(max_size=60))
def test_arbitrary_requests_are_answered_or_refused(fixed: bytes, kind: int, options: bytes) -> None:
    try:
        dhcp.answer(network(), b"\1" + fixed[1:] + COOKIE + option(53, bytes((kind,))) + options, GUEST_MAC)
    except PacketError as error:
        assert error.reason in (Drop.MALFORMED_DHCP, Drop.SERVICE)


# A second opinion


@pytest.fixture(scope="module")
def scapy() -> Any:
    need_module("scapy.layers.inet")
    need_module("scapy.layers.l2")
    return need_module("scapy.layers.dhcp")


def options_of(scapy: Any, frame: bytes | None) -> tuple[Any, dict[str, Any]]:
    """Let scapy take an answer apart: the BOOTP layer and the options by name."""
    ethernet = need_module("scapy.layers.l2").Ether(frame)
    layer = ethernet[scapy.BOOTP]
    # Rebuilt without them, lengths and checksums must come out the same.
    inet = need_module("scapy.layers.inet")
    rebuilt = ethernet.copy()
    del rebuilt[inet.IP].len, rebuilt[inet.IP].chksum, rebuilt[inet.UDP].len
    assert bytes(rebuilt) == frame
    found = {item[0]: item[1] if len(item) == 2 else item[1:] for item in layer[scapy.DHCP].options if len(item) > 1}
    return layer, found


@pytest.mark.parametrize(("asked", "answered"), [("discover", OFFER), ("request", ACK), ("inform", ACK)])
def test_scapy_understands_and_is_understood(scapy: Any, asked: str, answered: int) -> None:
    request = scapy.BOOTP(chaddr=GUEST_MAC, xid=0xDEADBEEF, ciaddr="192.0.2.2" if asked == "inform" else "0.0.0.0")
    request /= scapy.DHCP(
        options=[
            ("message-type", asked),
            ("client_id", b"\1" + GUEST_MAC),
            ("max_dhcp_size", 1500),
            ("param_req_list", [1, 3, 6, 26, 119, 121]),
            "end",
        ]
    )
    described = network(**{**EVERYTHING, "prefix": 32})
    layer, found = options_of(scapy, dhcp.answer(described, bytes(request), GUEST_MAC))
    assert (layer.op, layer.xid, layer.chaddr[:6]) == (2, 0xDEADBEEF, GUEST_MAC)
    assert layer.yiaddr == ("0.0.0.0" if asked == "inform" else GUEST4)
    assert found["message-type"] == answered
    assert found["subnet_mask"] == "255.255.255.255"
    assert found["router"] == GATEWAY4
    assert found["name_server"] == ("198.51.100.53", "198.51.100.54")
    assert found["hostname"] == b"guest"
    assert found["interface-mtu"] == 1500
    assert found["server_id"] == GATEWAY4
    assert found["client_id"] == b"\1" + GUEST_MAC
    assert found.get("lease_time") == (None if asked == "inform" else 0xFFFFFFFF)
    assert found["classless_static_routes"] == ["192.0.2.1/32:0.0.0.0", "0.0.0.0/0:192.0.2.1"]


def test_scapy_asks_by_bootp(scapy: Any) -> None:
    layer, found = options_of(
        scapy, dhcp.answer(network(), bytes(scapy.BOOTP(chaddr=GUEST_MAC, xid=0xDEADBEEF)), GUEST_MAC)
    )
    assert (layer.yiaddr, found["subnet_mask"], found["router"]) == (GUEST4, "255.255.255.0", GATEWAY4)
    assert "message-type" not in found
