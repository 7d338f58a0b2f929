"""Profiles, and the predicate of DNS names. Takes 0.1 s."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR

from gpasst.errors import ConfigurationError
from gpasst.impair.grammar import parse, text
from gpasst.weather import CLEAR, MOBILE_3G, PARTITION, PROFILES, Profile, dns_name, rules


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_profiles_are_canonical_rules_with_a_source(profile: Profile) -> None:
    assert [text(parse(rule)) for rule in profile] == list(profile.rules)
    assert len(profile.source) > 5


def test_profiles_have_names_in_any_case() -> None:
    assert rules("mobile-3g") == rules(" MOBILE_3G ") == tuple(map(parse, MOBILE_3G))
    assert rules("clear") == ()
    assert list(CLEAR) == []
    assert rules("partition") == (parse(*PARTITION),)
    assert rules("udp: loss 3%") == (parse("udp: loss 3%"),)


def test_a_name_that_is_none_shows_the_profiles() -> None:
    with pytest.raises(ConfigurationError, match=r"^mobile_9g is no effect; .*profile: CLEAR, PARTITION, MOBILE_3G"):
        rules("mobile_9g")
    with pytest.raises(ConfigurationError, match=r"^loss 130%: a probability is 0 to 100 %; write it like 5% or 0.05$"):
        rules("loss 130%")


@pytest.mark.parametrize(
    ("name", "asked", "matches"),
    [
        ("example.org", "example.org", True),
        ("Example.ORG.", "eXample.org", True),
        ("example.org", "www.example.org", False),
        ("*.example.org", "www.example.org", True),
        ("*.example.org", "example.org", False),
        ("ample.org", "example.org", False),
        ("*.ample.org", "example.org", False),
    ],
)
def test_dns_names_of_queries_and_answers(name: str, asked: str, matches: bool) -> None:
    query = bytes(DNS(id=7, qd=DNSQR(qname=asked)))
    answer = bytes(DNS(id=7, qr=1, qd=DNSQR(qname=asked), an=DNSRR(rrname=asked, rdata="192.0.2.1")))
    predicate = dns_name(name)
    for payload in (query, answer):
        assert predicate(SimpleNamespace(protocol="udp", payload=payload)) is matches
        assert predicate(SimpleNamespace(protocol="tcp", payload=b"\0\x20" + payload)) is matches


@pytest.mark.parametrize("payload", [b"", b"\0" * 12, b"short", bytes(40)])
def test_what_is_no_dns_message_has_no_name(payload: bytes) -> None:
    assert not dns_name("*.org")(SimpleNamespace(protocol="udp", payload=payload))


@pytest.mark.parametrize("name", ["", "*.", "a..b", "x" * 64])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a domain name; write it like"):
        dns_name(name)


def test_a_predicate_shows_its_name() -> None:
    assert dns_name("example.org").__qualname__ == "dns_name('example.org')"
