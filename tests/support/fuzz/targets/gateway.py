"""The uplink of a network: frames of any of its hosts, and of strangers, in any order; addresses are leased to some."""

from __future__ import annotations

import ipaddress

from gpasst.counters import Drop
from gpasst.features import ALL
from gpasst.flow.guests import LEARNED_LIMIT, Guests
from gpasst.flow.shared_network import shared_network
from tests.support.addresses import HOST_MAC, SERVER4, SERVER6, ip
from tests.support.fuzz.choices import Choices
from tests.support.fuzz.frames import any_frame
from tests.support.networks import guest_network
from tests.support.proxies import DatagramSockets, Proxy

GATEWAY4, GATEWAY6 = "10.77.0.1", "fd77::1"
HOSTS = (("10.77.0.2", "fd77::2"), ("10.77.0.3", "fd77::3"))
LEASES = 3
MACS = (*(HOST_MAC[:2] + bytes((0, 0, 0, number)) for number in (2, 3, 4)), b"\x52" + bytes(5), b"\x01" * 6)
GROUPS = (b"\xff" * 6, b"\x33\x33\0\0\0\2", b"\x33\x33\0\1\0\2")
ADDRESSES = tuple(
    map(
        ip,
        (
            *(GATEWAY4, SERVER4, "10.77.0.2", "10.77.0.3", "10.77.0.9", "0.0.0.0", "255.255.255.255", "127.0.0.1"),
            *(GATEWAY6, SERVER6, "fd77::2", "fd77::3", "fe80::7", "fe80::1", "ff02::1:2", "ff02::2", "::", "::1"),
        ),
    )
)
HEADS = (bytes(10), bytes((1, 5, 42, 0, 4, 0, 34, 0, 6, 0)), bytes((1, 1, 54, 0, 4, 0, 34, 0, 16, 0)), b"\xff" * 10)


def take(data: bytes) -> None:
    """Let hosts send what the bytes say."""
    choices, allotted = Choices(data), []

    def allot(mac: bytes) -> tuple[bytes | None, bytes | None]:
        allotted.append(mac)
        number = len(allotted)
        return (ip(f"10.77.0.{100 + number}"), ip(f"fd77::{100 + number}")) if number <= LEASES else (None, None)

    network = shared_network(
        guest_network(),
        ipaddress.IPv4Interface(f"{GATEWAY4}/16"),
        ipaddress.IPv6Interface(f"{GATEWAY6}/64"),
        HOST_MAC,
        1500,
    )
    guests = Guests(network, allot)
    for mac, (ip4, ip6) in zip(MACS, HOSTS, strict=False):
        guests.place(mac, ip(ip4), ip(ip6))
    proxy = Proxy(ALL, DatagramSockets(guests))
    with proxy.sealed():
        while choices.more:
            if not choices.number(8):
                proxy.wait(choices.pick((0.0, 0.002, 1.0)))
                guests.scan(0)
                continue
            head, sender = choices.pick(HEADS), choices.pick(MACS)
            to = choices.pick(GROUPS) if choices.flag() else HOST_MAC
            frame = any_frame(choices, to, sender, ADDRESSES) if choices.number(8) else to + sender + choices.piece(512)
            if len(frame) > len(to + sender) + 1:
                proxy.uplink.answers(head + frame)
                proxy.uplink.take(head + frame)
            proxy.rest()
            for answer in proxy.link.frames:
                assert answer[:6] != HOST_MAC
            proxy.link.frames.clear()
    assert len(guests._learned) <= LEARNED_LIMIT  # noqa: SLF001 - nothing shows them
    assert Drop.INTERNAL not in proxy.counters.drops
