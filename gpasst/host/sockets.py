"""The host's own sockets: how they are made, bound and told apart.

Everything here uses the interpreter's C socket class directly: it is never monkey-patched, and its calls are the
shortest way to the kernel.
"""

from __future__ import annotations

import errno
from _socket import if_nametoindex, inet_ntop
from _socket import socket as RawSocket  # a class
from typing import Any

from gpasst.counters import Drop
from gpasst.errors import ConfigurationError, PacketError, PlatformError
from gpasst.features import ALL, Feature
from gpasst.flow.listeners import BindAddress
from gpasst.flow.network import FamilyNetwork
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    IP_FREEBIND,
    IP_PKTINFO,
    IP_RECVERR,
    IP_RECVTOS,
    IP_RECVTTL,
    IP_TTL,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_FREEBIND,
    IPV6_RECVERR,
    IPV6_RECVHOPLIMIT,
    IPV6_RECVPKTINFO,
    IPV6_RECVTCLASS,
    IPV6_UNICAST_HOPS,
    IPV6_V6ONLY,
    SO_BINDTODEVICE,
    SO_RCVBUF,
    SO_RCVBUFFORCE,
    SO_SNDBUF,
    SO_SNDBUFFORCE,
    SOCK_DGRAM,
    SOL_SOCKET,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
)
from gpasst.packet.address import ANY
from gpasst.udp.header import DEFAULT_TOS_TTL
from gpasst.udp.mapping import UdpSocket

BUFFER_BYTES = 8 << 20  # asked for; the kernel grants net.core.rmem_max unless privileged


