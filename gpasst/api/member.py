"""What a network has by name: its hosts, and whatever else answers to a name there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpasst.api.handle import Handle

if TYPE_CHECKING:
    from gpasst.helper.request import Route


class Member(Handle):
    """The base of a member of a network."""

    def addresses_in(self, network: object) -> tuple[str, ...]:
        """Return the addresses by which hosts of a network find it under its name, as text; none if they do not."""
        raise NotImplementedError

    def show_names(self) -> None:
        """Take note that names have changed; called on the network's hub."""

    def ask_programs(self) -> None:
        """Ask its programs to end, and return at once; closing ends them."""

    def reroute(self, network: object, added: Iterable[Route], removed: Iterable[Route]) -> None:
        """Take note that routes of a network have changed."""
