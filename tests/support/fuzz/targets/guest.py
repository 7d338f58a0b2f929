"""All of a proxy behind a fake link: frames of any bytes, connections whose other ends do anything, and time."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import Any, cast

from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.features import ALL
from gpasst.impair.grammar import parse
from gpasst.link.impaired import Impaired
from gpasst.tcp.timers import SILENCE_SECONDS
from tests.support.addresses import (
    GATEWAY4,
    GATEWAY6,
    GUEST4,
    GUEST6,
    GUEST_LINK_LOCAL,
    GUEST_MAC,
    HOST_MAC,
    RESOLVER4,
    SERVER4,
    SERVER6,
    ip,
)
from tests.support.frames import framed, tcp
from tests.support.fuzz.choices import Choices
from tests.support.fuzz.frames import any_frame
from tests.support.proxies import Proxy
from tests.support.tcp_world import Remote

ADDRESSES = tuple(
    map(
        ip,
        (
            *(GUEST4, SERVER4, GATEWAY4, RESOLVER4, "255.255.255.255", "0.0.0.0", "127.0.0.1", "224.0.0.1"),
            *(GUEST6, GUEST_LINK_LOCAL, SERVER6, GATEWAY6, "ff02::1:2", "ff02::2", "::", "::1"),
        ),
    )
)
OUTCOMES = (0, 0, errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)
FAILURES = (0, errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS)
SECONDS = (0.0, 0.002, 0.5, 3.0)
SILENCE = 2 * SILENCE_SECONDS  # after which a guest that says nothing has no connection
DATA = bytes(range(256)) * 64
RULES = tuple(
    map(
        parse,
        (
            "loss 30%",
            "delay 20ms±5ms",
            "udp,tcp: duplicate 50%",
            "udp,tcp,icmp: corrupt 100%",
            "rate 1mbit queue 5 frames",
            "to guest: mtu 100",
            "to host tcp: reset",
            "unreachable port",
            "reorder 50% delay 1ms",
            "udp: rebind",
        ),
    )
)


def take(data: bytes) -> None:
    """Let a guest send what the bytes say; then it is silent, and nothing is left of its connections."""
    choices = Choices(data)
    proxy = Proxy(ALL if choices.flag() else frozenset())
    weather = proxy.weather()
    with proxy.sealed():
        while choices.more:
            kind = choices.number(10)
            if kind < 3:
                proxy.move(_framed(any_frame(choices, HOST_MAC, GUEST_MAC, ADDRESSES)))
            elif kind == 3:
                proxy.move(_framed(choices.piece(2048)))
            elif kind < 6:
                proxy.move(_framed(_segment(choices, proxy)))
            elif kind < 9:
                proxy.wait(choices.pick(SECONDS))
            else:
                _change(choices, proxy, weather)
            proxy.link.frames.clear()
        weather.close()
        proxy.link.full = False
        proxy.sockets.resume()
        proxy.rest()
        proxy.wait(SILENCE)
    assert len(proxy.table) == 0
    assert all(program.closed for program in proxy.programs)
    assert proxy.ready.watched == set()
    assert Drop.INTERNAL not in proxy.counters.drops


def _framed(frame: bytes) -> bytes:
    """Return a frame as a stream has it."""
    return len(frame).to_bytes(4, "big") + frame


def _segment(choices: Choices, proxy: Proxy) -> bytes:
    """Return a segment of a connection, near to what is due; the SYN of a new one, where it is none's."""
    connections = list(proxy.table.by_key.values())
    number = choices.number(4)
    if number >= len(connections):
        return tcp(2, choices.piece(), choices.pick((4, 6)))
    connection = connections[number]
    sender, receiver = connection.sender, connection.receiver
    sequence = receiver.next + choices.pick((0, 0, 0, 1, -1, 1000, -1000, 1 << 16, 1 << 31))
    acknowledgement = sender.next - choices.pick((0, 0, 1, -1, sender.in_flight, 1000))
    payload = choices.piece(2048)
    key = connection.key
    header = key[-4:] + (sequence & 0xFFFFFFFF).to_bytes(4, "big") + (acknowledgement & 0xFFFFFFFF).to_bytes(4, "big")
    header += bytes((0x50, choices.pick((16, 16, 16, 24, 17, 18, 2, 4, 20, 0, 255))))
    header += choices.pick((65535, 1000, 1, 0)).to_bytes(2, "big") + bytes(4)
    return framed(connection.family, 6, header + payload)


def _change(choices: Choices, proxy: Proxy, weather: Impaired) -> None:
    """Let the programs at the other ends do something else, or one of them connect; let link or weather be another."""
    what = choices.number(5)
    if what == 1 and proxy.programs:
        choices.pick(proxy.programs).failure = choices.pick(FAILURES)
        return
    if what == 2:
        _accept(choices, proxy)
        return
    if what == 3:
        proxy.link.full = not proxy.link.full
        if not proxy.link.full:
            proxy.sockets.resume()
            proxy.rest()
        return
    if what == 4:
        rules = weather.add(choices.pick(RULES), choices.number(256))
        if choices.flag():
            weather.remove(rules)
            proxy.rest()
        return
    proxy.outcome = choices.pick(OUTCOMES)
    proxy.remote = Remote(
        DATA[: choices.number(1 << 14)],
        choices.pick((3000, 1)),
        choices.pick((3000, 1)),
        choices.pick((5000, 1, 100_000)),
        choices.flag(),
    )


def _accept(choices: Choices, proxy: Proxy) -> None:
    """Let a client of a forward connect."""
    source, port, target = choices.pick(ADDRESSES), choices.pick((50000, 4242, 1)), choices.pick((80, 8080))
    family = 4 if len(source) == len(ip(GUEST4)) else 6
    proxy.outcome = 0
    with suppress(PacketError):
        proxy.opener.inbound(cast(Any, proxy.opened()), family, source, port, 0, target, b"")
    proxy.rest()
