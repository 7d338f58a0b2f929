"""The names that the hosts of a network find in their /etc/hosts: of its own members, then of networks beyond."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent

from gpasst.api.member import Member

if TYPE_CHECKING:
    from gpasst.api.handle import Handle

MEMBERS_PER_STEP = 32  # whose files are written before others have their turn


class Names:
    """The names of one network.

    :param network: the network.
    :param members: what it has, by name.
    """

    def __init__(self, network: object, members: dict[str, Handle]) -> None:
        self._network = network
        self._members = members
        self.beyond: list[Names] = []
        self.onlookers: list[Names] = []

    def find(self) -> dict[str, tuple[str, ...]]:
        """Return the names with their addresses as text; one of a nearer network wins."""
        found: dict[str, tuple[str, ...]] = {}
        for names in _reached(self, lambda names: names.beyond):
            for name, addresses in names.own():
                found.setdefault(name, addresses)
        return found

    def own(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return the names of this network alone, with their addresses as text."""
        members = [(name, member) for name, member in list(self._members.items()) if isinstance(member, Member)]
        found = [(name, member.addresses_in(self._network)) for name, member in members]
        return [(name, addresses) for name, addresses in found if addresses]

    def look_beyond(self, other: Names) -> Callable[[], None]:
        """Let the hosts here find the names of another network, too; return what ends that."""
        self.beyond.append(other)
        other.onlookers.append(self)

        def end() -> None:
            self.beyond.remove(other)
            other.onlookers.remove(self)

        return end

    def show(self) -> None:
        """Let running programs know the names anew, of all hosts that find them; called on the hub."""
        for names in _reached(self, lambda names: names.onlookers):
            names.show_here()

    def show_here(self) -> None:
        """Let the programs of this network's hosts know them anew."""
        for number, member in enumerate(list(self._members.values()), 1):
            if isinstance(member, Member):
                member.show_names()
            if number % MEMBERS_PER_STEP == 0:
                gevent.sleep(0)


def _reached(start: Names, further: Callable[[Names], list[Names]]) -> list[Names]:
    """Return the names of a network and of those that are reached from it, the nearest first."""
    found = [start]
    for each in found:
        found += [other for other in further(each) if other not in found]
    return found
