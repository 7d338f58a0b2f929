"""What a test does to what crosses a network, and sees of it: weather, partitions, captures and expectations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from gpasst import runtime
from gpasst.api.counted import Counted
from gpasst.api.interface import Interface
from gpasst.api.network_base import NetworkBase
from gpasst.api.network_sections import Between, Link, Partition
from gpasst.api.observed import Observer
from gpasst.errors import ConfigurationError
from gpasst.impair.facts import TO_GUEST
from gpasst.values import shown

if TYPE_CHECKING:
    from gpasst.api.captures import Observable
    from gpasst.counters import NetworkStatistics
    from gpasst.packet.frame import Frame
    from gpasst.runtime import Runtime


class Named(Protocol):
    """What is connected with a network, such as a host or a router."""

    @property
    def name(self) -> str:
        """Its name there."""


Member = Named | Interface | str
"""What is connected with a network, or its name."""


class NetworkWatch(NetworkBase, Observer, Counted):
    """A network whose frames a test acts on, and looks at."""

    def link(self, host: Member) -> Link:
        """Return the link of a host: weather there meets all that the host sends and receives.

        ::

            with lan.link(a).impair(rate="10mbit"): ...
            lan.link(a).expect("udp", dport=7000, to="guest")

        :param host: the host or whatever else is connected, or its name.
        :raises ConfigurationError: if no such is connected.
        """
        return Link(self, self._port_name(host), self._history)

    def between(self, one: Member, other: Member) -> Between:
        """Return what is between two hosts: weather there meets what one of them sends to the other.

        :param one: a host or whatever else is connected, or its name.
        :param other: likewise.
        :raises ConfigurationError: if no such is connected, or both are the same.
        """
        first, second = self._port_name(one), self._port_name(other)
        if first == second:
            raise ConfigurationError(f"between {first} and itself there is nothing", "name two hosts")
        return Between(self, first, second)

    def partition(self, *groups: Member | Iterable[Member]) -> Partition:
        """Cut off groups of hosts from each other, until the end of a ``with`` statement or `Partition.remove`.

        ::

            with lan.partition([a], [b, c]): ...

        Hosts of one group reach each other, and one that is in no group reaches all; so does one that is in two of
        them reach both. A single group is cut off from all that is not in it.

        :param groups: hosts or whatever else is connected, or their names.
        :raises ConfigurationError: if one is not connected, or a group is empty.
        """
        names = [self._group(group) for group in groups]
        if not names or not all(names):
            raise ConfigurationError("a partition has a group without hosts", "write it like partition([a], [b, c])")
        return Partition(self, names)

    def fates(self, last: int = 20) -> list[str]:
        """Return what weather did last, a line for each frame, the newest last.

        :param last: lines at most.
        :raises ConfigurationError: if that is no number.
        """
        from gpasst.impair.log import latest

        return self.call(lambda lan: latest(lan.fates(), last))

    def statistics(self) -> NetworkStatistics:
        """Return the counters of frames and drops."""
        return self.call(lambda lan: lan.statistics())

    def expect(self, protocol: str | None = None, *, count: int = 1, timeout: float = 2.0, **match: Any) -> Frame:
        """Return the frame that was expected at a host; wait for it if it has not arrived since the start.

        It takes ``record=True``. A frame counts once for each host that it reaches, and with ``to="host"`` once as it
        was sent, whatever became of it. `link` has the same for one host.

        :param protocol: as of `Pasta.expect`; so are the other parameters.
        :raises AssertionError: if it has not come by then, with a table of what has.
        :raises ConfigurationError: if the match makes no sense, or nothing is recorded.
        """
        __tracebackhide__ = True  # pytest shows the caller's line
        return super().expect(protocol, count=count, timeout=timeout, **{"to": TO_GUEST, **match})

    def count(self, protocol: str | None = None, **match: Any) -> int:
        """Return how many such frames have come, of those that are kept; the parameters are those of `expect`."""
        return super().count(protocol, **{"to": TO_GUEST, **match})

    def observable(self, name: str = "") -> Observable:
        """Return what is observed.

        :param name: of the host whose link is meant; empty for all.
        """
        from gpasst.api.captures import Observable

        return self.call(
            lambda lan: Observable(
                lan.unread, lan.recorder, lan.counters, lambda: [port.name for port in lan.switch.ports], name
            )
        )

    def _observing(self) -> tuple[Runtime, Observable]:
        return self.here(), self.observable()

    def _observed(self) -> tuple[Runtime, Observable | None]:
        if self._lan is None:
            return runtime.current(), None
        return self._observing()

    def _group(self, group: Member | Iterable[Member]) -> list[str]:
        """Return the names of a group, which may be a single host."""
        if isinstance(group, str) or not isinstance(group, Iterable):
            return [self._port_name(group)]
        return [self._port_name(member) for member in group]

    def _port_name(self, member: Member) -> str:
        """Return the name of what is connected.

        :raises ConfigurationError: if it is not.
        """
        owner = member.host if isinstance(member, Interface) else member
        name = owner if isinstance(owner, str) else str(getattr(owner, "name", owner))
        names = self.call(lambda lan: list(lan.switch.named))
        if name not in names:
            listed = ", ".join(names) or "nothing"
            raise ConfigurationError(f"{shown(name)} is not connected with network {self.name}", f"these are: {listed}")
        return name
