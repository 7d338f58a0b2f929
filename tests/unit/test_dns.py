"""Answers of a stub resolver: which value decides for a name, and how an answer is cut."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.dns import NXDOMAIN, REFUSED, SERVFAIL, SILENCE, Records, Zone, malformed, parse, question, to_wire
from gpasst.errors import ConfigurationError

RECORDS: Records = {
    "example.org": "192.0.2.80",
    "both.example.org": ["192.0.2.81", "2001:db8::81", "192.0.2.82"],
    "www.example.org": "CNAME both.example.org",
    "mail.example.org": ["MX 10 mx.example.org.", 'TXT "v=spf1 -all"'],
    "*.example.org": "192.0.2.99",
    "deep.wild.example.org": "2001:db8::1",
    "loop.example.org": "CNAME loop.example.org",
    "broken.test": SERVFAIL,
    "closed.test": REFUSED,
    "silent.test": SILENCE,
    "Upper.Test.": "192.0.2.83",
    "*": NXDOMAIN,
}


def asked(name: str, kind: str = "A", records: Records = RECORDS, **options: Any) -> dns.message.Message | None:
    """Return the answer to a query, after a trip over the wire."""
    query = parse(dns.message.make_query(name, kind, **options).to_wire())
    assert query is not None
    response = Zone(records).respond(query)
    if response is None:
        return None
    return dns.message.from_wire(to_wire(response, query, "udp", truncated=False))


def values(response: dns.message.Message | None) -> list[str]:
    assert response is not None
    assert response.rcode() == dns.rcode.NOERROR
    return [f"{dns.rdatatype.to_text(record.rdtype)} {record}" for answer in response.answer for record in answer]


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("example.org", "A", ["A 192.0.2.80"]),
        ("EXAMPLE.org", "A", ["A 192.0.2.80"]),
        ("example.org", "AAAA", []),
        ("both.example.org", "A", ["A 192.0.2.81", "A 192.0.2.82"]),
        ("both.example.org", "AAAA", ["AAAA 2001:db8::81"]),
        ("both.example.org", "ANY", ["A 192.0.2.81", "A 192.0.2.82", "AAAA 2001:db8::81"]),
        ("www.example.org", "A", ["CNAME both.example.org.", "A 192.0.2.81", "A 192.0.2.82"]),
        ("www.example.org", "CNAME", ["CNAME both.example.org."]),
        ("mail.example.org", "MX", ["MX 10 mx.example.org."]),
        ("mail.example.org", "TXT", ['TXT "v=spf1 -all"']),
        ("other.example.org", "A", ["A 192.0.2.99"]),
        ("far.below.example.org", "A", ["A 192.0.2.99"]),
        ("deep.wild.example.org", "AAAA", ["AAAA 2001:db8::1"]),
        ("loop.example.org", "A", ["CNAME loop.example.org."]),
        ("upper.test", "A", ["A 192.0.2.83"]),
    ],
)
def test_the_most_specific_name_decides(name: str, kind: str, found: list[str]) -> None:
    assert values(asked(name, kind)) == found


@pytest.mark.parametrize(
    ("name", "code"), [("broken.test", "SERVFAIL"), ("closed.test", "REFUSED"), ("nothing.test", "NXDOMAIN")]
)
def test_an_outcome_is_a_code(name: str, code: str) -> None:
    response = asked(name)
    assert response is not None
    assert (dns.rcode.to_text(response.rcode()), response.answer) == (code, [])


def test_silence_is_no_answer() -> None:
    assert asked("silent.test") is None


def test_what_nothing_fits_does_not_exist() -> None:
    response = asked("other.test", records={"example.org": "192.0.2.80"})
    assert response is not None
    assert response.rcode() == dns.rcode.NXDOMAIN


def test_star_stands_for_all_else() -> None:
    assert values(asked("whatever.test", records={"*": "192.0.2.7"})) == ["A 192.0.2.7"]
    assert values(asked(".", records={"*": "192.0.2.7"})) == ["A 192.0.2.7"]


@pytest.mark.parametrize(
    ("options", "fits"), [({"use_edns": False}, 512), ({"use_edns": 0, "payload": 1232}, 1232), ({"payload": 16}, 512)]
)
def test_an_answer_by_udp_is_as_long_as_the_client_takes(options: dict[str, Any], fits: int) -> None:
    many = [f"192.0.2.{number}" for number in range(200)]
    query = parse(dns.message.make_query("many.test", "A", **options).to_wire())
    assert query is not None
    response = Zone({"many.test": many}).respond(query)
    assert response is not None
    cut = to_wire(response, query, "udp", truncated=False)
    assert len(cut) <= fits
    assert dns.message.from_wire(cut).flags & dns.flags.TC
    whole = dns.message.from_wire(to_wire(response, query, "tcp", truncated=False))
    assert not whole.flags & dns.flags.TC
    assert [str(record) for record in whole.answer[0]] == many, "in the order of the test"


def test_an_answer_is_truncated_on_demand() -> None:
    query = parse(dns.message.make_query("example.org", "A").to_wire())
    assert query is not None
    response = Zone(RECORDS).respond(query)
    assert response is not None
    cut = dns.message.from_wire(to_wire(response, query, "udp", truncated=True))
    assert (cut.answer, bool(cut.flags & dns.flags.TC), cut.rcode()) == ([], True, 0)


def test_a_query_is_known_by_name_and_type() -> None:
    query = parse(dns.message.make_query("WWW.example.org", "AAAA").to_wire())
    assert query is not None
    assert question(query) == ("WWW.example.org", "AAAA")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"a..b": "192.0.2.1"}, "'a..b' is no domain name; write one such as www.example.org, or *"),
        ({"x" * 64: "192.0.2.1"}, f"{'x' * 64!r} is no domain name; "),
        ({"a.test": "192.0.2"}, "'192.0.2' is no record of a.test; write an address, NXDOMAIN, SERVFAIL, REFUSED, "),
        ({"a.test": ["192.0.2.1", "NXDOMAIN"]}, "'NXDOMAIN' is no record of a.test; "),
        ({"a.test": 5}, "'5' is no record of a.test; "),
        ({"a.test": "MX ten mail.test"}, "'MX ten mail.test' is no record of a.test; "),
    ],
)
def test_what_dns_does_not_have_is_refused(record: dict[str, str | Sequence[str]], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Zone(record)
    assert str(caught.value).startswith(message)


def test_what_is_no_query_is_answered_as_malformed() -> None:
    query = dns.message.make_query("example.org", "A")
    reply = dns.message.make_response(query)
    assert parse(reply.to_wire()) is None
    assert malformed(reply.to_wire()) is None, "or two resolvers would talk for ever"
    for other in (
        dns.message.make_query("version.bind", "TXT", "CH").to_wire(),
        query.to_wire()[:-1],
        query.to_wire()[:2] + b"\x28" + query.to_wire()[3:],  # an update
        query.to_wire()[:4] + b"\0\0" + query.to_wire()[6:12],  # no question
    ):
        assert parse(other) is None
        answer = malformed(other)
        assert answer is not None
        assert dns.message.from_wire(answer).rcode() == dns.rcode.FORMERR
        assert answer[:2] == other[:2]
    assert malformed(b"short") is None


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: b"\0\1\1\0\0\1\0\0\0\0\0\0" + tail))
def test_no_bytes_raise_anything(data: bytes) -> None:
    query = parse(data)
    if query is None:
        malformed(data)
    else:
        response = Zone(RECORDS).respond(query)
        assert response is None or to_wire(response, query, "udp", truncated=False)


def test_without_dnspython_one_line_says_so() -> None:
    probe = (
        "import sys; sys.modules['dns'] = None\n"
        "from gpasst.dns import Zone\n"
        "from gpasst.errors import PlatformError\n"
        "try: Zone({})\n"
        "except PlatformError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "dnspython is not installed; pip install 'gpasst[testing]'\n"
