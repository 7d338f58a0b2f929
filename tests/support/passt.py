"""What passt mode's tests share: names, and what they do with a link and its guest."""

from __future__ import annotations

from typing import IO

import gpasst
from gpasst.link.stream import Stream
from tests.support.guests import proxy_of
from tests.support.lab import REMOTE4, REMOTE6
from tests.support.scripted import Guest

OTHER_MAC = bytes.fromhex("5254006789ab")
PORT, ENGINE_PORT, PROGRAM_PORT = 5000, 5001, 5002  # forwarded
EPHEMERAL = 45678  # of the guest
GATEWAY = {4: REMOTE4, 6: REMOTE6}
FORWARDS = (str(PORT), "8053:53")


def drops(link: gpasst.Passt, reason: gpasst.Drop) -> int:
    return link.statistics().drops.get(reason.value, 0)


def stream_of(link: gpasst.Passt) -> Stream:
    stream = proxy_of(link).link
    assert isinstance(stream, Stream)
    return stream


def greeted(guest: Guest) -> tuple[bytes, bytes]:
    """Read what every guest is asked first."""
    return guest.frame(), guest.frame()


def text(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.read()
