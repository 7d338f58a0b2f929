"""The table of frames, as people read it."""

from __future__ import annotations

import pytest

from gpasst.capture.table import PAYLOAD_BYTES, ROWS_LIMIT, table
from gpasst.formats import ARP_CODEC, ETHERNET_CODEC, ETHERTYPE_ARP
from gpasst.packet.frame import Frame
from tests.support.addresses import GUEST4, GUEST_MAC, HOST_MAC, SERVER4, ip
from tests.support.frames import START, framed, tcp, udp

ADDRESSES = {"sender_ip": ip(GUEST4), "target_ip": ip(SERVER4)}


COLUMNS = """
  seconds  to     protocol  source              destination         bytes  what                               fate
 0.000000  host   udp       192.0.2.2:4242      198.51.100.9:53        50  b'question'
 0.001500  guest  udp       [2001:db8::2]:4242  [2001:db8:1::9]:53    102  b'xxxxxxxxxxxxxxxx'... 40 B        lost
 2.000000  guest  tcp       192.0.2.2:4242      198.51.100.9:80        62  syn,ack b'data'
 2.000000  guest  tcp       192.0.2.2:4242      198.51.100.9:80        58  ack
12.000000  guest  icmp      192.0.2.2           198.51.100.9           38  type 3 code 1
 0.000000  host   arp                                                  42  who has 198.51.100.9
 0.000000  host   arp                                                  42  192.0.2.2 is at 52:54:00:12:34:56
 0.000000  host   other                                                 0
"""


def arp(operation: int) -> bytes:
    head = ETHERNET_CODEC.pack(destination=HOST_MAC, source=GUEST_MAC, ethertype=ETHERTYPE_ARP)
    return head + ARP_CODEC.pack(operation=operation, sender_mac=GUEST_MAC, target_mac=bytes(6), **ADDRESSES)


def test_columns_are_as_wide_as_they_need() -> None:
    frames = [
        Frame(udp(b"question"), False, START),
        Frame(udp(b"x" * 40, 6), True, START + 1_500_000, "lost"),
        Frame(tcp(0x12, b"data"), True, START + 2_000_000_000),
        Frame(tcp(0x10), True, START + 2_000_000_000),
        Frame(framed(4, 1, bytes((3, 1, 0, 0))), True, START + 12_000_000_000),
        Frame(arp(1), False, START),
        Frame(arp(2), False, START),
        Frame(b"", False, START),
    ]
    assert f"\n{table(frames)}\n" == COLUMNS


@pytest.mark.parametrize(
    ("count", "forgotten", "line"),
    [(ROWS_LIMIT, 0, ""), (ROWS_LIMIT + 1, 0, "(and 1 frame before)"), (1, 2, "(and 2 frames before)")],
)
def test_only_the_latest_frames_are_shown(count: int, forgotten: int, line: str) -> None:
    frames = [Frame(udp(bytes((i,))), False, START + i * 1_000_000_000) for i in range(count)]
    lines = table(frames, forgotten).splitlines()
    assert (lines[1] == line) == bool(line)
    assert len(lines) == 1 + bool(line) + min(count, ROWS_LIMIT)
    assert lines[-1].split()[0] == f"{count - 1}.000000"


def test_no_frames() -> None:
    assert table([]) == "no frames"
    assert table([], 7) == "no frames (7 that came before are not kept)"


def test_a_payload_is_cut() -> None:
    whole, cut = (table([Frame(udp(bytes(size)), False)]) for size in (PAYLOAD_BYTES, PAYLOAD_BYTES + 1))
    assert "..." not in whole
    assert cut.endswith("... 17 B")
