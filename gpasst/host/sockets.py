"""The host's own sockets: making, preparing and binding them.

All code here uses the interpreter's C socket class directly: it is never monkey-patched, and its calls have the least
overhead.
"""

from __future__ import annotations

import errno
from _socket import if_nametoindex, inet_ntop
from _socket import socket as RawSocket  # a class
from collections.abc import Callable
from functools import lru_cache

from gpasst.counters import Drop
from gpasst.errors import ConfigurationError, PacketError, PlatformError
from gpasst.features import ALL, Feature
from gpasst.flow.listeners import BindAddress
from gpasst.flow.network import FamilyNetwork
from gpasst.flow.sender import SocketAddress
from gpasst.linux import (
    AF_INET,
    AF_INET6,
    IP_FREEBIND,
    IP_MULTICAST_LOOP,
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
    IPV6_MULTICAST_LOOP,
    IPV6_RECVERR,
    IPV6_RECVHOPLIMIT,
    IPV6_RECVPKTINFO,
    IPV6_RECVTCLASS,
    IPV6_UNICAST_HOPS,
    IPV6_V6ONLY,
    SO_BINDTODEVICE,
    SO_RCVBUF,
    SO_RCVBUFFORCE,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SO_SNDBUF,
    SO_SNDBUFFORCE,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    SOL_UDP,
    UDP_GRO,
    UDP_SEGMENT,
)
from gpasst.packet.address import ANY, IP4_BYTES, V4, V6
from gpasst.udp.header import DEFAULT_TOS_TTL
from gpasst.udp.mapping import UdpSocket

BUFFER_BYTES = 8 << 20  # requested; without privileges the kernel grants at most net.core.rmem_max and wmem_max
BACKLOG = (
    4096  # connections that a listener keeps for the proxy; the kernel's own limit (net.core.somaxconn, Linux 5.4)
)
UNPRIVILEGED_PORT = 1024  # net.ipv4.ip_unprivileged_port_start, as Linux sets it
ADDRESSES_SHARED = 256  # address tuples that are held once for all who send there

Bind = Callable[[RawSocket, SocketAddress], object]


def text(address: bytes) -> str:
    """Return the text of an address of 4 or 16 bytes."""
    return inet_ntop(AF_INET if len(address) == IP4_BYTES else AF_INET6, address)


def socket_address(address: bytes, port: int, scope: int = 0) -> SocketAddress:
    """Return the address tuple of socket calls.

    :param address: 4 or 16 bytes.
    :param port: 0 to 65535.
    :param scope: interface index of a link-local address, else 0.
    """
    return _shared(address, port, scope)


@lru_cache(ADDRESSES_SHARED)
def _shared(address: bytes, port: int, scope: int) -> SocketAddress:
    return (text(address), port) if len(address) == IP4_BYTES else (text(address), port, 0, scope)


def family_constant(family: int) -> int:
    """Return AF_INET or AF_INET6 for `family`, 4 or 6."""
    return AF_INET if family == V4 else AF_INET6


def new_udp_socket(family: int, gro: bool, packet_info: bool) -> RawSocket:
    """Make an unbound UDP socket on the host; parameters as for `prepare`.

    :raises OSError: if the kernel refuses the socket or an option.
    """
    return prepare(RawSocket(family_constant(family), SOCK_DGRAM, 0), family, gro, packet_info)


def prepare(sock: RawSocket, family: int, gro: bool, packet_info: bool) -> RawSocket:
    """Set the options of all UDP sockets on a new one and return it: non-blocking, one family only, large buffers.

    :param sock: the socket; closed on failure.
    :param family: 4 or 6.
    :param gro: let the kernel join datagrams of one sender.
    :param packet_info: report the local address of every datagram.
    :raises OSError: if the kernel refuses an option.
    """
    try:
        sock.setblocking(False)
        for forced, plain in ((SO_RCVBUFFORCE, SO_RCVBUF), (SO_SNDBUFFORCE, SO_SNDBUF)):
            try:
                sock.setsockopt(SOL_SOCKET, forced, BUFFER_BYTES)
            except OSError:
                sock.setsockopt(SOL_SOCKET, plain, BUFFER_BYTES)
        if family == V6:
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        if packet_info:
            level, option = (IPPROTO_IP, IP_PKTINFO) if family == V4 else (IPPROTO_IPV6, IPV6_RECVPKTINFO)
            sock.setsockopt(level, option, 1)
        if gro:
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:
        sock.close()
        raise
    return sock


# Options of a socket that stands for the guest's, beyond those of splice pairs: it keeps ICMP errors (`error_queue`),
# reports TOS and TTL of received datagrams, and sends with the default TTL where a send sets none. Its multicast leaves
# by the host's interface only: looped back, it would reach every listener of the host that is bound to the wildcard.
STAND_INS = {
    V4: (
        IPPROTO_IP,
        ((IP_RECVERR, 1), (IP_RECVTOS, 1), (IP_RECVTTL, 1), (IP_TTL, DEFAULT_TOS_TTL), (IP_MULTICAST_LOOP, 0)),
    ),
    V6: (
        IPPROTO_IPV6,
        (
            (IPV6_RECVERR, 1),
            (IPV6_RECVTCLASS, 1),
            (IPV6_RECVHOPLIMIT, 1),
            (IPV6_UNICAST_HOPS, DEFAULT_TOS_TTL),
            (IPV6_MULTICAST_LOOP, 0),
        ),
    ),
}


