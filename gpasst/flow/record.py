"""Flows and forwards as users see them: plain records, for every protocol."""

from __future__ import annotations

from gpasst.records import dataclass


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked peer, splice pair or connection, as both sides see it.

    :ivar protocol: ``"udp"`` or ``"tcp"``.
    :ivar guest: (address, port) of the guest.
    :ivar shown: (address, port) of the peer as the guest sees it.
    :ivar remote: (address, port) of the peer as the host sees it.
    :ivar port: the host's port that stands for the guest's.
    :ivar idle: whole seconds since the last activity.
    :ivar spliced: whether it passes through a splice pair rather than the tap.
    :ivar state: state of a TCP connection on the guest's side, as RFC 9293 names it (section 3.3.2); empty for UDP.
    """

    protocol: str
    guest: tuple[str, int]
    shown: tuple[str, int]
    remote: tuple[str, int]
    port: int
    idle: int
    spliced: bool = False
    state: str = ""


@dataclass(frozen=True, slots=True)
class Forward:
    """One open listener.

    :ivar protocol: ``"udp"`` or ``"tcp"``.
    :ivar address: address that it is bound to; the unspecified one for every address.
    :ivar port: port that it is bound to.
    :ivar interface: interface that it is bound to, None for every one.
    :ivar target: port of the other side that it leads to.
    :ivar target_address: address of the other side, None for the guest's own, or the one that was addressed.
    :ivar inside: whether it listens in the namespace and leads to the host.
    :ivar automatic: whether it is open only while its target is bound on the other side.
    :ivar chosen: whether the kernel chose its port.
    """

    protocol: str
    address: str
    port: int
    interface: str | None
    target: int
    target_address: str | None = None
    inside: bool = False
    automatic: bool = False
    chosen: bool = False
