"""Rules as text and as keywords. Takes 0.3 s."""

from __future__ import annotations

import enum
import ipaddress
from typing import Any

import pytest

from gpasst.errors import ConfigurationError
from gpasst.impair.grammar import build, essence, parse, text
from gpasst.impair.rule import CERTAIN, Burst, Queue, Rule

# Text, its canonical form where that differs, and the keywords that say the same.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "to guest udp dport 53: loss 30% delay 20ms±5ms seed 7",
        "",
        {"to": "guest", "protocol": "udp", "dport": 53, "loss": 0.3, "delay": "20ms", "jitter": 0.005, "seed": 7},
    ),
    ("loss 30%", "", {"loss": "30%"}),
    ("loss 0.5", "loss 50%", {"loss": 0.5}),
    ("loss 1e-3", "loss 0.1%", {"loss": 1e-3}),
    ("loss 0.000000001", "loss 0.0000001%", {"loss": 1e-9}),
    ("loss 7.5%", "", {"loss": 0.075}),
    ("loss 1", "loss 100%", {"loss": 1}),
    ("loss 0", "loss 0%", {"loss": 0.0}),
    ("loss burst", "loss burst p=1% r=25% good=0% bad=100%", {"loss": "burst"}),
    ("loss burst r=50% bad=.9", "loss burst p=1% r=50% good=0% bad=90%", {"loss": "burst r=50% bad=90%"}),
    ("delay 20ms", "", {"delay": 0.02}),
    ("delay .02s", "delay 20ms", {"delay": "20 ms"}),
    ("delay 1.5s", "", {"delay": 1.5}),
    ("delay 250us", "", {"delay": 250e-6}),
    ("delay 250µs", "delay 250us", {"delay": "250µs"}),
    ("delay 20ms +- 5ms", "delay 20ms±5ms", {"delay": "20ms+-5ms"}),
    ("delay 20ms+/-5ms", "delay 20ms±5ms", {"delay": "20ms", "jitter": "5ms"}),
    ("jitter 5ms delay 20ms", "delay 20ms±5ms", {"jitter": "5ms", "delay": "20ms"}),
    (
        "delay 20ms±5ms distribution pareto",
        "",
        {"delay": "20ms", "jitter": "5ms", "distribution": "pareto"},
    ),
    ("distribution 18ms, 20ms,1s", "distribution 18ms,20ms,1s", {"distribution": [0.018, "20ms", 1]}),
    ("reorder 10% gap 3", "", {"reorder": 0.1, "gap": 3}),
    ("reorder 10%", "reorder 10% gap 1", {"reorder": 0.1}),
    ("reorder 10% delay 20ms", "delay 20ms reorder 10%", {"reorder": 0.1, "delay": "20ms"}),
    ("reorder 0 delay 20ms±5ms", "delay 20ms±5ms reorder 0%", {"delay": "20ms±5ms", "reorder": 0}),
    ("duplicate 1%", "", {"duplicate": 0.01}),
    ("corrupt 1%", "", {"corrupt": 0.01}),
    ("corrupt payload", "", {"corrupt": "payload"}),
    ("corrupt payload 5%", "", {"corrupt": "payload 0.05"}),
    ("rate 10mbit", "", {"rate": 10_000_000}),
    ("rate 56KBIT queue 100 frames", "rate 56kbit queue 100 frames", {"rate": 56e3, "queue": "100 frames"}),
    ("rate 1.5gbit queue 64KiB head", "", {"rate": "1.5gbit", "queue": "64KiB head"}),
    ("rate 10mbit queue 50ms tail", "rate 10mbit queue 50ms", {"rate": "10mbit", "queue": "50ms"}),
    ("rate 10mbit queue 1000", "", {"rate": "10mbit", "queue": 1000}),
    ("mtu 1280", "", {"mtu": 1280}),
    ("mtu 1280 icmp", "", {"mtu": 1280, "icmp": True}),
    ("ecn mark", "", {"ecn": "mark"}),
    ("ecn mark 5%", "", {"ecn": "mark 5%"}),
    ("reset", "", {"reset": True}),
    ("unreachable admin", "", {"unreachable": "admin"}),
    ("partition", "", {"partition": True, "loss": None, "reset": False}),
    ("udp: rebind", "udp nth 1: rebind", {"protocol": "udp", "rebind": True}),
    ("loss 3% continue", "", {"loss": 0.03, "continue_": True}),
    ("protocol udp: loss 3%", "udp: loss 3%", {"protocol": "udp"} | {"loss": 0.03}),
    ("dhcp,tcp,udp : loss 3%", "tcp,udp,dhcp: loss 3%", {"protocol": ["udp", "tcp", "dhcp"], "loss": 0.03}),
    (
        "src 192.0.2.7/24,2001:db8::1 dst 2001:db8::: loss 3%",
        "src 192.0.2.0/24,2001:db8::1 dst 2001:db8::: loss 3%",
        {"src": [ipaddress.ip_network("192.0.2.0/24"), "2001:db8::1"], "dst": "2001:db8::", "loss": 0.03},
    ),
    (
        "dst 2001:db8:: udp: loss 3%",
        "udp dst 2001:db8::: loss 3%",
        {"dst": "2001:db8::", "protocol": "udp", "loss": 0.03},
    ),
    (
        "sport 1000-2000,2001,53 dport 1024-: loss 3%",
        "sport 53,1000-2001 dport 1024-: loss 3%",
        {"sport": "53,1000-2001", "dport": "1024-65535", "loss": 0.03},
    ),
    ("size 1000-: loss 3%", "", {"size": "1000-", "loss": 0.03}),
    ("nth 3: loss 100%", "", {"nth": 3, "loss": 1}),
    ("nth 1-5, 7 udp: loss 100%", "udp nth 1-5,7: loss 100%", {"nth": [7, "1-5"], "protocol": "udp", "loss": 1.0}),
    ("nth every 10: loss 100%", "", {"nth": "every  10", "loss": True and 1}),
    (
        "tcp flags SYN,!ACK: loss 3%",
        "tcp flags syn,!ack: loss 3%",
        {"protocol": "tcp", "flags": "syn,!ack", "loss": 0.03},
    ),
]


