"""NAT of IPv4 for a router with one outside address: mappings and filtering (RFC 4787, RFC 5382, RFC 5508).

Theory of operation:

1. A *mapping* is an inside endpoint and the outside port that stands for it. Its key is the endpoint, and of the remote
   end nothing, the address, or address and port, as the mapping behaviour says (RFC 4787, section 4.1). Echo exchanges
   are mapped by their identifiers (RFC 5508, section 3.1).
2. A mapping has a session (`gpasst.router.session`) for each remote endpoint, and ends with the last of them. A packet
   from outside finds its mapping by the outside port, which no two mappings of a protocol share (no port overloading).
   It is admitted by the filtering behaviour: always, with a session of the same address, or with one of the same
   address and port (RFC 4787, section 5).
3. An outside port is the inside one where ports are preserved and it is free. Otherwise it is of the same range, 1 to
   1023 or above, and has the same parity (RFC 4787, REQ-3 and section 4.2.2), and chance chooses where the search
   begins.
4. `rebind` ends all mappings, as a router that was restarted. What an endpoint sends next has another outside port than
   before.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Final

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.router.behaviour import (
    ADDRESS_DEPENDENT,
    ENDPOINT_INDEPENDENT,
    Behaviour,
)
from gpasst.router.session import Key, Mapping, Session, Sessions

WELL_KNOWN: Final = range(1, 1024)
"""Ports that stand for each other (RFC 4787, REQ-3 a); the others do, too."""
OTHERS: Final = range(1024, 65536)
TRIED: Final = 256  # ports, before there is none; a tenth of a millisecond


class Nat(Sessions):
    """The mappings and sessions of IPv4.

    :param behaviour: what it does; its mapping is not None.
    :param ways: see `Sessions`.
    :param chance: returns a number from 0 to below its argument.
    :ivar mappings: all of them, by key.
    """

    def __init__(self, behaviour: Behaviour, ways: MutableMapping[Any, Any], chance: Callable[[int], int]) -> None:
        super().__init__(behaviour, ways)
        self.mappings: dict[Key, Mapping] = {}
        self._outside: dict[tuple[int, int], Mapping] = {}
        self._former: dict[Key, Mapping] = {}
        self._chance = chance

    def place(self, key: Key) -> Key:
        """Return the key of the mapping of a session."""
        protocol, inside, inside_port, remote, _ = key
        if self.behaviour.mapping == ENDPOINT_INDEPENDENT:
            return protocol, inside, inside_port, b"", 0
        if self.behaviour.mapping == ADDRESS_DEPENDENT:
            return protocol, inside, inside_port, remote, 0
        return key

    def outbound(self, key: Key, now: float) -> Session:
        """Return a new session of a packet from inside, with its mapping.

        :raises PacketError: `Drop.NAT_PORTS` or `Drop.SESSIONS_FULL`.
        """
        place = self.place(key)
        mapping = self.alive(self.mappings.get(place), now)
        if mapping is None:
            mapping = Mapping(place, self._port(place), now)
        session = self._enter(key, mapping, now)
        self.mappings[place] = self._outside[place[0], mapping.port] = mapping
        return session

    def mapped(self, protocol: int, port: int, now: float) -> Mapping | None:
        """Return the mapping of an outside port, None if there is none."""
        return self.alive(self._outside.get((protocol, port)), now)

    def of_endpoint(self, key: Key, now: float) -> Mapping | None:
        """Return the mapping that a packet of an inside endpoint to a remote end has, None without one."""
        return self.alive(self.mappings.get(self.place(key)), now)

    def inbound(self, mapping: Mapping, remote: bytes, port: int, now: float) -> tuple[Session, bool]:
        """Return the session of a packet from outside, and whether it is new.

        :param mapping: of the port that it is for.
        :param remote: source address of the packet.
        :param port: source port.
        :raises PacketError: `Drop.NAT_FILTERED` or `Drop.SESSIONS_FULL`.
        """
        key = (*mapping.place[:3], remote, port)
        session, filtering = self.find(key, now), self.behaviour.filtering
        if session is not None and session.mapping is mapping:
            return session, False
        if filtering != ENDPOINT_INDEPENDENT and not (filtering == ADDRESS_DEPENDENT and remote in mapping.remotes):
            raise PacketError(Drop.NAT_FILTERED)
        if session is not None:
            # The inside reaches this remote endpoint from another outside port.
            return session, False
        return self._enter(key, mapping, now if self.behaviour.inbound_refresh else mapping.last), True

    def rebind(self) -> None:
        """End all mappings; the next ones of the same endpoints have other ports."""
        # In one step, whatever their number: deadlines of what has gone are passed over when they are due.
        self._former, self.mappings = self.mappings, {}
        self._outside, self.sessions = {}, {}
        self._ways.clear()

    def end(self, session: Session) -> None:
        """Forget a session, and with its last one a mapping."""
        super().end(session)
        mapping = session.mapping
        assert mapping is not None
        del mapping.sessions[session.key]
        remote = session.key[3]
        mapping.remotes[remote] -= 1
        if not mapping.remotes[remote]:
            del mapping.remotes[remote]
        if not mapping.sessions:
            del self.mappings[mapping.place], self._outside[mapping.protocol, mapping.port]

    def _enter(self, key: Key, mapping: Mapping, now: float) -> Session:
        session = self.open(key, mapping, now)
        mapping.sessions[key] = session
        mapping.remotes[key[3]] += 1
        return session

    def alive(self, mapping: Mapping | None, now: float) -> Mapping | None:
        """Return a mapping that has a session whose time is not over, else None."""
        while mapping is not None and mapping.sessions:
            session = next(iter(mapping.sessions.values()))
            if now - session.last <= session.timeout:
                return mapping
            self.end(session)
        return None

    def _port(self, place: Key) -> int:
        """Return a free outside port for an inside endpoint.

        :raises PacketError: `Drop.NAT_PORTS`.
        """
        protocol, wanted = place[0], place[2]
        before = self._former.pop(place, None)
        former = before.port if before else None
        if self.behaviour.port_preservation and wanted != former and (protocol, wanted) not in self._outside:
            return wanted
        ports = WELL_KNOWN if wanted in WELL_KNOWN else OTHERS
        start = ports.start + self._chance(len(ports))
        for step in (2, 1):
            port = start + (start + wanted) % step
            for _ in range(TRIED):
                if port not in ports:
                    port = ports.start + (ports.start + wanted) % step
                if port != former and (protocol, port) not in self._outside:
                    return port
                port += step
        raise PacketError(Drop.NAT_PORTS)
