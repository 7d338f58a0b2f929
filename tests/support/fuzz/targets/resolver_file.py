"""The host's resolv.conf, which any program may write."""

from __future__ import annotations

import ipaddress

from gpasst.flow.resolver_file import parse_resolver_file
from gpasst.packet.dns_names import compress_names, encode_names
from gpasst.values import is_domain
from tests.support.fuzz.choices import Choices


def take(data: bytes) -> None:
    """Parse the text of the file, and encode its search domains as the services do."""
    choices = Choices(data)
    room = choices.number(1 << 16)
    found = parse_resolver_file(choices.text())
    for address in found.nameservers:
        ipaddress.ip_address(address)
    assert all(map(is_domain, found.search))
    for encode in (encode_names, compress_names):
        assert len(encode(found.search, room)) <= room
