"""The topology of a network file: what is to be opened, as plain values that agree with each other.

`gpasst.topology.read` makes topologies of text and checks them; whoever holds one need not check it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gpasst.impair.quantities import show_time
from gpasst.records import dataclass
from gpasst.values import shown

BETWEEN, LINK, PARTITION = "between", "link", "partition"  # what weather can be about
Setting = str | int | float | bool | tuple[str, ...] | None
"""The value of a parameter of a router; None where the file says ``"none"``."""

COMMAND_SHOWN: Final = 60  # characters of a command in a picture


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """One network: the parameters of `gpasst.Network`, by their names.

    :ivar name: its name, and that of its interface in every host.
    :ivar subnet4: its IPv4 prefix, None for the default, empty without IPv4.
    :ivar subnet6: its IPv6 prefix, likewise.
    :ivar mtu: bytes, None for the default.
    :ivar seed: seed of its weather, None for one of the kernel's choice.
    :ivar uplink: whether its hosts reach the outside.
    :ivar capture: file for what crosses it, empty for none.
    """

    name: str
    subnet4: str | None = None
    subnet6: str | None = None
    mtu: int | None = None
    seed: int | None = None
    uplink: bool = False
    capture: str = ""


@dataclass(frozen=True, slots=True)
class PortPlan:
    """Ports of one protocol.

    :ivar protocol: ``"tcp"`` or ``"udp"``.
    :ivar ports: the specification of a forward, or the number of a port that a program binds.
    """

    protocol: str
    ports: str

    def __str__(self) -> str:
        return f"{self.protocol} {self.ports}"


@dataclass(frozen=True, slots=True)
class CommandPlan:
    """A command of a host.

    :ivar argv: the program and its arguments; of a shell's command line that line alone.
    :ivar shell: whether it is one.
    """

    argv: tuple[str, ...]
    shell: bool = False

    def __str__(self) -> str:
        text = shown(" ".join(self.argv))
        return text if len(text) <= COMMAND_SHOWN else f"{text[: COMMAND_SHOWN - 1]}…"


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One host.

    :ivar name: its name.
    :ivar networks: the networks that it is in, the first one first.
    :ivar forwarding: whether it forwards between them.
    :ivar run: its commands.
    :ivar wait_bound: ports that these bind; what stands behind the host in the file waits for them.
    :ivar forward: ports of this machine that lead to it.
    """

    name: str
    networks: tuple[str, ...]
    forwarding: bool = False
    run: tuple[CommandPlan, ...] = ()
    wait_bound: tuple[PortPlan, ...] = ()
    forward: tuple[PortPlan, ...] = ()


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """One router between two networks.

    :ivar name: its name.
    :ivar inside: the network behind it.
    :ivar outside: the network before it.
    :ivar settings: further parameters of `gpasst.Router`, by their names.
    """

    name: str
    inside: str
    outside: str
    settings: tuple[tuple[str, Setting], ...] = ()

    @property
    def networks(self) -> tuple[str, str]:
        """Both networks, the outer one first."""
        return self.outside, self.inside


@dataclass(frozen=True, slots=True)
class WeatherPlan:
    """Weather of one network.

    :ivar network: its name.
    :ivar kind: what it is about: `BETWEEN`, `LINK` or `PARTITION`.
    :ivar groups: the hosts: two of one each; one of one; or the groups of a partition.
    :ivar rules: texts of rules and names of profiles; none of a partition.
    :ivar one_way: whether it acts from the first host to the second alone.
    :ivar start: microseconds after the commands start.
    :ivar until: microseconds after the commands start, None for the end.
    """

    network: str
    kind: str
    groups: tuple[tuple[str, ...], ...]
    rules: tuple[str, ...] = ()
    one_way: bool = False
    start: int = 0
    until: int | None = None

    @property
    def place(self) -> str:
        """Where it acts, in words."""
        if self.kind == BETWEEN:
            first, second = (group[0] for group in self.groups)
            return f"{first} {'→' if self.one_way else '↔'} {second}"
        return " | ".join(" ".join(group) for group in self.groups)

    @property
    def effect(self) -> str:
        """What it does, and when, in words."""
        parts = ["; ".join(self.rules) or "partition"]
        if self.start:
            parts.append(f"from {show_time(self.start)}")
        if self.until is not None:
            parts.append(f"until {show_time(self.until)}")
        return " ".join(parts)


Node = HostPlan | RouterPlan


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole file, each kind in the order of the file."""

    networks: tuple[NetworkPlan, ...]
    hosts: tuple[HostPlan, ...] = ()
    routers: tuple[RouterPlan, ...] = ()
    weather: tuple[WeatherPlan, ...] = ()

    def nodes(self) -> Iterator[Node]:
        """Yield hosts and routers."""
        yield from self.hosts
        yield from self.routers
