"""The names that the hosts of a network find in their /etc/hosts: of its own members, then of networks beyond.

Members in other parts of the network, behind trunks, come after the part's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from gpasst.api.member import Member
from gpasst.switch.roster import Roster

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
        self._joined: Roster = ()
        self._showing = False
        self._changed = Event()

    def find(self) -> dict[str, tuple[str, ...]]:
        """Return the names with their addresses as text; one of a nearer network wins."""
        found: dict[str, tuple[str, ...]] = {}
        for names in _reached(self, lambda names: names.beyond):
            for name, addresses in names.own():
                found.setdefault(name, addresses)
        return found

    def own(self) -> Roster:
        """Return the names of this network alone, with their addresses as text."""
        return self.members() + self._joined

    def members(self) -> Roster:
        """Return the names of this part of the network alone, likewise."""
        members = [(name, member) for name, member in list(self._members.items()) if isinstance(member, Member)]
        found = [(name, member.addresses_in(self._network)) for name, member in members]
        return tuple((name, addresses) for name, addresses in found if addresses)

    def join(self, roster: Roster) -> None:
        """Take note of the names in other parts of the network; called on the hub."""
        if roster != self._joined:
            self._joined = roster
            self._changed.set()
            self._changed.clear()
            if not self._showing:
                self._showing = True
                gevent.spawn(self._show_joined)

    def await_name(self, name: str, timeout: float) -> tuple[str, ...]:
        """Wait until a name is known; return its addresses as text, none if it is not known by then.

        Called on the hub.

        :param timeout: seconds.
        """
        with gevent.Timeout(timeout, False):
            while not (found := self.find().get(name, ())):
                self._changed.wait()
        return found

    def _show_joined(self) -> None:
        self._showing = False
        self.show()

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
        self._changed.set()
        self._changed.clear()
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
