"""DHCPv6 (RFC 8415): a server that leases the guest's only address with an infinite lifetime.

Theory of operation: as with DHCP there is one guest, one address and no lease table. Messages are accepted by the rules
of RFC 8415, section 16, with the client's identifier required of all of them:

| Message | Server identifier | Reply |
|---|---|---|
| SOLICIT | absent | ADVERTISE, or REPLY if it has the rapid commit option |
| REQUEST, RENEW | this server's | REPLY; NotOnLink if an association holds an address that is not the guest's |
| CONFIRM | absent | REPLY, or NotOnLink in the same case |
| REBIND | absent | REPLY, in which other addresses have lifetime 0 (section 18.3.5) |
| INFORMATION-REQUEST | absent or this server's; no association | REPLY without address |
| RELEASE, DECLINE | this server's | REPLY with status Success (sections 18.3.7 and 18.3.8); no state changes |

A message to another server is ignored; one against these rules is malformed; other types, and messages to a unicast
address, are dropped as not served.

The first association of a message gets the address, those for ordinary addresses before those for temporary ones; the
others get status NoAddrsAvail. Every reply has the resolvers and the search list of the router advertisements,
requested or not. Associations for prefixes are ignored, as by a server without prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpasst.codec import Allowance
from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.flow.network import FamilyNetwork, GuestNetwork
from gpasst.packet.address import UNSPECIFIED, V6, is_loopback, is_multicast
from gpasst.packet.build import wrap_udp
from gpasst.packet.dhcp_wire import (
    DHCPV6_ADDRESS_CODEC,
    DHCPV6_ADVERTISE,
    DHCPV6_CLIENT_FQDN,
    DHCPV6_CLIENT_ID,
    DHCPV6_CLIENT_PORT,
    DHCPV6_CODEC,
    DHCPV6_CONFIRM,
    DHCPV6_DECLINE,
    DHCPV6_DUID_CODEC,
    DHCPV6_FQDN_CODEC,
    DHCPV6_FQDN_NO_UPDATES,
    DHCPV6_FQDN_OVERRIDDEN,
    DHCPV6_FQDN_SERVER_UPDATES,
    DHCPV6_IA_NA,
    DHCPV6_IA_NA_CODEC,
    DHCPV6_IA_TA,
    DHCPV6_IA_TA_CODEC,
    DHCPV6_IAADDR,
    DHCPV6_INFINITE,
    DHCPV6_INFORMATION_REQUEST,
    DHCPV6_NO_ADDRESSES,
    DHCPV6_NOT_ON_LINK,
    DHCPV6_OPTION_REQUEST,
    DHCPV6_OPTIONS,
    DHCPV6_OPTIONS_LIMIT,
    DHCPV6_RAPID_COMMIT,
    DHCPV6_REBIND,
    DHCPV6_RELEASE,
    DHCPV6_RENEW,
    DHCPV6_REPLY,
    DHCPV6_REQUEST,
    DHCPV6_RESOLVERS,
    DHCPV6_SEARCH_LIST,
    DHCPV6_SERVER_ID,
    DHCPV6_SERVER_PORT,
    DHCPV6_SOLICIT,
    DHCPV6_STATUS_CODE,
    DHCPV6_STATUS_CODEC,
    DHCPV6_SUCCESS,
    MESSAGE_LIMIT,
)
from gpasst.packet.dns_names import encode_name, encode_names
from gpasst.packet.parse import Packet
from gpasst.records import dataclass
from gpasst.services.ndp import DNSSL_BYTES, RDNSS_LIMIT, router_address

EPOCH = 946684800  # 2000-01-01 00:00 UTC, in seconds since 1970
CLIENT_ID_MAXIMUM = 128  # bytes
CODE_BYTES = 2  # of each requested option (RFC 8415, section 21.7)
NOT_ON_LINK = b"Prefix not appropriate for link."
NO_ADDRESSES = b"One address is all there is."
HEADS = {DHCPV6_IA_NA: DHCPV6_IA_NA_CODEC, DHCPV6_IA_TA: DHCPV6_IA_TA_CODEC}

Option = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Server:
    """Settings of the server.

    :ivar network: the guest's network.
    :ivar identifier: the server's DUID.
    """

    network: GuestNetwork
    identifier: bytes


@dataclass(frozen=True, slots=True)
class Association:
    """An identity association of the client.

    :ivar kind: option code, `DHCPV6_IA_NA` or `DHCPV6_IA_TA` (temporary addresses).
    :ivar identifier: its IAID, 4 bytes.
    :ivar addresses: the addresses in it, 16 bytes each.
    """

    kind: int
    identifier: bytes
    addresses: tuple[bytes, ...]


def duid(mac: bytes, seconds: int) -> bytes:
    """Build the server's identifier from link-layer address and time (RFC 8415, section 11.2).

    :param mac: the host's as the guest sees it, 6 bytes.
    :param seconds: time of the start, in seconds since `EPOCH`.
    """
    return DHCPV6_DUID_CODEC.pack(seconds=seconds % (1 << 32), mac=mac)


def answer(server: Server, packet: Packet, data: bytes | memoryview, guest_mac: bytes) -> bytes | None:
    """Build the reply to a message to the DHCPv6 server's port.

    :param server: the settings.
    :param packet: the packet, for its addresses.
    :param data: payload of the UDP datagram.
    :param guest_mac: destination of the reply, 6 bytes.
    :return: the reply's frame; None for a message to another server.
    :raises PacketError: if the message is malformed, not served, or has an invalid source address; `Drop.EXCESSIVE`, if
        it has more than `MESSAGE_LIMIT` bytes or `DHCPV6_OPTIONS_LIMIT` options.
    """
    network = server.network.ip6
    assert network is not None
    if is_loopback(packet.source):
        raise PacketError(Drop.LOOPBACK_ADDRESS)
    if packet.source == UNSPECIFIED[V6] or is_multicast(packet.source):
        raise PacketError(Drop.UNSPECIFIED_ADDRESS)
    if not is_multicast(packet.destination):
        raise PacketError(Drop.SERVICE)
    if len(data) > MESSAGE_LIMIT:
        raise PacketError(Drop.EXCESSIVE)
    head = DHCPV6_CODEC.parse(data, Drop.MALFORMED_DHCPV6)
    allowance = Allowance(DHCPV6_OPTIONS_LIMIT)
    options = _parse(data[DHCPV6_CODEC.size :], allowance)
    if not _accepted(server, head["type"], options):
        return None
    kind, contents = _answer_to(server, network, head["type"], options, allowance)
    message = DHCPV6_CODEC.pack(type=kind, transaction=head["transaction"]) + DHCPV6_OPTIONS.build(contents)
    source = router_address(network)
    return wrap_udp(
        guest_mac,
        server.network.host_mac,
        source,
        packet.source,
        DHCPV6_SERVER_PORT,
        DHCPV6_CLIENT_PORT,
        message,
    )


def _parse(data: bytes | memoryview, allowance: Allowance) -> list[Option]:
    return DHCPV6_OPTIONS.parse(data, allowance, Drop.MALFORMED_DHCPV6)


def _first(options: Sequence[Option], wanted: int) -> bytes | None:
    """Return the data of the first option with code `wanted`, None if there is none."""
    return next((data for code, data in options if code == wanted), None)


def _accepted(server: Server, asked: int, options: Sequence[Option]) -> bool:
    """Return whether a message is for this server.

    :param server: the settings.
    :param asked: type of the message.
    :param options: its options.
    :raises PacketError: `Drop.SERVICE` if the type is not served, `Drop.MALFORMED_DHCPV6` if the message is invalid.
    """
    identifier = _first(options, DHCPV6_SERVER_ID)
    client = _first(options, DHCPV6_CLIENT_ID)
    if asked in (DHCPV6_SOLICIT, DHCPV6_CONFIRM, DHCPV6_REBIND):
        valid = identifier is None
    elif asked in (DHCPV6_REQUEST, DHCPV6_RENEW, DHCPV6_RELEASE, DHCPV6_DECLINE):
        valid = identifier is not None
    elif asked == DHCPV6_INFORMATION_REQUEST:
        valid = not any(code in HEADS for code, _ in options)
    else:
        raise PacketError(Drop.SERVICE)
    if not valid or not client or len(client) > CLIENT_ID_MAXIMUM:
        raise PacketError(Drop.MALFORMED_DHCPV6)
    return identifier in (None, server.identifier)


def _answer_to(
    server: Server, network: FamilyNetwork, asked: int, options: Sequence[Option], allowance: Allowance
) -> tuple[int, list[Option]]:
    """Return type and options of the reply.

    :param server: the settings.
    :param network: the guest's IPv6 network.
    :param asked: type of the message.
    :param options: its options.
    :param allowance: of the options within these.
    :raises PacketError: `Drop.MALFORMED_DHCPV6`, if an association is malformed; `Drop.EXCESSIVE`, if there are more
        options than allowed.
    """
    identity = DHCPV6_SERVER_ID, server.identifier
    client = DHCPV6_CLIENT_ID, _first(options, DHCPV6_CLIENT_ID) or b""
    if asked in (DHCPV6_RELEASE, DHCPV6_DECLINE):
        return DHCPV6_REPLY, [identity, client, _status(DHCPV6_SUCCESS)]
    associations = [_association(code, data, allowance) for code, data in options if code in HEADS]
    associations.sort(key=lambda association: association.kind)
    if asked in (DHCPV6_REQUEST, DHCPV6_RENEW, DHCPV6_CONFIRM):
        refused = [item for item in associations if any(address != network.address for address in item.addresses)]
        if refused:
            status = _status(DHCPV6_NOT_ON_LINK, NOT_ON_LINK)
            answered = [identity, *(_associated(item, [status]) for item in refused), client]
            # The status of a CONFIRM concerns the whole message (RFC 8415, section 18.3.3).
            return DHCPV6_REPLY, [*answered, status] if asked == DHCPV6_CONFIRM else answered
    answered = [identity]
    for index, association in enumerate(associations):
        answered.append(_associated(association, _assigned(network, association, asked, index == 0)))
    answered.append(client)
    if network.resolvers:
        answered.append((DHCPV6_RESOLVERS, b"".join(network.resolvers[:RDNSS_LIMIT])))
    search = encode_names(server.network.search, DNSSL_BYTES)
    if search:
        answered.append((DHCPV6_SEARCH_LIST, search))
    answered.extend(_fqdn(server.network.fqdn, options))
    if asked != DHCPV6_SOLICIT:
        return DHCPV6_REPLY, answered
    if _first(options, DHCPV6_RAPID_COMMIT) is None:
        return DHCPV6_ADVERTISE, answered
    return DHCPV6_REPLY, [*answered, (DHCPV6_RAPID_COMMIT, b"")]


def _association(kind: int, data: bytes, allowance: Allowance) -> Association:
    """Parse an identity association and the addresses in it; `allowance` is of the options in it."""
    codec = HEADS[kind]
    identifier = codec.parse(data, Drop.MALFORMED_DHCPV6)["identifier"]
    addresses = []
    for code, address in _parse(data[codec.size :], allowance):
        if code == DHCPV6_IAADDR:
            addresses.append(DHCPV6_ADDRESS_CODEC.parse(address, Drop.MALFORMED_DHCPV6)["address"])
            _parse(address[DHCPV6_ADDRESS_CODEC.size :], allowance)
    return Association(kind, identifier, tuple(addresses))


def _associated(association: Association, contents: Sequence[Option]) -> Option:
    """Build the option of an association with `contents`; its renewal and rebinding times are infinite."""
    if association.kind == DHCPV6_IA_TA:
        head = DHCPV6_IA_TA_CODEC.pack(identifier=association.identifier)
    else:
        head = DHCPV6_IA_NA_CODEC.pack(identifier=association.identifier, renew=DHCPV6_INFINITE, rebind=DHCPV6_INFINITE)
    return association.kind, head + DHCPV6_OPTIONS.build(contents)


def _assigned(network: FamilyNetwork, association: Association, asked: int, first: bool) -> list[Option]:
    """Return the options within the reply's association: the address or NoAddrsAvail.

    :param network: the guest's IPv6 network.
    :param association: the client's.
    :param asked: type of the message.
    :param first: whether it is the message's first association, which gets the address.
    """
    contents = [_status(DHCPV6_NO_ADDRESSES, NO_ADDRESSES)]
    if first and network.address:
        contents = [_address(network.address, DHCPV6_INFINITE)]
    if asked == DHCPV6_REBIND:
        contents += [_address(address, 0) for address in association.addresses if address != network.address]
    return contents


def _address(address: bytes, lifetime: int) -> Option:
    return DHCPV6_IAADDR, DHCPV6_ADDRESS_CODEC.pack(address=address, preferred=lifetime, valid=lifetime)


def _status(status: int, text: bytes = b"") -> Option:
    return DHCPV6_STATUS_CODE, DHCPV6_STATUS_CODEC.pack(status=status) + text


def _fqdn(name: str, options: Sequence[Option]) -> list[Option]:
    """Return the client FQDN option for a client that has sent or requested it (RFC 4704, section 6), else nothing.

    The server updates no DNS records, and says so in the flags.

    :param name: the guest's fully qualified name; may be empty.
    :param options: the client's.
    """
    if not name:
        return []
    sent = _first(options, DHCPV6_CLIENT_FQDN)
    requested = _first(options, DHCPV6_OPTION_REQUEST) or b""
    codes = {int.from_bytes(requested[at : at + CODE_BYTES], "big") for at in range(0, len(requested), CODE_BYTES)}
    if sent is None and DHCPV6_CLIENT_FQDN not in codes:
        return []
    flags = DHCPV6_FQDN_NO_UPDATES
    if sent and sent[0] & DHCPV6_FQDN_SERVER_UPDATES:
        flags |= DHCPV6_FQDN_OVERRIDDEN
    return [(DHCPV6_CLIENT_FQDN, DHCPV6_FQDN_CODEC.pack(flags=flags) + encode_name(name))]