@pytest.mark.parametrize(("form", "canonical", "keywords"), CASES, ids=[case[0] for case in CASES])
def test_text_and_keywords_say_the_same(form: str, canonical: str, keywords: dict[str, Any]) -> None:
    rule = parse(form)
    assert text(rule) == (canonical or form)
    assert parse(text(rule)) == rule
    assert build(**keywords) == rule


class Port(enum.IntEnum):
    DOMAIN = 53


class Share(float):
    def __repr__(self) -> str:
        return "a share"


def test_numbers_of_every_kind_and_length_are_read() -> None:
    rule = build(dport=Port.DOMAIN, loss=Share(0.5), duplicate=1 / 3, delay=0.1 + 0.2)
    assert rule == parse("dport 53: loss 50% duplicate 33.3333333% delay 300ms")
    assert build(loss=5e-324) == parse("loss 0%")


def test_quantities_are_whole_numbers() -> None:
    rule = parse("loss burst p=0.1% delay 1.5ms rate 1.5mbit queue 64KiB head")
    assert rule == Rule(
        burst=Burst(CERTAIN // 1000, CERTAIN // 4, 0, CERTAIN),
        delay=1500,
        rate=1_500_000,
        queue=Queue(size=65536, head=True),
    )


def test_a_predicate_has_a_name_but_no_part_in_what_fates_depend_on() -> None:
    rule = build(when=str.isdigit, protocol="udp", loss=0.5, seed=7)
    assert text(rule) == "udp when str.isdigit: loss 50% seed 7"
    assert essence(rule) == "udp: loss 50%"


WRONG = [
    ("loss 130%", "loss 130%: a probability is 0 to 100 %; write it like 5% or 0.05"),
    ("loss 1.1", "loss 1.1: a probability is 0 to 100 %; write it like 5% or 0.05"),
    ("loss -1%", "loss -1%: a probability is 0 to 100 %; write it like 5% or 0.05"),
    ("loss", "loss has no value; see the examples of loss in docs/weather.md"),
    (
        "loss burst q=1%",
        "loss burst q=1%: a burst has p, r, good and bad; write it like burst p=1% r=25% good=0% bad=100%",
    ),
    ("loss 1% loss 2%", "loss is there twice; give it once"),
    ("delay 20", "delay 20: a time is 0 to 3600 s, with a unit; write it like 20ms, 250us or 1.5s"),
    ("delay 2h", "delay 2h: a time is 0 to 3600 s, with a unit; write it like 20ms, 250us or 1.5s"),
    ("delay 2ms±1ms jitter 1ms", "jitter is there twice; give it once, with ± or by itself"),
    ("jitter 1ms", "jitter has no delay to vary; give delay too, like delay 20ms±5ms"),
    ("delay 1ms distribution normal", "distribution has no jitter; give jitter too, like 5ms"),
    (
        "delay 1ms±1ms distribution gamma",
        "distribution gamma is not one of uniform, normal, pareto, nor a list of delays; "
        "write it like normal or 18ms,20ms,25ms",
    ),
    (
        "distribution 1ms,2ms delay 1ms",
        "a list of delays takes the place of delay and jitter; leave these out, or name a distribution",
    ),
    ("gap 3", "gap has no reorder; give reorder too, like reorder 10% gap 3"),
    ("reorder 1% gap 0", "gap 0: a whole number has to be 1 to 1000; write it like 10"),
    ("rate 10", "rate 10: a rate is 1bit to 1000gbit a second, with a unit; write it like 10mbit or 56kbit"),
    ("rate 10mbps", "rate 10mbps: a rate is 1bit to 1000gbit a second, with a unit; write it like 10mbit or 56kbit"),
    ("queue 50ms", "queue has no rate; give rate too, like rate 10mbit"),
    (
        "rate 1mbit queue long",
        "queue long is no limit of a queue; write it like 100 frames, 64KiB or 50ms, then tail or head",
    ),
    ("rate 1mbit queue 0 frames", "queue 0 frames: a whole number has to be at least 1; write it like 10"),
    ("icmp", "icmp has no mtu; give mtu too, like mtu 1280 icmp"),
    ("mtu 20", "mtu 20: a whole number has to be 68 to 65535; write it like 68"),
    ("ecn drop", "ecn drop is not mark, nor mark and a probability; write mark or mark 5%"),
    ("unreachable moon", "unreachable moon is not one of port, host, net, admin; write unreachable port"),
    ("udp: reset", "reset belongs to TCP; name tcp alone, or write unreachable port"),
    ("udp flags syn: loss 1%", "flags belong to TCP; name tcp alone, or leave flags out"),
    ("icmp dport 5: loss 1%", "ports belong to TCP and UDP; name tcp or udp, or leave sport and dport out"),
    (
        "partition loss 3%",
        "partition, reset and unreachable lose every frame, so no other effect can be seen; "
        "put it into a rule of its own",
    ),
    (
        "flags sin: loss 1%",
        "flags sin: a TCP flag is one of fin, syn, rst, psh, ack, urg, ece, cwr; write it like syn,!ack",
    ),
    ("flags syn,!syn: loss 1%", "flags syn,!syn: a flag is both set and not set; name each flag once"),
    ("to mars: loss 1%", "to mars is not one of guest, host; write to guest"),
    (
        "protocol sctp: loss 1%",
        "protocol sctp is not one of tcp, udp, icmp, arp, ndp, dhcp; write it like udp or tcp,udp",
    ),
    (
        "dst example.org: loss 1%",
        "dst example.org is not an address or prefix; write it like 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32",
    ),
    ("dst fe80::1%eth0: loss 1%", "dst fe80::1%eth0 has a scope, which no packet has; write it without %"),
    ("dport 0: loss 1%", "dport 0: a whole number has to be 1 to 65535; write it like 10"),
    ("dport 9-8: loss 1%", "dport 9-8: a range ends before it begins; write 8-9"),
    ("nth every 0: loss 1%", "nth every 0: a whole number has to be at least 1; write it like 10"),
    ("when x: loss 1%", "when x: a predicate is a Python function; give it to net.impair(when=...)"),
    ("loss 1% seed x", "seed x: a whole number has to be 0 to 18446744073709551615; write it like 10"),
    ("loss 1% dport 53", "dport stands behind the effects, or lacks a colon; write it like udp dport 53: loss 30%"),
    ("dport 53 loss 1%", "dport stands behind the effects, or lacks a colon; write it like udp dport 53: loss 30%"),
    (
        "udp loss 1%: delay 1ms",
        "loss stands before the colon; put effects behind it: write it like udp dport 53: loss 30%",
    ),
    ("sctp: loss 1%", "sctp is no match; give to, protocol, src, dst, sport, dport, size, nth, flags, when"),
    ("udp:", "the rule has no effect; give one, like loss 30% or delay 20ms"),
    ("", "the rule has no effect; give one, like loss 30% or delay 20ms"),
    ("loss 1\u20282%", "loss 1 2%: a probability is 0 to 100 %; write it like 5% or 0.05"),
    ("loss 1%" + 70000 * " ", "a rule has 70007 characters; 65536 are the most"),
    ("nth " + ",".join(map(str, range(1, 10000, 2))) + ": loss 1%", "write several rules"),
    ("distribution " + ",".join(["1ms"] * 5000), "leave some out"),
]


@pytest.mark.parametrize(("form", "message"), WRONG, ids=[case[0][:40] for case in WRONG])
def test_what_is_wrong_is_named_in_one_line(form: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(form)
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"latency": "20ms", "loss": 0.1}, "latency is no part of a rule; give to, protocol, src"),
        ({"loss": 30}, "loss 30: a probability is 0 to 100 %; write it like 5% or 0.05"),
        ({"loss": float("nan")}, "loss nan: a probability is 0 to 100 %; write it like 5% or 0.05"),
        ({"delay": -1}, "delay -1s: a time is 0 to 3600 s, with a unit; write it like 20ms, 250us or 1.5s"),
        ({"loss": True}, "loss has no value; see the examples of loss in docs/weather.md"),
        ({"reset": "yes"}, "reset yes has no value; write reset alone"),
        ({"when": 3, "loss": 0.1}, "when 3: is no function; give one that takes a parsed frame"),
        ({"dport": 53.0, "loss": 0.1}, "dport 53.0: a whole number has to be 1 to 65535; write it like 10"),
        ({"dport": (), "loss": 0.1}, "dport has no value; see the examples of dport in docs/weather.md"),
        ({"dport": {"a": "b"}, "loss": 0.1}, "dport {'a': 'b'}: a whole number has to be 1 to 65535; write it like 10"),
        ({"delay": 10**5000}, "delay: a number has 16610 bits; give a smaller one"),
        ({"loss": "9" * 9999}, f"loss {'9' * 80}...: a probability is 0 to 100 %"),
    ],
)
def test_wrong_keywords_have_the_same_messages(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build(**keywords)
    assert str(caught.value).startswith(message)
