"""DHCP (RFC 2131) and BOOTP (RFC 951): a server that leases the guest's only address with an infinite lifetime.

Theory of operation: there is one guest and one address, so there is no lease table; each reply follows from its request
alone.

| Request | Reply |
|---|---|
| DISCOVER | OFFER, or ACK if it has the rapid commit option (RFC 4039) |
| REQUEST for the guest's address, or for none | ACK |
| REQUEST for another address | NAK, so that the client restarts (RFC 2131, section 4.3.2) |
| REQUEST to another server | none |
| INFORM | ACK without address and lease (RFC 2131, section 4.3.5) |
| no message type: BOOTP | BOOTREPLY with the address and the options that BOOTP defines (RFC 1534) |
| RELEASE, DECLINE | none |
| any other | dropped |

The message type is the first option of a reply, followed by those that the client requested, in its order, then the
others by number. Options that exceed the client's maximum message size are left out, except those without which the
reply is invalid; a search list is truncated between names.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpasst.codec import Allowance
from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.packet.address import BROADCAST_MAC, UNSPECIFIED, V4, is_loopback
from gpasst.packet.build import wrap_udp
from gpasst.packet.dhcp_wire import (
    BOOTP_REPLY,
    BOOTP_REQUEST,
    DHCP_ACK,
    DHCP_CLASSLESS_ROUTES,
    DHCP_CLIENT_FQDN,
    DHCP_CLIENT_IDENTIFIER,
    DHCP_CLIENT_PORT,
    DHCP_CODEC,
    DHCP_COOKIE,
    DHCP_DECLINE,
    DHCP_DISCOVER,
    DHCP_FLAG_BROADCAST,
    DHCP_FQDN_CODEC,
    DHCP_FQDN_NO_UPDATES,
    DHCP_FQDN_OVERRIDDEN,
    DHCP_FQDN_SERVER_UPDATES,
    DHCP_FQDN_WIRE_FORMAT,
    DHCP_HOST_NAME,
    DHCP_INFINITE,
    DHCP_INFORM,
    DHCP_LEASE_TIME,
    DHCP_MAXIMUM_SIZE,
    DHCP_MESSAGE_TYPE,
    DHCP_MTU,
    DHCP_NAK,
    DHCP_OFFER,
    DHCP_OPTIONS,
    DHCP_OPTIONS_LIMIT,
    DHCP_OVERLOAD,
    DHCP_OVERLOAD_FILE,
    DHCP_OVERLOAD_NAME,
    DHCP_PARAMETER_LIST,
    DHCP_RAPID_COMMIT,
    DHCP_RELEASE,
    DHCP_REQUEST,
    DHCP_REQUESTED_ADDRESS,
    DHCP_RESOLVERS,
    DHCP_ROUTER,
    DHCP_SEARCH_LIST,
    DHCP_SERVER_IDENTIFIER,
    DHCP_SERVER_PORT,
    DHCP_SUBNET_MASK,
    DHCP_TEXT,
    MESSAGE_LIMIT,
)
from gpasst.packet.dns_names import compress_names, encode_name, encode_text
from gpasst.wire import IPV4_CODEC, UDP_CODEC

BROADCAST = b"\xff" * 4  # the limited broadcast address (RFC 919)
HEADERS_BYTES = IPV4_CODEC.size + UDP_CODEC.size
DATAGRAM_BYTES = 576  # IP header included, which every client accepts (RFC 2131, section 2)
OPTIONS_MINIMUM = 60  # bytes behind the cookie: the vendor field of RFC 951, which old clients require
OPTION_MAXIMUM = 255  # bytes of data; longer ones are split (RFC 3396)
OPTION_HEAD_BYTES = 2  # code and length
HOST_ROUTE_BITS = 32
REFUSAL = b"not the address of this guest"
# Options without which a reply is invalid, or which it must repeat (RFC 6842).
REQUIRED = (
    DHCP_LEASE_TIME,
    DHCP_MESSAGE_TYPE,
    DHCP_SERVER_IDENTIFIER,
    DHCP_CLIENT_IDENTIFIER,
    DHCP_RAPID_COMMIT,
    DHCP_TEXT,
)
# Options that only DHCP defines (RFC 1534, section 2).
BEYOND_BOOTP = (DHCP_LEASE_TIME, DHCP_SERVER_IDENTIFIER)

Options = Mapping[int, bytes]


def answer(network: GuestNetwork, data: bytes | memoryview, guest_mac: bytes) -> bytes | None:
    """Build the reply to a message to the DHCP server's port.

    :param network: the guest's network, with IPv4.
    :param data: payload of the UDP datagram.
    :param guest_mac: destination of the reply unless it is broadcast, 6 bytes.
    :return: the reply's frame; None for a message to another server, RELEASE and DECLINE.
    :raises PacketError: `Drop.MALFORMED_DHCP` if the message is malformed, `Drop.SERVICE` if it is of another type,
        `Drop.EXCESSIVE` if it has more than `MESSAGE_LIMIT` bytes or `DHCP_OPTIONS_LIMIT` options.
    """
    ip4 = network.ip4
    assert ip4 is not None and ip4.address is not None
    if len(data) > MESSAGE_LIMIT:
        raise PacketError(Drop.EXCESSIVE)
    request = DHCP_CODEC.parse(data, Drop.MALFORMED_DHCP)
    if request["operation"] != BOOTP_REQUEST:
        raise PacketError(Drop.SERVICE)
    options = parse_options(data)
    message_type = _fixed(options, DHCP_MESSAGE_TYPE, 1)
    if message_type is None:
        kind = None
    else:
        kind = _answer_to(message_type[0], request["client"], options, ip4)
        if kind is None:
            return None
    informs = message_type is not None and message_type[0] == DHCP_INFORM
    yours = UNSPECIFIED[V4] if informs or kind == DHCP_NAK else ip4.address
    destination = request["client"] if informs else ip4.address
    # RFC 2131, section 4.1: a client without address may request broadcast, and a NAK leaves it without one.
    broadcast = request["flags"] & DHCP_FLAG_BROADCAST and not any(request["client"])
    if broadcast or kind == DHCP_NAK or not any(destination) or is_loopback(destination):
        destination, guest_mac = BROADCAST, BROADCAST_MAC
    header = DHCP_CODEC.pack(
        operation=BOOTP_REPLY,
        hardware=request["hardware"],
        hardware_length=request["hardware_length"],
        transaction=request["transaction"],
        flags=request["flags"],
        client=UNSPECIFIED[V4] if kind == DHCP_NAK else request["client"],
        yours=yours,
        relay=request["relay"],
        client_mac=request["client_mac"],
    )
    contents = _refusal(ip4) if kind == DHCP_NAK else _contents(network, ip4, kind, informs, options)
    identifier = options.get(DHCP_CLIENT_IDENTIFIER, b"")
    if kind is not None and 0 < len(identifier) <= OPTION_MAXIMUM:
        contents[DHCP_CLIENT_IDENTIFIER] = identifier
    reply = header + DHCP_COOKIE + _build(contents, network.search, kind, options)
    return wrap_udp(guest_mac, network.host_mac, ip4.gateway, destination, DHCP_SERVER_PORT, DHCP_CLIENT_PORT, reply)


def parse_options(data: bytes | memoryview) -> dict[int, bytes]:
    """Return the options of a message by code, including those in the file and server name fields (option overload).

    The data of an option that occurs more than once are joined, in this order: options, file, server name (RFC 3396,
    sections 5 and 7).

    :param data: a message with at least its fixed part. A BOOTP message has no cookie, and then no options.
    :raises PacketError: `Drop.MALFORMED_DHCP`, if an option ends beyond its field; `Drop.EXCESSIVE`, if there are more
        than `DHCP_OPTIONS_LIMIT`.
    """
    rest = bytes(data[DHCP_CODEC.size :])
    found: dict[int, bytes] = {}
    if rest[: len(DHCP_COOKIE)] != DHCP_COOKIE:
        return found
    allowance = Allowance(DHCP_OPTIONS_LIMIT)
    _collect(found, rest[len(DHCP_COOKIE) :], allowance)
    overload = _fixed(found, DHCP_OVERLOAD, 1)
    if overload is not None:
        message = DHCP_CODEC.unpack_from(data)
        if overload[0] & DHCP_OVERLOAD_FILE:
            _collect(found, message["file"], allowance)
        if overload[0] & DHCP_OVERLOAD_NAME:
            _collect(found, message["server_name"], allowance)
    return found


def _collect(found: dict[int, bytes], field: bytes, allowance: Allowance) -> None:
    for code, data in DHCP_OPTIONS.parse(field, allowance, Drop.MALFORMED_DHCP):
        found[code] = found.get(code, b"") + data


def _fixed(options: Options, code: int, size: int) -> bytes | None:
    """Return the data of an option of fixed `size` in bytes, None if it is absent.

    :raises PacketError: `Drop.MALFORMED_DHCP`, if it has another size.
    """
    data = options.get(code)
    if data is not None and len(data) != size:
        raise PacketError(Drop.MALFORMED_DHCP)
    return data


def _answer_to(message_type: int, client: bytes, options: Options, ip4: FamilyNetwork) -> int | None:
    """Return the message type of the reply, None if there is none.

    :param message_type: of the request.
    :param client: the address that the client has (ciaddr).
    :param options: of the request.
    :param ip4: the guest's network.
    :raises PacketError: `Drop.SERVICE`, if the message is of a type that is not served.
    """
    if message_type == DHCP_DISCOVER:
        return DHCP_ACK if DHCP_RAPID_COMMIT in options else DHCP_OFFER
    if message_type == DHCP_REQUEST:
        if _fixed(options, DHCP_SERVER_IDENTIFIER, 4) not in (None, ip4.gateway):
            return None
        wanted = {client, _fixed(options, DHCP_REQUESTED_ADDRESS, 4) or UNSPECIFIED[V4]}
        return DHCP_ACK if wanted <= {ip4.address, UNSPECIFIED[V4]} else DHCP_NAK
    if message_type == DHCP_INFORM:
        return DHCP_ACK
    if message_type in (DHCP_RELEASE, DHCP_DECLINE):
        return None
    raise PacketError(Drop.SERVICE)


def _refusal(ip4: FamilyNetwork) -> dict[int, bytes]:
    return {
        DHCP_MESSAGE_TYPE: bytes((DHCP_NAK,)),
        DHCP_SERVER_IDENTIFIER: ip4.gateway,
        DHCP_TEXT: REFUSAL,
    }


def _contents(
    network: GuestNetwork, ip4: FamilyNetwork, kind: int | None, informs: bool, options: Options
) -> dict[int, bytes]:
    """Return all options of a reply except the search list, by code.

    :param network: the guest's network.
    :param ip4: its IPv4 part.
    :param kind: message type of the reply, None for BOOTP.
    :param informs: whether the request is INFORM.
    :param options: the client's.
    """
    assert ip4.address is not None
    mask = 0xFFFFFFFF << (32 - ip4.prefix) & 0xFFFFFFFF
    contents = {
        DHCP_SUBNET_MASK: mask.to_bytes(4, "big"),
        DHCP_ROUTER: ip4.gateway if ip4.routed else b"",
        DHCP_RESOLVERS: b"".join(ip4.resolvers),
        DHCP_HOST_NAME: encode_text(network.hostname),
        DHCP_MTU: network.mtu.to_bytes(2, "big") if network.mtu else b"",
        DHCP_LEASE_TIME: DHCP_INFINITE.to_bytes(4, "big"),
        DHCP_SERVER_IDENTIFIER: ip4.gateway,
    }
    if network.fqdn:
        contents[DHCP_CLIENT_FQDN] = _fqdn(network.fqdn, options)
    if (int.from_bytes(ip4.gateway, "big") ^ int.from_bytes(ip4.address, "big")) & mask:
        # The gateway is outside the subnet: a route to it on the link, and a default route through it (RFC 3442).
        on_link = bytes((HOST_ROUTE_BITS,)) + ip4.gateway + UNSPECIFIED[V4]
        contents[DHCP_CLASSLESS_ROUTES] = on_link + (b"\0" + ip4.gateway if ip4.routed else b"")
    for code in (DHCP_LEASE_TIME,) if informs else BEYOND_BOOTP if kind is None else ():
        del contents[code]
    contents = {code: data for code, data in contents.items() if data}
    if kind is not None:
        contents[DHCP_MESSAGE_TYPE] = bytes((kind,))
        if kind == DHCP_ACK and options.get(DHCP_MESSAGE_TYPE) == bytes((DHCP_DISCOVER,)):
            contents[DHCP_RAPID_COMMIT] = b""
    return contents


def _fqdn(name: str, options: Options) -> bytes:
    """Return the client FQDN option, empty for a client that has neither sent nor requested it (RFC 4702, section 4).

    The server updates no DNS records, and says so in the flags. The name has the encoding of the client's own.

    :param name: the guest's fully qualified name.
    :param options: the client's.
    """
    sent = options.get(DHCP_CLIENT_FQDN)
    if sent is None and DHCP_CLIENT_FQDN not in options.get(DHCP_PARAMETER_LIST, b""):
        return b""
    client_flags = sent[0] if sent else DHCP_FQDN_WIRE_FORMAT
    flags = DHCP_FQDN_NO_UPDATES | client_flags & DHCP_FQDN_WIRE_FORMAT
    if client_flags & DHCP_FQDN_SERVER_UPDATES:
        flags |= DHCP_FQDN_OVERRIDDEN
    encoded = encode_name(name) if flags & DHCP_FQDN_WIRE_FORMAT else encode_text(name)
    return DHCP_FQDN_CODEC.pack(flags=flags) + encoded


def _build(contents: dict[int, bytes], search: tuple[str, ...], kind: int | None, options: Options) -> bytes:
    """Build the options of a reply in order, as many as the client accepts, padded to `OPTIONS_MINIMUM`.

    :param contents: all options except the search list.
    :param search: names of the search list.
    :param kind: message type of the reply, None for BOOTP.
    :param options: the client's.
    """
    requested = options.get(DHCP_PARAMETER_LIST, b"")
    if search and kind != DHCP_NAK:
        contents = {**contents, DHCP_SEARCH_LIST: b""}
    room = _room(kind, options) - sum(_size(contents[code]) for code in REQUIRED if code in contents)
    chosen = []
    for code in dict.fromkeys((DHCP_MESSAGE_TYPE, *requested, *sorted(contents))):
        data = contents.get(code)
        if data is None:
            continue
        if code == DHCP_SEARCH_LIST:
            data = compress_names(search, room - _heads(room))
            if not data:
                continue
        if code not in REQUIRED:
            if _size(data) > room:
                continue
            room -= _size(data)
        for start in range(0, max(len(data), 1), OPTION_MAXIMUM):
            chosen.append((code, data[start : start + OPTION_MAXIMUM]))
    return DHCP_OPTIONS.build(chosen).ljust(OPTIONS_MINIMUM, b"\0")


def _room(kind: int | None, options: Options) -> int:
    """Return the bytes that options may fill, without the end option.

    :param kind: message type of the reply, None for BOOTP.
    :param options: the client's.
    """
    if kind is None:
        return OPTIONS_MINIMUM - 1
    maximum = int.from_bytes(_fixed(options, DHCP_MAXIMUM_SIZE, 2) or b"", "big")
    return max(maximum, DATAGRAM_BYTES) - HEADERS_BYTES - DHCP_CODEC.size - len(DHCP_COOKIE) - 1


def _size(data: bytes) -> int:
    """Return the bytes of an option with `data`, which may have to be split."""
    return len(data) + OPTION_HEAD_BYTES * max(-(-len(data) // OPTION_MAXIMUM), 1)


def _heads(room: int) -> int:
    """Return the bytes of the heads of an option that is split to fill `room` bytes."""
    return OPTION_HEAD_BYTES * -(-room // (OPTION_MAXIMUM + OPTION_HEAD_BYTES))
