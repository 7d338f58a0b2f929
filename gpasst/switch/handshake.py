"""What two switches say to each other over a trunk: who they are, that they share a secret, and what is behind them.

Theory of operation: each end sends *messages* (`gpasst.switch.framing`): one byte for the kind, and its body.

1. HELLO, from either end at once: a magic number, the version of this protocol, a random challenge, and the prefixes
   of the network, as text.
2. PROOF: HMAC-SHA256 (RFC 2104) with the secret as key, over the name of the sender's role and both HELLOs. The end
   that connected proves first, so a listener sends nothing on which a stranger could try secrets. Roles keep an end
   from being answered with its own proof, and challenges with an older one. Ends without a common prefix part here.
3. MEMBERS: the cookies of the switches behind the sender (`gpasst.switch.membership`), first from the end that
   connected. An end that accepts the other's is up; so when the trunk is up where it was begun, it is up. More of these
   follow whenever something changes.
4. NAMES: the hosts of one switch, by its cookie (`gpasst.switch.roster`); before the MEMBERS that has the cookie for
   the first time, and whenever they change.
5. REFUSED: why the sender closes the trunk, instead of any of these.

Frames are carried once the trunk is up. Neither these nor later messages are signed: the secret keeps
strangers out, and protects nothing on a network where somebody alters streams.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from enum import Enum
from typing import Final

from gpasst.switch.framing import framed_message
from gpasst.switch.membership import COOKIE_BYTES, Cookies, packed, unpacked
from gpasst.switch.roster import Roster, packed_roster, unpacked_roster

VERSION: Final = 1
CHALLENGE_BYTES: Final = 32

_HELLO, _PROOF, _MEMBERS, _NAMES, _REFUSED = range(1, 6)
_MAGIC = b"gpasst trunk"
_CHALLENGE_AT = len(_MAGIC) + 1
_PREFIXES_AT = _CHALLENGE_AT + CHALLENGE_BYTES
_CONNECTOR, _LISTENER = b"connector", b"listener"


class Refusal(Enum):
    """Why a trunk was not made, or is closed. The value is the text for users."""

    PROTOCOL = "what is there does not speak the protocol of trunks"
    VERSION = "the other end has another version of the protocol of trunks"
    SECRET = "the other end has another secret"
    LOOP = "it would close a loop: both ends are joined already"
    PREFIXES = "the other end has other prefixes"
    ADDRESSES = "hosts at both ends have the same addresses"


_NUMBERS = {refusal: number for number, refusal in enumerate(Refusal)}
_REFUSALS = dict(enumerate(Refusal))


class TrunkRefused(Exception):
    """A trunk cannot be made, or has to be closed.

    :param reason: why.
    :param ours: whether it was this end that refused.
    """

    def __init__(self, reason: Refusal, ours: bool = True) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.ours = ours


class Handshake:
    """One end of a trunk, until both ends know that they share a secret.

    :param connector: whether this end connected.
    :param secret: what both ends share; may be empty.
    :param challenge: `CHALLENGE_BYTES` random bytes.
    :param prefixes: those of the network, as text.
    :ivar done: whether it is over, and the next message is what is behind the other end.
    """

    def __init__(self, connector: bool, secret: bytes, challenge: bytes, prefixes: Iterable[str]) -> None:
        self.done = False
        self._connector = connector
        self._secret = secret
        self._prefixes = set(prefixes)
        self._hello = _MAGIC + bytes((VERSION,)) + challenge + " ".join(sorted(self._prefixes)).encode()
        self._peer = b""

    def begin(self) -> bytes:
        """Return what to send first, framed."""
        return framed_message(bytes((_HELLO,)) + self._hello)

    def take(self, message: bytes) -> bytes:
        """Take a message of the other end; return what to send then, framed.

        :raises TrunkRefused: if there is no trunk with this other end.
        """
        kind, body = _parted(message)
        if not self._peer and kind == _HELLO:
            if body[: len(_MAGIC)] != _MAGIC:
                raise TrunkRefused(Refusal.PROTOCOL)
            if body[len(_MAGIC) : _CHALLENGE_AT] != bytes((VERSION,)):
                raise TrunkRefused(Refusal.VERSION)
            if len(body) < _PREFIXES_AT:
                raise TrunkRefused(Refusal.PROTOCOL)
            self._peer = body
            return self._proof() if self._connector else b""
        if not self._peer or kind != _PROOF:
            raise TrunkRefused(Refusal.PROTOCOL)
        if not hmac.compare_digest(body, self._signed(not self._connector)):
            raise TrunkRefused(Refusal.SECRET)
        if self._prefixes.isdisjoint(self._peer[_PREFIXES_AT:].decode(errors="replace").split()):
            raise TrunkRefused(Refusal.PREFIXES)
        self.done = True
        return b"" if self._connector else self._proof()

    def _proof(self) -> bytes:
        return framed_message(bytes((_PROOF,)) + self._signed(self._connector))

    def _signed(self, connector: bool) -> bytes:
        """Return the proof of the end that connected, or of the other."""
        hellos = (self._hello, self._peer) if self._connector else (self._peer, self._hello)
        role = _CONNECTOR if connector else _LISTENER
        return hmac.new(self._secret, role + b"".join(hellos), hashlib.sha256).digest()


def members_message(cookies: Cookies) -> bytes:
    """Return the message that announces what is behind this end, framed."""
    return framed_message(bytes((_MEMBERS,)) + packed(cookies))


def refusal_message(reason: Refusal) -> bytes:
    """Return the message that refuses a trunk, framed."""
    return framed_message(bytes((_REFUSED, _NUMBERS[reason])))


def names_message(cookie: bytes, roster: Roster) -> bytes:
    """Return the message that announces the hosts of a switch, framed."""
    return framed_message(bytes((_NAMES,)) + cookie + packed_roster(roster))


def announced(message: bytes) -> Cookies | tuple[bytes, Roster]:
    """Return what a message announces: switches, or a switch and its hosts.

    :raises TrunkRefused: if it does not.
    """
    kind, body = _parted(message)
    try:
        if kind == _MEMBERS:
            return unpacked(body)
        if kind == _NAMES and len(body) >= COOKIE_BYTES:
            return body[:COOKIE_BYTES], unpacked_roster(body[COOKIE_BYTES:])
    except ValueError:
        pass
    raise TrunkRefused(Refusal.PROTOCOL)


def _parted(message: bytes) -> tuple[int, bytes]:
    """Return the kind of a message, and its body.

    :raises TrunkRefused: if it is a refusal.
    """
    kind, body = message[0], message[1:]
    if kind == _REFUSED:
        raise TrunkRefused(_REFUSALS.get(int.from_bytes(body, "big"), Refusal.PROTOCOL), ours=False)
    return kind, body
