"""The stream of a virtual machine, cut anywhere: the same leaves as of a stream whose frames arrive one by one.

Acknowledgements are the exception: a batch of segments is acknowledged as one. So is data in the place of a FIN: it
counts as repeated where the FIN has been acknowledged, and as a drop before.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from gpasst.counters import Drop
from gpasst.formats import PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_CODEC, TCP_PSH, TCP_SYN
from gpasst.packet.parse import parse_ip
from tests.support.addresses import GUEST_MAC, HOST_MAC
from tests.support.frames import datagram, framed, tcp
from tests.support.fuzz.choices import Choices
from tests.support.fuzz.frames import any_frame
from tests.support.fuzz.targets.guest import ADDRESSES
from tests.support.proxies import Proxy
from tests.support.tcp_world import Remote

FRAMES = 24
RUN = 6
ONE_IN = 16  # frames of those that take turns, which is spoilt
LENGTH_BYTES, HEADERS_BYTES = 4, 42
LENGTHS = (0, 13, 65536, 1 << 31, (1 << 32) - 1)
ILLEGAL_BYTES = 300
ROOM = 1 << 20  # bytes that a program takes, more than a stream here has
FAMILIES = (4, 6)
SYN_SEQUENCE = 7
PORTS = tuple(port.to_bytes(2, "big") for port in range(5000, 5008))  # of flows that take turns
SECONDS = 1.0
ARP_TYPE, ETHERNET_BYTES = b"\x08\x06", 14


def take(data: bytes) -> None:
    """Carry a stream twice, and compare what leaves."""
    choices = Choices(data)
    cuts = [1 + choices.number(512) for _ in range(choices.number(32))]
    frames: list[bytes] = []
    sequences = dict.fromkeys(FAMILIES, SYN_SEQUENCE + 1)
    while choices.more and len(frames) < FRAMES:
        kind = choices.number(9)
        if kind == 0:
            length = choices.pick(LENGTHS)
            frames.append(length.to_bytes(4, "big") + bytes(min(length, ILLEGAL_BYTES)))
        elif kind == 1:
            frames.append(_framed(choices.piece(512)))
        elif kind < 4:
            family, payload = choices.pick(FAMILIES), choices.piece(512)
            for number in range(choices.number(RUN)):
                frames.append(_framed(framed(family, PROTOCOL_UDP, datagram(payload + bytes((number,))))))
        elif kind < 6:
            family, payload, flags = choices.pick(FAMILIES), choices.piece(512), choices.pick((TCP_PSH, 0, 1))
            for _ in range(choices.number(RUN)):
                frames.append(_framed(_segment(family, sequences[family], payload, TCP_ACK | flags)))
                sequences[family] += len(payload)
        elif kind == 8:
            family, payload = choices.pick(FAMILIES), choices.piece(512)
            for turn in range(choices.number(RUN)):
                for port in PORTS:
                    udp = port + datagram(payload + bytes((turn,)))[len(port) :]
                    frame = bytearray(_framed(framed(family, PROTOCOL_UDP, udp)))
                    if choices.number(ONE_IN) == 1:
                        frame[LENGTH_BYTES + choices.number(HEADERS_BYTES)] = choices.number(256)
                    frames.append(bytes(frame))
        else:
            frames.append(_framed(any_frame(choices, HOST_MAC, GUEST_MAC, ADDRESSES)))
    assert _carried(_cut(b"".join(frames), cuts)) == _carried(frames)


def _framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def _segment(family: int, sequence: int, payload: bytes, flags: int) -> bytes:
    """Return a segment of the connection of a family."""
    header = TCP_CODEC.pack(
        source=4242,
        destination=80,
        sequence=sequence & 0xFFFFFFFF,
        acknowledgement=_acknowledgement(),
        flags=flags,
        window=65535,
    )
    return framed(family, PROTOCOL_TCP, header + payload)


@cache
def _acknowledgement() -> int:
    """Return the number of the first byte to the guest, which is the same in every proxy here."""
    proxy = Proxy()
    with proxy.sealed():
        proxy.move(_framed(tcp(TCP_SYN)))
        proxy.wait(SECONDS)
    (connection,) = proxy.table.by_key.values()
    return connection.sender.next


def _cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Return the pieces of a stream; the last is what the cuts leave."""
    pieces = []
    for size in cuts:
        pieces.append(stream[:size])
        stream = stream[size:]
    return [*pieces, stream]


def _carried(pieces: list[bytes]) -> Any:
    """Return what leaves of a stream, in its order within each flow, and what is dropped."""
    proxy = Proxy()
    proxy.remote = Remote(room=ROOM, reads=ROOM)
    with proxy.sealed():
        for family in FAMILIES:
            proxy.move(_framed(tcp(TCP_SYN, family=family)))
        proxy.wait(SECONDS)
        for family in FAMILIES:
            proxy.move(_framed(_segment(family, SYN_SEQUENCE + 1, b"", TCP_ACK)))
        proxy.link.frames.clear()
        proxy.move(*pieces)
        proxy.rest()
    flows: dict[Any, list[bytes]] = {}
    for port, address, payload in proxy.host.sent:
        flows.setdefault((port, address), []).append(payload)
    assert Drop.INTERNAL not in proxy.counters.drops
    answers = sorted(frame for frame in proxy.link.frames if not _is_segment(frame))
    streams = [bytes(program.taken) for program in proxy.programs]
    drops = {reason: count for reason, count in proxy.counters.drops.items() if reason is not Drop.TCP_CLOSED}
    return flows, answers, streams, drops, proxy.counters.frames_down


def _is_segment(frame: bytes) -> bool:
    ethertype = frame[ETHERNET_BYTES - 2 : ETHERNET_BYTES]
    return ethertype != ARP_TYPE and parse_ip(memoryview(frame)).protocol == PROTOCOL_TCP
