"""A router: frames of any bytes from both sides and time in any order; what leaves is a frame, and it comes to rest."""

from __future__ import annotations

from gpasst.packet.address import V4
from gpasst.packet.build import wrap
from gpasst.packet.segmentation import split
from gpasst.router.behaviour import PRESETS, Behaviour
from gpasst.router.firewall import parse
from gpasst.router.forwarding import WAYS_LIMIT
from gpasst.wire import PROTOCOL_ICMP, PROTOCOL_ICMPV6, VIRTIO_NET_BLANK
from tests.support.addresses import ip
from tests.support.fuzz.choices import Choices
from tests.support.fuzz.frames import any_frame
from tests.support.routing import A6, FAR, GATEWAY, MISSING, ROUTER4, ROUTER6, ROUTER_MAC, S6, A, B, S, T, World, mac_of

BEHAVIOURS = (
    Behaviour(mapping=None),
    *(preset.behaviour for preset in PRESETS.values()),
    Behaviour(firewall=(parse("reject in tcp"), parse("drop out udp 53"))),
)
ADDRESSES = tuple(
    map(ip, (A, B, S, T, FAR, GATEWAY, *ROUTER4, A6, S6, *ROUTER6, "0.0.0.0", "::", "127.0.0.1", "ff02::1", "fe80::9"))
) + tuple(sorted(MISSING))
SECONDS = (0.0, 0.5, 3.0, 40.0, 10_000.0)
ETHERNET_BYTES = 14
FRAME_LIMIT = 65535 + ETHERNET_BYTES
KINDS = (3, 11, 1, 2)  # of errors, of either family


def take(data: bytes) -> None:
    """Let both sides send, and time pass."""
    choices = Choices(data)
    world = World(choices.pick(BEHAVIOURS), choices.pick(((1500, 1500), (1500, 1280), (65520, 68))))
    left = [b"", b""]  # the packet that left last, on each side
    while choices.more:
        side, kind = choices.number(2), choices.number(8)
        if kind == 0:
            world.passes(choices.pick(SECONDS))
            continue
        if kind == 1:
            world.router.rebind()
            continue
        if kind == 2:
            world.take(side, ROUTER_MAC[side] + choices.piece(512))
            continue
        if kind == 7 and left[side]:
            frame = _error(choices, side, left[side])
        else:
            frame = any_frame(choices, ROUTER_MAC[side], mac_of(choices.pick(ADDRESSES)), ADDRESSES)
        head = choices.exactly(len(VIRTIO_NET_BLANK)) if kind == 6 else VIRTIO_NET_BLANK
        world.router.receive(side, memoryview(head + frame), world.now)
        for number, raw in enumerate(world.raw):
            for sent in raw:
                for single in split(sent):
                    assert len(single) <= FRAME_LIMIT
                    left[number] = single[ETHERNET_BYTES:]
            raw.clear()
    world.passes(SECONDS[-1])
    assert world.router.due is None
    assert len(world.router._ways) <= WAYS_LIMIT  # noqa: SLF001 - nothing shows them


def _error(choices: Choices, side: int, about: bytes) -> bytes:
    """Return the frame of an ICMP error about a packet that left on a side."""
    sender = slice(12, 16) if about[0] >> 4 == V4 else slice(8, 24)
    destination = about[sender]
    source = choices.pick([address for address in ADDRESSES if len(address) == len(destination)])
    kind, code, size = choices.pick(KINDS), choices.number(5), choices.pick((64, 28, 1000, 20))
    protocol = PROTOCOL_ICMP if about[0] >> 4 == V4 else PROTOCOL_ICMPV6
    message = bytes((kind, code)) + bytes(6) + about[:size]
    return wrap(ROUTER_MAC[side], mac_of(source), source, destination, protocol, message)
