"""Which switches are behind which trunk, so that trunks never form a loop.

Theory of operation: every switch has a *cookie*, a random number of its own. Switches joined by trunks are a tree: over
each trunk, a switch announces the cookies of all switches that are not behind that trunk, its own among them (split
horizon). A trunk behind which there would be a switch that is known already would close a loop, and is refused. What
is behind a trunk changes when another trunk comes or goes there, and is then announced on.

Two trunks that come up at the same time, far from each other, may close a loop that neither end knows yet. The next
announcement shows it, at every switch of the loop, and the trunk that brings it there is closed. More than one may be;
what belongs together finds together again, since the end that connected tries again after a time of its own.
"""

from __future__ import annotations

from typing import Generic, TypeVar

COOKIE_BYTES = 8
MEMBERS_LIMIT = 4096
"""Switches that may be joined."""

T = TypeVar("T")

Cookies = frozenset[bytes]


class Membership(Generic[T]):
    """The switches that can be reached from one.

    :param cookie: its own, `COOKIE_BYTES` random bytes.
    :ivar cookie: as above.
    """

    def __init__(self, cookie: bytes) -> None:
        self.cookie = cookie
        self._behind: dict[T, Cookies] = {}

    def announced(self, trunk: T) -> Cookies:
        """Return what is announced over a trunk: every switch that is not behind it."""
        others = (cookies for other, cookies in self._behind.items() if other != trunk)
        return frozenset((self.cookie,)).union(*others)

    def closes_loop(self, trunk: T, cookies: Cookies) -> bool:
        """Return whether a trunk with these switches behind it would close a loop."""
        return not cookies.isdisjoint(self.announced(trunk))

    def put(self, trunk: T, cookies: Cookies) -> list[T]:
        """Enter what the other end of a trunk announces; return the trunks over which there is news to announce."""
        changed = self._behind.get(trunk) != cookies
        self._behind[trunk] = cookies
        return self._others(trunk) if changed else []

    def remove(self, trunk: T) -> list[T]:
        """Forget a trunk; return the trunks over which there is news to announce."""
        return self._others(trunk) if self._behind.pop(trunk, None) else []

    def _others(self, trunk: T) -> list[T]:
        return [other for other in self._behind if other != trunk]


def packed(cookies: Cookies) -> bytes:
    """Return cookies as they are announced, in order."""
    return b"".join(sorted(cookies))


def unpacked(data: bytes) -> Cookies:
    """Return the cookies of an announcement.

    :raises ValueError: if it is none.
    """
    count, rest = divmod(len(data), COOKIE_BYTES)
    if rest or not 0 < count <= MEMBERS_LIMIT:
        raise ValueError("no announcement of cookies")
    return frozenset(data[at : at + COOKIE_BYTES] for at in range(0, len(data), COOKIE_BYTES))
