"""Answers of a stub resolver: names of a test and their records, and the rules by which a query finds them.

Theory of operation: a `Zone` is made of a mapping of names to values, which are checked when it is made. The most
specific name decides: the queried one itself, then ``*.`` before each of its parents, then ``*``; a name that nothing
fits does not exist. Aliases are followed within the mapping (RFC 1034, section 4.3.2, step 3a). The wire format is that
of dnspython, which is imported when the first zone is made, since that takes 0.1 seconds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from gpasst.errors import ConfigurationError, PlatformError
from gpasst.records import dataclass

if TYPE_CHECKING:
    import dns.message
    import dns.rdata

NXDOMAIN: Final = "NXDOMAIN"
"""The name does not exist."""
SERVFAIL: Final = "SERVFAIL"
"""The resolver could not find out."""
REFUSED: Final = "REFUSED"
"""The resolver does not answer this client."""
SILENCE: Final = "SILENCE"
"""No answer at all."""

OUTCOMES = (NXDOMAIN, SERVFAIL, REFUSED, SILENCE)
ANY_NAME = "*"
ADDRESS_TYPES = {4: "A", 6: "AAAA"}
TTL_SECONDS = 0  # of every record, lest a cache should hide a query from the test
ALIASES_FOLLOWED = 8  # of one query; a loop of aliases ends there
HEADER_BYTES = 12  # of a message (RFC 1035, section 4.1.1)
UDP_BYTES = 512  # of an answer by UDP to a client that announces no more (RFC 1035, section 2.3.4)
TCP_BYTES = 0xFFFF  # of an answer by TCP, whose length has two bytes (RFC 1035, section 4.2.2)

Records = Mapping[str, "str | Sequence[str]"]
"""Values by name: addresses, one of the outcomes, or a type and its data, such as ``MX 10 mail.example.org``."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of the guest.

    :ivar number: 1 for the resolver's first, and so on.
    :ivar name: the queried name, without the last dot.
    :ivar type: such as ``"A"``.
    :ivar transport: ``"udp"`` or ``"tcp"``.
    :ivar peer: address and port of the guest.
    """

    number: int
    name: str
    type: str
    transport: str
    peer: tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """The value of one name: an outcome, or records as (type, record) pairs; the outcome of records is empty."""

    outcome: str
    records: tuple[tuple[str, Any], ...] = ()


class Zone:
    """The names of a stub resolver.

    :param records: values by name; names may be ``*``, or begin with ``*.``.
    :raises ConfigurationError: for a name or a value that DNS does not have.
    :raises PlatformError: if dnspython is not installed.
    """

    def __init__(self, records: Records) -> None:
        try:
            import dns.message  # noqa: F401  # for all that follows
        except ImportError as error:
            raise PlatformError("dnspython is not installed", "pip install 'gpasst[testing]'") from error
        self._entries = {_name(name): _entry(name, value) for name, value in records.items()}

    def respond(self, query: dns.message.Message) -> dns.message.Message | None:
        """Return the answer to a query, None for silence.

        :param query: what `parse` returned.
        """
        import dns.flags
        import dns.message
        import dns.rcode
        import dns.rdataclass
        import dns.rdatatype

        response = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        kind, name = dns.rdatatype.to_text(question.rdtype), question.name
        for _ in range(ALIASES_FOLLOWED):
            entry = self._find(name.to_text(omit_final_dot=True).lower())
            if entry.outcome == SILENCE:
                return None
            if entry.outcome:
                response.set_rcode(dns.rcode.from_text(entry.outcome))
                return response
            found = [record for type_, record in entry.records if kind in (type_, "ANY")]
            alias = [] if found else [record for type_, record in entry.records if type_ == "CNAME"]
            for record in found or alias:
                section = response.find_rrset(response.answer, name, dns.rdataclass.IN, record.rdtype, create=True)
                section.add(record, TTL_SECONDS)
            if not alias:
                return response
            name = alias[0].target
        return response

    def _find(self, name: str) -> _Entry:
        """Return the entry that decides for a name."""
        candidate, parent = name, name
        while candidate not in self._entries:
            if candidate == ANY_NAME:
                return _Entry(NXDOMAIN)
            parent = parent.partition(".")[2]
            candidate = f"*.{parent}" if parent else ANY_NAME
        return self._entries[candidate]


def parse(data: bytes) -> dns.message.Message | None:
    """Return the query of a message, None where it is none about one name of the Internet."""
    import dns.exception
    import dns.flags
    import dns.message
    import dns.opcode
    import dns.rdataclass

    try:
        message = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError):
        return None
    asks = message.opcode() == dns.opcode.QUERY and not message.flags & dns.flags.QR
    if not asks or [first.rdclass for first in message.question] != [dns.rdataclass.IN]:
        return None
    return message


def malformed(data: bytes) -> bytes | None:
    """Return the answer to a message that is no query: FORMERR, None where not even its identifier is there."""
    if len(data) < HEADER_BYTES or data[2] & 0x80:
        return None
    return data[:2] + b"\x80\x01" + bytes(HEADER_BYTES - 4)


def to_wire(response: dns.message.Message, query: dns.message.Message, transport: str, truncated: bool) -> bytes:
    """Return the bytes of an answer; what does not fit is left out and announced (RFC 2181, section 9).

    :param response: the answer.
    :param query: the query, which says how much the client takes (RFC 6891, section 6.2.3).
    :param transport: ``"udp"`` or ``"tcp"``.
    :param truncated: leave everything out.
    """
    import dns.flags

    if truncated:
        response.answer.clear()
        response.flags |= dns.flags.TC
    most = max(query.payload, UDP_BYTES) if transport == "udp" else TCP_BYTES
    return response.to_wire(max_size=most, prefer_truncation=True, want_shuffle=False)


def question(query: dns.message.Message) -> tuple[str, str]:
    """Return name and type of a query."""
    import dns.rdatatype

    first = query.question[0]
    return first.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(first.rdtype)


def _name(name: str) -> str:
    """Return a name as queries have it, in lower case.

    :raises ConfigurationError: if it is no domain name.
    """
    import dns.exception
    import dns.name

    try:
        return dns.name.from_text(name).to_text(omit_final_dot=True).lower()
    except (dns.exception.DNSException, UnicodeError, TypeError) as error:
        raise ConfigurationError(f"{name!r} is no domain name", "write one such as www.example.org, or *") from error


def _entry(name: str, value: str | Sequence[str]) -> _Entry:
    """Return the entry of a value.

    :raises ConfigurationError: if it is none.
    """
    several = isinstance(value, Iterable) and not isinstance(value, str)
    values = [str(each) for each in (value if several else (value,))]
    if len(values) == 1 and values[0] in OUTCOMES:
        return _Entry(values[0])
    return _Entry("", tuple(_record(name, each) for each in values))


def _record(name: str, text: str) -> tuple[str, dns.rdata.Rdata]:
    """Return type and data of a record.

    :raises ConfigurationError: if the text is none.
    """
    import dns.exception
    import dns.name
    import dns.rdata

    kind, _, data = text.partition(" ")
    with suppress(ValueError):
        kind, data = ADDRESS_TYPES[ipaddress.ip_address(text).version], text
    try:
        return kind.upper(), dns.rdata.from_text("IN", kind, data, origin=dns.name.root, relativize=False)
    except (dns.exception.DNSException, ValueError) as error:
        raise ConfigurationError(
            f"{text!r} is no record of {name}",
            f"write an address, {', '.join(OUTCOMES)}, or a type and its data such as 'MX 10 mail.example.org'",
        ) from error
