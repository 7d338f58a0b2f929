"""What moves many datagrams per system call, feature by feature, so that each can be missing or switched off alone.

Without any of them every datagram crosses on its own; what is delivered, and in which order, is the same.
"""

from __future__ import annotations

from enum import Enum


class Feature(Enum):
    """A way to move more than one datagram at once. The value is its name on the command line."""

    BATCH = "batch"
    """recvmmsg with many slots (Linux 2.6.33)."""
    GRO = "gro"
    """UDP_GRO: the kernel joins what one sender sent at once (Linux 5.0)."""
    GSO = "gso"
    """UDP_SEGMENT: the kernel cuts what is sent at once (Linux 4.18)."""
    USO = "uso"
    """Superframes on the tap, both ways (TUN_F_USO4 and TUN_F_USO6, Linux 6.2)."""
    JOIN = "join"
    """Frames from the tap that repeat are joined to one send; of use with GSO only."""


ALL = frozenset(Feature)
NAMES = tuple(feature.value for feature in Feature)
