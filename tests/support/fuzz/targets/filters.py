"""Texts that choose frames: the filters of captures and expectations, and the rules of a router's firewall."""

from __future__ import annotations

from gpasst.capture.record import Record
from gpasst.capture.selection import read_filter
from gpasst.errors import ConfigurationError
from gpasst.router import firewall
from gpasst.wire import VIRTIO_NET_BLANK
from tests.support.fuzz.choices import Choices

ADDRESSES = {4: (bytes(4), bytes((10, 77, 1, 2))), 16: (bytes(16), bytes(15) + b"\1")}
PROTOCOLS = (6, 17, 1, 58, 255)
EXAMPLES = ("udp dport 53", "tcp flags syn,!ack", "to guest", "src 192.0.2.0/24", "icmp", "nth every 3", "size 60-")
RULES = ("allow out udp 53", "drop in tcp 1-1024 from 10.0.0.0/8", "reject out to 2001:db8::/32")


def take(data: bytes) -> None:
    """Read a filter and choose frames by it; read rules and decide on packets by them."""
    choices = Choices(data)
    chosen = choices.pick(EXAMPLES) if choices.flag() else choices.piece(128).decode(errors="replace")
    rule = choices.pick(RULES) if choices.flag() else choices.piece(128).decode(errors="replace")
    outward, protocol, port = choices.flag(), choices.pick(PROTOCOLS), choices.number(1 << 16)
    source, destination = choices.pick(list(ADDRESSES.values()))
    try:
        verdict = firewall.verdict((firewall.parse(rule),), outward, protocol, source, destination, port)
        assert verdict in (firewall.ALLOW, firewall.DROP, firewall.REJECT)
    except ConfigurationError as error:
        assert str(error).isprintable()
    try:
        selection = read_filter(chosen)
    except ConfigurationError as error:
        assert str(error).isprintable()
        return
    records = []
    while choices.more:
        records.append(Record(0, choices.flag(), VIRTIO_NET_BLANK + choices.piece(), ""))
    found = selection.select(records)
    selection.check()
    assert len(found) <= len(records)
    assert str(selection)
