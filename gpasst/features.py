"""The ways to move several datagrams in one system call; each may be missing or switched off alone.

Without any of them every datagram takes a call of its own; the datagrams delivered, and their order, are the same.
"""

from __future__ import annotations

from enum import Enum


class Feature(Enum):
    """One way to move several datagrams in one system call. The value is its name on the command line."""

    BATCH = "batch"
    """recvmmsg with many slots (Linux 2.6.33)."""
    GRO = "gro"
    """UDP_GRO: the kernel joins received datagrams of one sender (Linux 5.0)."""
    GSO = "gso"
    """UDP_SEGMENT: the kernel splits one send into datagrams (Linux 4.18)."""
    USO = "uso"
    """Superframes on the tap, in both directions (TUN_F_USO4 and TUN_F_USO6, Linux 6.2)."""
    JOIN = "join"
    """Equal frames that are read from the link one by one become one send; needs GSO."""
    TSO = "tso"
    """Superframes of TCP on the tap, in both directions (TUN_F_TSO4 and TUN_F_TSO6)."""
    PEEK = "peek"
    """SO_PEEK_OFF of TCP sockets: a peek begins behind what was peeked before (Linux 6.9)."""
    RING = "ring"
    """io_uring: calls about different sockets, or frames, are made in one (Linux 6.1)."""


ALL = frozenset(Feature)
NAMES = tuple(feature.value for feature in Feature)
