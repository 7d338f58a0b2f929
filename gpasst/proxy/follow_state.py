"""What `gpasst.proxy.forwarder` remembers of the automatic listeners of one protocol on one side between two looks."""

from __future__ import annotations

from collections.abc import Collection

from gpasst.flow.listeners import BindAddress, ListenerSpec


class FollowState:
    """The automatic listeners of one protocol on one side.

    :ivar seen: keys of the last list of sockets bound on the other side.
    :ivar specs: the listeners that this list asks for.
    :ivar pending: those of them that could not be opened yet.
    :ivar missing: open listeners that the last list did not ask for.
    :ivar neighbours: keys of the last list of sockets on this side, where that matters.
    :ivar claimed: listeners whose port a program on this side has bound itself.
    :ivar full: whether some were left out for the limit of open files.
    """

    __slots__ = ("claimed", "full", "missing", "neighbours", "pending", "seen", "specs")

    def __init__(self) -> None:
        self.seen: Collection[bytes] = ()
        self.specs: dict[BindAddress, ListenerSpec] = {}
        self.pending: list[ListenerSpec] = []
        self.missing: set[BindAddress] = set()
        self.neighbours: Collection[bytes] = ()
        self.claimed: set[BindAddress] = set()
        self.full = False