def stand_in(sock: RawSocket, family: int) -> None:
    """Set the options of a socket that stands for the guest's (`STAND_INS`).

    :param sock: the socket.
    :param family: 4 or 6.
    :raises OSError: if the kernel refuses an option.
    """
    level, options = STAND_INS[family]
    for option, value in options:
        sock.setsockopt(level, option, value)


def supported() -> frozenset[Feature]:
    """Return all features except those of sockets that this kernel lacks, found out by trying them.

    :raises PlatformError: if there is no socket to try them on.
    """
    features = set(ALL)
    try:
        sock = RawSocket(AF_INET, SOCK_DGRAM, 0)
    except OSError as error:
        raise PlatformError(f"no socket: {error.strerror}", "raise ulimit -n") from error
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
    :param port: the preferred port; if it is 0 or not free, the kernel chooses one.
    :param gro: as in `prepare`.
    :raises PacketError: `Drop.NO_SOCKET`, if no socket can be opened.
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
        return UdpSocket(family, sock.getsockname()[1], sock)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise PacketError(Drop.NO_SOCKET, f"no host socket: {error.strerror}") from error


def bind_listener(
    sock: RawSocket, at: BindAddress, freebind: bool, shared: bool = False, bind: Bind = RawSocket.bind
) -> int:
    """Bind a listener's socket, let one of TCP listen, and return its port; the socket is closed on failure.

    :param sock: a prepared socket of the side and family of `at`.
    :param at: the address to bind to.
    :param freebind: allow an address that the host does not have yet.
    :param shared: let programs of the same user with SO_REUSEPORT, or for UDP any with SO_REUSEADDR, bind the same port
        afterwards.
    :param bind: binds it.
    :raises OSError: if the kernel refuses an option or the address.
    """
    try:
        if shared:
            sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            sock.setsockopt(SOL_SOCKET, SO_REUSEPORT, 1)
        if at.interface:
            sock.setsockopt(SOL_SOCKET, SO_BINDTODEVICE, at.interface.encode())
        if freebind:
            level, option = (IPPROTO_IP, IP_FREEBIND) if at.family == V4 else (IPPROTO_IPV6, IPV6_FREEBIND)
            sock.setsockopt(level, option, 1)
        scope = 0
        if at.interface and at.family == V6 and not at.inside:
            scope = if_nametoindex(at.interface)
        bind(sock, (at.address, at.port) if at.family == V4 else (at.address, at.port, 0, scope))
        if sock.type == SOCK_STREAM:
            sock.listen(BACKLOG)
        return at.port or int(sock.getsockname()[1])
    except OSError:
        sock.close()
        raise


def listener_error(error: OSError, protocol: str, at: BindAddress, rule: str) -> ConfigurationError | PlatformError:
    """Return the exception for a port that cannot be forwarded: the obstacle in one line, and the way past it.

    :param error: the kernel's error.
    :param protocol: the protocol's name in lower case.
    :param at: the address of the listener.
    :param rule: the rule that requires it, as the user wrote it.
    """
    what = f"cannot forward {protocol} {at} (rule {rule})"
    if error.errno == errno.ENODEV:
        return ConfigurationError(f"{what}: no such interface", "list them with: ip link")
    if error.errno == errno.EADDRINUSE:
        return PlatformError(f"{what}: the port is in use", "choose another, or end its user")
    if error.errno == errno.EADDRNOTAVAIL:
        side, remedy = ("namespace", "") if at.inside else ("host", "; or add --freebind")
        return ConfigurationError(
            f"{what}: the {side} does not have that address", f"list them with: ip address{remedy}"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        if at.interface and at.port >= UNPRIVILEGED_PORT:
            return PlatformError(f"{what}: binding to {at.interface} is not permitted", "leave the interface out")
        return PlatformError(
            f"{what}: a port below {at.port + 1} is not permitted",
            f"lower the limit: sysctl net.ipv4.ip_unprivileged_port_start={at.port}",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return PlatformError(f"{what}: too many open files", "raise ulimit -n or forward fewer ports")
    return PlatformError(f"{what}: {error.strerror}", "look the error up in errno(3)")


def ping_socket(family: int, identifier: int) -> RawSocket:
    """Open an unprivileged echo socket (Linux 3.0; 3.11 for IPv6).

    :param family: 4 or 6.
    :param identifier: the guest's echo identifier, kept if it is free.
    :raises OSError: if net.ipv4.ping_group_range does not include a group of the process.
    """
    sock = RawSocket(family_constant(family), SOCK_DGRAM, IPPROTO_ICMP if family == V4 else IPPROTO_ICMPV6)
    try:
        sock.setblocking(False)
        # The kernel makes ping sockets with it on (INET_PROTOSW_REUSE), and serves either of two with one identifier.
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        try:
            sock.bind((ANY[family], identifier))
        except OSError:
            sock.bind((ANY[family], 0))
        stand_in(sock, family)
    except OSError:
        sock.close()
        raise
    return sock
