"""The stub resolver: queries of any bytes, and each answer parsed again."""

from __future__ import annotations

import dns.message

from gpasst.dns import NXDOMAIN, REFUSED, SERVFAIL, SILENCE, Zone, malformed, parse, question, to_wire
from tests.support.fuzz.choices import Choices

ZONE = Zone(
    {
        "example.org": ["192.0.2.80", "2001:db8::81"],
        "www.example.org": "CNAME example.org",
        "mail.example.org": ["MX 10 mx.example.org.", 'TXT "v=spf1 -all"'],
        "*.example.org": "192.0.2.99",
        "loop.example.org": "CNAME loop.example.org",
        "broken.test": SERVFAIL,
        "closed.test": REFUSED,
        "silent.test": SILENCE,
        "*": NXDOMAIN,
    }
)
HEADER = b"\0\1\1\0\0\1\0\0\0\0\0\0"
LIMITS = {"udp": 65535, "tcp": 65535}


def take(data: bytes) -> None:
    """Answer a query, over either transport."""
    choices = Choices(data)
    headed, transport, truncated = choices.flag(), choices.pick(("udp", "tcp")), choices.flag()
    message = (HEADER if headed else b"") + choices.rest()
    query = parse(message)
    if query is None:
        answer = malformed(message)
        assert answer is None or len(answer) == len(HEADER)
        return
    assert question(query)
    response = ZONE.respond(query)
    if response is not None:
        wire = to_wire(response, query, transport, truncated)
        assert len(wire) <= LIMITS[transport]
        dns.message.from_wire(wire)
