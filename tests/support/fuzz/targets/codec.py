"""The fast forms of wire structures beside their declarations: the same values, and the same bytes again."""

from __future__ import annotations

from typing import Any

from construct import ConstructError

from gpasst.codec import Allowance, Codec
from gpasst.counters import Drop
from gpasst.errors import PacketError
from gpasst.packet.dhcp_wire import DHCP_OPTIONS, DHCPV6_OPTIONS
from tests.support.fuzz.choices import Choices
from tests.support.layouts import DECLARED, used

CODECS = {name: Codec(name) for name in used()}
NAMES = sorted(CODECS)
OPTIONS = 100


def take(data: bytes) -> None:
    """Parse bytes by a structure that they choose, and as both kinds of options."""
    choices = Choices(data)
    name = choices.pick(NAMES)
    codec = CODECS[name]
    wire = choices.exactly(codec.size)
    values = codec.unpack_from(wire)
    assert codec.parse(wire, Drop.MALFORMED_IP) == values
    assert codec.unpack_from(codec.pack(**values)) == values
    try:
        parsed = DECLARED[name].parse(wire)
    except ConstructError:
        return
    assert dict(_dotted(parsed)) == values, name
    rest = choices.rest()
    for options in (DHCP_OPTIONS, DHCPV6_OPTIONS):
        allowance = Allowance(OPTIONS)
        try:
            found = options.parse(rest, allowance, Drop.MALFORMED_DHCP)
        except PacketError:
            continue
        assert len(found) + allowance.options == OPTIONS
        assert options.parse(options.build(found), Allowance(OPTIONS), Drop.MALFORMED_DHCP) == found


def _dotted(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return what a declaration has parsed, by dotted names."""
    found: list[tuple[str, Any]] = []
    for name, item in value.items():
        if isinstance(item, dict):
            found += _dotted(item, f"{prefix}{name}.")
        elif not name.startswith("_"):
            found.append((prefix + name, item))
    return found
