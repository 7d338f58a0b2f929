"""Which frames a rule is about. Takes 0.1 s."""

from __future__ import annotations

import pytest

from gpasst.impair.facts import ARP, DHCP, ICMP, NDP, OTHER, TCP, UDP, Flow, Run
from gpasst.impair.grammar import build, parse
from gpasst.impair.match import Matcher
from gpasst.wire import TCP_ACK, TCP_CWR, TCP_FIN, TCP_PSH, TCP_SYN

V4 = Flow(UDP, 4, bytes((192, 0, 2, 2)), bytes((198, 51, 100, 53)), 40000, 53)
V6 = Flow(TCP, 6, bytes.fromhex("20010db8000000000000000000000002"), bytes(15) + b"\1", 443, 50000)


@pytest.mark.parametrize(
    ("rule", "four", "six"),
    [
        ("loss 1%", True, True),
        ("udp: loss 1%", True, False),
        ("tcp,udp: loss 1%", True, True),
        ("icmp: loss 1%", False, False),
        ("src 192.0.2.2: loss 1%", True, False),
        ("src 192.0.2.0/31: loss 1%", False, False),
        ("src 192.0.2.0/30,2001:db8::/32: loss 1%", True, True),
        ("dst 198.51.100.53 src 192.0.2.3: loss 1%", False, False),
        ("dst ::1: loss 1%", False, True),
        ("dst 0.0.0.0/0: loss 1%", True, False),
        ("dport 53: loss 1%", True, False),
        ("dport 50-60,443: loss 1%", True, False),
        ("sport 443: loss 1%", False, True),
        ("sport 40000 dport 54: loss 1%", False, False),
        ("flags syn: loss 1%", False, True),
        ("reset", False, True),
        ("partition", True, True),
        ("udp: partition", True, False),
    ],
)
def test_flows(rule: str, four: bool, six: bool) -> None:
    matcher = Matcher(parse(rule))
    assert (matcher.concerns(V4), matcher.concerns(V6)) == (four, six)


@pytest.mark.parametrize("protocol", [ARP, NDP, DHCP])
def test_what_keeps_a_network_running_has_to_be_named(protocol: str) -> None:
    flow = Flow(protocol, 4, bytes(4), bytes(4), 68, 67) if protocol == DHCP else Flow(protocol)
    assert not Matcher(parse("loss 1%")).concerns(flow)
    assert Matcher(parse(f"{protocol}: loss 1%")).concerns(flow)
    assert Matcher(parse("partition")).concerns(flow)
    assert not Matcher(parse("udp: partition")).concerns(flow)


def test_only_a_partition_is_about_what_has_no_name() -> None:
    assert Matcher(parse("partition")).concerns(Flow(OTHER))
    assert not Matcher(parse("tcp,udp,icmp,arp,ndp,dhcp: loss 1%")).concerns(Flow(OTHER))
    assert Matcher(parse("loss 1%")).concerns(Flow(ICMP, 4, bytes(4), bytes(4)))


def fitting(rule: str, run: Run) -> list[int]:
    matcher = Matcher(parse(rule))
    return [index for index in range(run.count) if matcher.fits(run, index)]


def test_sizes_of_a_superframe_are_those_of_its_frames() -> None:
    run = Run(V4, None, 1442, 500, 4)
    assert fitting("size 1442: loss 1%", run) == [0, 1, 2]
    assert fitting("size 100-1000: loss 1%", run) == [3]
    assert fitting("size 1000-: loss 1%", Run(V4, None, 999)) == []


def test_flags_of_a_superframe_are_those_of_its_segments() -> None:
    run = Run(V6, None, 1500, 0, 4, TCP_ACK | TCP_PSH | TCP_FIN | TCP_CWR)
    assert fitting("flags ack: loss 1%", run) == [0, 1, 2, 3]
    assert fitting("flags fin: loss 1%", run) == [3]
    assert fitting("flags psh,ack,!cwr: loss 1%", run) == [3]
    assert fitting("flags cwr: loss 1%", run) == [0]
    assert fitting("flags !psh,!cwr: loss 1%", run) == [1, 2]
    assert fitting("flags syn,!ack: loss 1%", Run(V6, None, 60, flags=TCP_SYN)) == [0]
    assert fitting("flags syn,!ack: loss 1%", Run(V6, None, 60, flags=TCP_SYN | TCP_ACK)) == []


@pytest.mark.parametrize(
    ("nth", "chosen"),
    [("3", [3]), ("1-3", [1, 2, 3]), ("every 4", [4, 8]), ("2,4-5,9-", [2, 4, 5, 9, 10]), ("7-", [7, 8, 9, 10])],
)
def test_nth(nth: str, chosen: list[int]) -> None:
    matcher = Matcher(parse(f"nth {nth}: loss 1%"))
    assert [n for n in range(1, 11) if matcher.selects(n)] == chosen
    assert matcher.picks


def test_predicates_see_the_parsed_frame() -> None:
    matcher = Matcher(build(when=lambda frame: frame == "b", loss=0.01))
    run = Run(V4, None, 100, count=3, parsed="abc".__getitem__)
    assert [index for index in range(3) if matcher.fits(run, index)] == [1]


def test_a_rule_of_a_whole_flow_does_not_look_at_frames() -> None:
    assert not Matcher(parse("udp dst 198.51.100.0/24 dport 53: loss 1%")).picks
