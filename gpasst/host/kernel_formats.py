"""The structures that the host's kernel passes to gpasst, declared once, by the rules of `gpasst.formats`.

They are socket addresses, the message headers of `recvmmsg` and its control messages, entries of sockets' error queues,
messages of netlink's sock_diag, and entries of rings.

NOTE: integers are in native byte order, except ports, which are big-endian. Sizes and offsets are those of 64-bit
Linux.
"""

from __future__ import annotations

from typing import Any

from construct import Bytes, Default, FormatField, Int8ub, Int16ub, Int32sn, Int32un, Int64un

from gpasst.declare import Header


def _zero(unit: Any) -> Any:
    """Return a field whose default is zero."""
    return Default(unit, 0)


# --- Socket addresses and messages --------------------------------------------------------------------------

SOCKADDR_IN = Header(
    "family" / FormatField("=", "H"),
    "port" / Int16ub,
    "address" / Bytes(4),
    "padding" / Default(Bytes(8), bytes(8)),
)
"""Socket address of IPv4, 16 bytes (linux/in.h: struct sockaddr_in)."""

SOCKADDR_IN6 = Header(
    "family" / FormatField("=", "H"),
    "port" / Int16ub,
    "flow" / _zero(Int32un),
    "address" / Bytes(16),
    "scope" / _zero(Int32un),
)
"""Socket address of IPv6, 28 bytes (linux/in6.h: struct sockaddr_in6).

`scope` is the interface index of a link-local address, else 0.
"""

IOVEC = Header(
    "base" / Int64un,
    "length" / Int64un,
)
"""One buffer of a scattered receive, 16 bytes (linux/uio.h: struct iovec): its address and its bytes."""

MMSGHDR = Header(
    "name" / Int64un,
    "name_length" / Int32un,
    "name_padding" / _zero(Int32un),
    "vectors" / Int64un,
    "vectors_count" / Int64un,
    "control" / Int64un,
    "control_length" / Int64un,
    "flags" / _zero(Int32sn),
    "flags_padding" / _zero(Int32un),
    "length" / _zero(Int32un),
    "length_padding" / _zero(Int32un),
)
"""One message of `recvmmsg`, 64 bytes with the compiler's padding (linux/socket.h: struct mmsghdr).

`name`, `vectors` and `control` are addresses: of the sender's socket address, of the `IOVEC` array and of the control
messages. The kernel writes `length`, the bytes received, and replaces `name_length` and `control_length` by those used.
"""

CMSGHDR = Header(
    "length" / Int64un,
    "level" / Int32sn,
    "type" / Int32sn,
)
"""Head of a control message, 16 bytes (linux/socket.h: struct cmsghdr).

`length` includes this head and the value, but not the padding to 8 bytes that follows.
"""

IN_PKTINFO = Header(
    "interface" / _zero(Int32sn),
    "local" / Bytes(4),
    "destination" / Default(Bytes(4), bytes(4)),
)
"""Value of IP_PKTINFO, 12 bytes (linux/in.h: struct in_pktinfo).

`local` (ipi_spec_dst) is the host's address that a datagram was received at, or is sent from; `destination` (ipi_addr)
is the one in its header, which for a broadcast is another.
"""

IN6_PKTINFO = Header(
    "address" / Bytes(16),
    "interface" / Int32un,
)
"""Value of IPV6_PKTINFO, 20 bytes (linux/ipv6.h: struct in6_pktinfo)."""

# --- Errors and netlink -------------------------------------------------------------------------------------

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
device that the socket is bound to, or 0. `cookie` is unique to the socket in its namespace.
The queues are in bytes.
"""

# --- Rings --------------------------------------------------------------------------------------------------

IO_URING_PARAMS = Header(
    "submissions" / _zero(Int32un),
    "completions" / _zero(Int32un),
    "flags" / Int32un,
    "thread_cpu" / _zero(Int32un),
    "thread_idle" / _zero(Int32un),
    "features" / _zero(Int32un),
    "workers" / _zero(Int32un),
    "reserved" / Default(Bytes(12), bytes(12)),
    "submission_head" / _zero(Int32un),
    "submission_tail" / _zero(Int32un),
    "submission_mask" / _zero(Int32un),
    "submission_entries" / _zero(Int32un),
    "submission_flags" / _zero(Int32un),
    "submission_dropped" / _zero(Int32un),
    "submission_array" / _zero(Int32un),
    "submission_reserved" / _zero(Int32un),
    "submission_user" / _zero(Int64un),
    "completion_head" / _zero(Int32un),
    "completion_tail" / _zero(Int32un),
    "completion_mask" / _zero(Int32un),
    "completion_entries" / _zero(Int32un),
    "completion_overflow" / _zero(Int32un),
    "completion_array" / _zero(Int32un),
    "completion_flags" / _zero(Int32un),
    "completion_reserved" / _zero(Int32un),
    "completion_user" / _zero(Int64un),
)
"""Parameters of a ring, 120 bytes (linux/io_uring.h: struct io_uring_params).

The kernel writes the numbers of entries, IORING_FEAT_* in `features`, and offsets in the rings that it shares (struct
io_sqring_offsets and io_cqring_offsets).
"""

IO_URING_SQE = Header(
    "operation" / Int8ub,
    "flags" / _zero(Int8ub),
    "priority" / _zero(FormatField("=", "H")),
    "descriptor" / _zero(Int32sn),
    "offset" / _zero(Int64un),
    "address" / _zero(Int64un),
    "length" / _zero(Int32un),
    "call_flags" / _zero(Int32un),
    "user" / _zero(Int64un),
    "buffer" / _zero(FormatField("=", "H")),
    "personality" / _zero(FormatField("=", "H")),
    "name_length" / _zero(FormatField("=", "H")),
    "padding" / Default(Bytes(18), bytes(18)),
)
"""A submission: one call in a ring, 64 bytes (linux/io_uring.h: struct io_uring_sqe).

`address` is that of the payload, or of a `MMSGHDR`; `offset` is the address of a socket address in IORING_OP_SEND, and
`name_length` the bytes of that. `call_flags` are MSG_* or RWF_*; `user` comes back with the result.
"""

IO_URING_CQE = Header(
    "user" / Int64un,
    "result" / Int32sn,
    "flags" / _zero(Int32un),
)
"""A completion: the result of a call in a ring, 16 bytes (linux/io_uring.h: struct io_uring_cqe).

`result` is what the call returns, or the negated errno.
"""

IO_URING_RESTRICTION = Header(
    "kind" / FormatField("=", "H"),
    "value" / Int8ub,
    "padding" / Default(Bytes(13), bytes(13)),
)
"""What a ring may do, 16 bytes (linux/io_uring.h: struct io_uring_restriction): a call, or flags of entries."""
