"""The names of a switch's hosts, as they are announced over trunks: a line for each, its name and its addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Container

from gpasst.switch.framing import MESSAGE_MAXIMUM
from gpasst.switch.membership import COOKIE_BYTES
from gpasst.switch.plan import LOCAL_NAMES, mac_of
from gpasst.values import is_host_name

ROSTER_BYTES = MESSAGE_MAXIMUM - COOKIE_BYTES - 1
"""Bytes of the names of one switch; what goes beyond is not announced."""

_ADDRESSES_LIMIT = 16  # of one host

Roster = tuple[tuple[str, tuple[str, ...]], ...]
"""Hosts: the name and the addresses of each, as text."""


def packed_roster(roster: Roster) -> bytes:
    """Return the names of hosts as they are announced, as many as there is room for."""
    data = b""
    for name, addresses in roster:
        line = " ".join((name, *addresses)).encode() + b"\n"
        if len(data) + len(line) > ROSTER_BYTES:
            break
        data += line
    return data


def unpacked_roster(data: bytes) -> Roster:
    """Return the hosts of an announcement.

    :raises ValueError: if it is none.
    """
    found = []
    for line in data.decode().splitlines():
        name, *addresses = line.split(" ")
        if not is_host_name(name) or name.lower() in LOCAL_NAMES or not 0 < len(addresses) <= _ADDRESSES_LIMIT:
            raise ValueError("no host")
        # In /etc/hosts, another name could follow a scope, which may be any text.
        if "%" in line:
            raise ValueError("no address of a network")
        found.append((name, tuple(str(ipaddress.ip_address(address)) for address in addresses)))
    return tuple(found)


def macs(roster: Roster, common: Container[str]) -> frozenset[bytes]:
    """Return the MAC addresses of hosts, which are made of the first address of each.

    :param common: addresses that are nobody's alone.
    """
    first = (addresses[0] for _, addresses in roster if addresses)
    return frozenset(mac_of(ipaddress.ip_address(address)) for address in first if address not in common)
