"""The structures that the host's kernel passes to gpasst, declared once, by the rules of `gpasst.formats`.

They are entries of sockets' error queues and messages of netlink's sock_diag.

NOTE: integers are in native byte order, except ports, which are big-endian.
"""

from __future__ import annotations

from typing import Any

from construct import Bytes, Default, FormatField, Int8ub, Int16ub, Int32sn, Int32un

from gpasst.codec import Codec, Header


def _zero(unit: Any) -> Any:
    """Return a field whose default is zero."""
    return Default(unit, 0)


EXTENDED_ERROR = Header(
    "errno" / Int32un,
    "origin" / Int8ub,
    "type" / Int8ub,
    "code" / Int8ub,
    "padding" / _zero(Int8ub),
    "info" / Int32un,
    "data" / _zero(Int32un),
)
"""An error in a socket's error queue, 16 bytes in native byte order (linux/errqueue.h: struct sock_extended_err).

`origin` is SO_EE_ORIGIN_*; `type` and `code` are those of the ICMP or ICMPv6 error, `info` is its MTU in bytes or its
pointer. The socket address of the offender, the node that sent the ICMP error, follows.
"""

NLMSG = Header(
    "length" / Int32un,
    "type" / FormatField("=", "H"),
    "flags" / FormatField("=", "H"),
    "sequence" / _zero(Int32un),
    "port" / _zero(Int32un),
)
"""Head of every netlink message, 16 bytes in native byte order (linux/netlink.h: struct nlmsghdr).

`length` includes this head, but not the padding to 4 bytes that follows; `port` is the netlink address of the
requesting socket.
"""

NLMSG_STATUS = Header("error" / Int32sn)
"""Status behind `NLMSG` in an error and at the end of a list: 0, or the negated errno (linux/netlink.h)."""

RTATTR = Header(
    "length" / FormatField("=", "H"),
    "type" / FormatField("=", "H"),
)
"""Head of a netlink attribute, 4 bytes in native byte order (linux/rtnetlink.h: struct rtattr).

`length` includes this head and the value, but not the padding to 4 bytes that follows.
"""

# Identity of a socket, 48 bytes (linux/inet_diag.h: struct inet_diag_sockid).
_SOCKET_ID = (
    "source_port" / _zero(Int16ub),
    "destination_port" / _zero(Int16ub),
    "source" / Default(Bytes(16), bytes(16)),
    "destination" / Default(Bytes(16), bytes(16)),
    "interface" / _zero(Int32un),
    "cookie" / Default(Bytes(8), bytes(8)),
)

INET_DIAG_REQUEST = Header(
    "family" / Int8ub,
    "protocol" / Int8ub,
    "extensions" / _zero(Int8ub),
    "padding" / _zero(Int8ub),
    "states" / Int32un,
    *_SOCKET_ID,
)
"""Request for a list of sockets, 56 bytes behind `NLMSG` (linux/inet_diag.h: struct inet_diag_req_v2).

`family` is AF_INET or AF_INET6; bit n of `states` selects sockets in TCP's state n.
"""

INET_DIAG = Header(
    "family" / Int8ub,
    "state" / Int8ub,
    "timer" / _zero(Int8ub),
    "retransmits" / _zero(Int8ub),
    *_SOCKET_ID,
    "expires" / _zero(Int32un),
    "receive_queue" / _zero(Int32un),
    "send_queue" / _zero(Int32un),
    "uid" / _zero(Int32un),
    "inode" / _zero(Int32un),
)
"""One socket, 72 bytes behind `NLMSG` and before its attributes (linux/inet_diag.h: struct inet_diag_msg).

The socket's own end is the source; an IPv4 address is the first 4 of its 16 bytes. `interface` is the index of the
device that the socket is bound to, or 0. `cookie` is a number that the kernel gives no other socket of the namespace.
The queues are in bytes.
"""

EXTENDED_ERROR_CODEC = Codec(EXTENDED_ERROR, "EXTENDED_ERROR")
NLMSG_CODEC = Codec(NLMSG, "NLMSG")
NLMSG_STATUS_CODEC = Codec(NLMSG_STATUS, "NLMSG_STATUS")
RTATTR_CODEC = Codec(RTATTR, "RTATTR")
INET_DIAG_REQUEST_CODEC = Codec(INET_DIAG_REQUEST, "INET_DIAG_REQUEST")
INET_DIAG_CODEC = Codec(INET_DIAG, "INET_DIAG")
