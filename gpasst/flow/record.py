"""What users see of flows and forwards: plain records, of every protocol."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked peer, in both views.

    :ivar protocol: ``"udp"``.
    :ivar guest: (address, port) of the guest.
    :ivar shown: (address, port) of the peer as the guest sees it.
    :ivar remote: (address, port) of the peer as the host sees it.
    :ivar port: the host's port that stands for the guest's.
    :ivar idle: seconds since it was last found active, to the second.
    :ivar spliced: whether it passes a splice pair rather than the tap.
    """

    protocol: str
    guest: tuple[str, int]
    shown: tuple[str, int]
    remote: tuple[str, int]
    port: int
    idle: int
    spliced: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """One open listener.

    :ivar protocol: ``"udp"``.
    :ivar address: address that it is bound to.
    :ivar port: its port.
    :ivar interface: interface that it is bound to, None for every one.
    :ivar target: the port on the other side.
    :ivar target_address: the address on the other side, None where the rules choose.
    :ivar inside: whether it listens in the namespace and leads to the host.
    :ivar automatic: whether it follows what is bound on the other side.
    """

    protocol: str
    address: str
    port: int
    interface: str | None
    target: int
    target_address: str | None = None
    inside: bool = False
    automatic: bool = False