def text(address: bytes) -> str:
    """Turn 4 or 16 bytes into an address's text."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def socket_address(address: bytes, port: int, scope: int = 0) -> tuple[Any, ...]:
    """Give the address tuple that socket calls take."""
    return (text(address), port) if len(address) == 4 else (text(address), port, 0, scope)


def family_constant(family: int) -> int:
    """Give AF_INET or AF_INET6 for 4 or 6."""
    return AF_INET if family == 4 else AF_INET6


def new_udp_socket(family: int, gro: bool, packet_info: bool) -> RawSocket:
    """Make an unbound UDP socket of `family`, 4 or 6, on the host; see `prepare`.

    :raises OSError: as the kernel says.
    """
    return prepare(RawSocket(family_constant(family), SOCK_DGRAM, 0), family, gro, packet_info)


def prepare(sock: RawSocket, family: int, gro: bool, packet_info: bool) -> RawSocket:
    """Give a new UDP socket the options that all have: it never waits, and carries one family only.

    :param sock: the socket; closed on failure.
    :param family: 4 or 6.
    :param gro: let the kernel join datagrams of one sender.
    :param packet_info: report the local address of every datagram.
    :raises OSError: as the kernel says.
    """
    try:
        sock.setblocking(False)
        for forced, plain in ((SO_RCVBUFFORCE, SO_RCVBUF), (SO_SNDBUFFORCE, SO_SNDBUF)):
            try:
                sock.setsockopt(SOL_SOCKET, forced, BUFFER_BYTES)
            except OSError:
                sock.setsockopt(SOL_SOCKET, plain, BUFFER_BYTES)
        if family == 6:
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        if packet_info:
            level, option = (IPPROTO_IP, IP_PKTINFO) if family == 4 else (IPPROTO_IPV6, IPV6_RECVPKTINFO)
            sock.setsockopt(level, option, 1)
        if gro:
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:
        sock.close()
        raise
    return sock


# What sockets that stand for the guest's have over those of splice pairs: they keep the ICMP errors that their
# datagrams meet (`error_queue`), tell the mark of what they receive, and send with the ordinary one where
# none is given.
STAND_INS = {
    4: (IPPROTO_IP, ((IP_RECVERR, 1), (IP_RECVTOS, 1), (IP_RECVTTL, 1), (IP_TTL, DEFAULT_TOS_TTL))),
    6: (
        IPPROTO_IPV6,
        ((IPV6_RECVERR, 1), (IPV6_RECVTCLASS, 1), (IPV6_RECVHOPLIMIT, 1), (IPV6_UNICAST_HOPS, DEFAULT_TOS_TTL)),
    ),
}


def stand_in(sock: RawSocket, family: int) -> None:
    """Let a socket stand for the guest's.

    :param sock: the socket.
    :param family: 4 or 6.
    :raises OSError: as the kernel says.
    """
    level, options = STAND_INS[family]
    for option, value in options:
        sock.setsockopt(level, option, value)


def supported() -> frozenset[Feature]:
    """Find out which features of sockets the kernel has, by trying them."""
    features = set(ALL)
    sock = RawSocket(AF_INET, SOCK_DGRAM, 0)
    for feature, option, value in ((Feature.GRO, UDP_GRO, 1), (Feature.GSO, UDP_SEGMENT, 0)):
        try:
            sock.setsockopt(SOL_UDP, option, value)
        except OSError:
            features.discard(feature)
    sock.close()
    return frozenset(features)


def open_own(network: FamilyNetwork, port: int, gro: bool) -> UdpSocket:
    """Open a mapping's own socket.

    :param network: the family's network, for the outbound address and interface.
    :param port: the port wanted; another is taken if it is not free, or if it is 0.
    :param gro: as in `new_udp_socket`.
    :raises PacketError: if no socket can be had.
    """
    family = network.family
    sock = None
    try:
        sock = new_udp_socket(family, gro, packet_info=False)
        stand_in(sock, family)
        if network.outbound_interface:
            sock.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, network.outbound_interface.encode())
        host = text(network.outbound) if network.outbound else ANY[family]
        try:
            sock.bind((host, port))
        except OSError:
            if not port:
                raise
            sock.bind((host, 0))
    except OSError as error:
        if sock is not None:
            sock.close()
        raise PacketError(Drop.NO_SOCKET, f"no host socket: {error.strerror}") from error
    return UdpSocket(family, sock.getsockname()[1], sock)


def bind_listener(sock: RawSocket, place: BindAddress, freebind: bool) -> None:
    """Bind a listener's socket; it is closed on failure.

    :param sock: a prepared socket of the side and family of `place`.
    :param freebind: allow an address that the host does not have yet.
    :raises OSError: as the kernel says.
    """
    try:
        if place.interface:
            sock.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, place.interface.encode())
        if freebind:
            level, option = (IPPROTO_IP, IP_FREEBIND) if place.family == 4 else (IPPROTO_IPV6, IPV6_FREEBIND)
            sock.setsockopt(level, option, 1)
        scope = 0
        if place.interface and place.family == 6 and not place.inside:
            scope = if_nametoindex(place.interface)
        sock.bind((place.address, place.port) if place.family == 4 else (place.address, place.port, 0, scope))
    except OSError:
        sock.close()
        raise


def listener_error(error: OSError, place: BindAddress, rule: str) -> ConfigurationError | PlatformError:
    """Say in one line why a port cannot be forwarded, and what to do.

    :param error: what the kernel said.
    :param place: where the listener was to be.
    :param rule: the rule that asked for it, as the user wrote it.
    """
    what = f"cannot forward udp {place} (rule {rule})"
    if error.errno == errno.ENODEV:
        return ConfigurationError(f"{what}: no such interface", "list them with: ip link")
    if error.errno == errno.EADDRINUSE:
        return PlatformError(f"{what}: the port is in use", "choose another, or end its user")
    if error.errno == errno.EADDRNOTAVAIL:
        side, remedy = ("namespace", "") if place.inside else ("host", "; or add --freebind")
        return ConfigurationError(
            f"{what}: the {side} does not have that address", f"list them with: ip address{remedy}"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        if place.interface and place.port >= 1024:
            return PlatformError(f"{what}: binding to {place.interface} is not permitted", "leave the interface out")
        return PlatformError(
            f"{what}: a port below {place.port + 1} is not permitted",
            f"lower the limit: sysctl net.ipv4.ip_unprivileged_port_start={place.port}",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return PlatformError(f"{what}: too many open files", "raise ulimit -n or forward fewer ports")
    return PlatformError(f"{what}: {error.strerror}", "look the error up in errno(3)")


def ping_socket(family: int, identifier: int) -> RawSocket:
    """Open an unprivileged echo socket (Linux 3.0, 3.11 for IPv6).

    :param family: 4 or 6.
    :param identifier: the guest's echo identifier, kept if it is free.
    :raises OSError: if net.ipv4.ping_group_range does not admit the process.
    """
    sock = RawSocket(family_constant(family), SOCK_DGRAM, IPPROTO_ICMP if family == 4 else IPPROTO_ICMPV6)
    try:
        sock.setblocking(False)
        try:
            sock.bind((ANY[family], identifier))
        except OSError:
            sock.bind((ANY[family], 0))
        stand_in(sock, family)
    except OSError:
        sock.close()
        raise
    return sock
