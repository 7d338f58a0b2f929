"""Port specifications: tables of what they mean and of what is refused, and the table of rules against a model."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpasst.errors import ConfigurationError
from gpasst.portspec import ForwardRule, lay, parse, reverse

ALL = (1, 49151, 1)
PORT = st.integers(1, 65535)
SMALL = 30  # ports of the model, of which those from 21 on are ephemeral
MODEL_EPHEMERAL = (21, 65535)
EPHEMERAL = (49152, 65535)


def rules_of(
    option: str, texts: list[str] | tuple[str, ...], ephemeral: tuple[int, int] = EPHEMERAL, protocol: str = "udp"
) -> tuple[ForwardRule, ...]:
    """Parse specifications, and lay them over an ephemeral range."""
    return lay(parse(option, texts, protocol), ephemeral)


def ranges(*texts: str) -> list[tuple[int, int, int]]:
    return [(rule.first, rule.last, rule.target) for rule in rules_of("-u", texts)]


def refusal(*texts: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        rules_of("-u", texts)
    return caught.value


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        (["5000"], [(5000, 5000, 5000)]),
        (["5000,8053:53"], [(5000, 5000, 5000), (8053, 8053, 53)]),
        (["8053:53,5000"], [(5000, 5000, 5000), (8053, 8053, 53)]),
        (["5000-5002"], [(5000, 5002, 5000)]),
        (["5000-5000"], [(5000, 5000, 5000)]),
        (["5000-5002:6000-6002"], [(5000, 5002, 6000)]),
        (["5000-5010,~5005"], [(5000, 5004, 5000), (5006, 5010, 5006)]),
        (["~5005,5000-5010"], [(5000, 5004, 5000), (5006, 5010, 5006)]),
        (["5000-5010:7000-7010,~5000-5003,~5010"], [(5004, 5009, 7004)]),
        (["5000-5010,~5003-5005,~5004-5007,~5001"], [(5000, 5000, 5000), (5002, 5002, 5002), (5008, 5010, 5008)]),
        (["5000,~5000"], []),
        (["~1-100"], [(101, 49151, 101)]),
        (["~1-65535"], []),
        (["~22,~80"], [(1, 21, 1), (23, 79, 23), (81, 49151, 81)]),
        (["all"], [ALL]),
        (["*/all"], [ALL]),
        (["all,~22"], [(1, 21, 1), (23, 49151, 23)]),
        (["all,8053:53"], [(8053, 8053, 53), (1, 8052, 1), (8054, 49151, 8054)]),
        (["all,8053:53,~8053"], [(1, 8052, 1), (8054, 49151, 8054)]),
        (["all,60000"], [(60000, 60000, 60000), ALL]),
        (["auto"], [(1, 65535, 1)]),
        (["auto,~22"], [(1, 21, 1), (23, 65535, 23)]),
        (["8000-8010,auto"], [(8000, 8010, 8000)]),
        (["auto,8000-8010:9000-9010,~8005"], [(8000, 8004, 9000), (8006, 8010, 9006)]),
        (["none"], []),
        (["5000", "none"], []),
        (["5000", "none", "6000"], [(6000, 6000, 6000)]),
        (["65535:1"], [(65535, 65535, 1)]),
        (["1:65535"], [(1, 1, 65535)]),
        (["0:80"], [(0, 0, 80)]),
        (["0:192.0.2.5/80"], [(0, 0, 80)]),
        (["0:80,0:81,5000"], [(5000, 5000, 5000), (0, 0, 80), (0, 0, 81)]),
        (["0:80,~80,~1-100"], [(0, 0, 80)]),
        (["0:80,all"], [(0, 0, 80), ALL]),
        (["0:80", "0:80"], [(0, 0, 80), (0, 0, 80)]),
        (["0:80", "none"], []),
    ],
)
def test_lists(texts: list[str], expected: list[tuple[int, int, int]]) -> None:
    assert ranges(*texts) == expected


@pytest.mark.parametrize(
    ("ephemeral", "expected"),
    [
        ((49152, 65535), [(1, 49151)]),
        ((32768, 60999), [(1, 32767), (61000, 65535)]),
        ((1, 1023), [(1024, 65535)]),
        ((1, 65535), []),
    ],
)
def test_all_leaves_out_the_ephemeral_range(ephemeral: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    assert [(rule.first, rule.last) for rule in rules_of("-u", ["all"], ephemeral)] == expected
    assert rules_of("-u", ["~2000"], ephemeral) == rules_of("-u", ["all,~2000"], ephemeral)


def test_until_then_all_is_every_port() -> None:
    parsed = parse("-u", ["all,~2000", "60000:53", "::1/auto"], "udp")
    assert [(rule.first, rule.last, rule.strict, rule.auto) for rule in parsed] == [
        (60000, 60000, True, False),
        (1, 1999, False, False),
        (2001, 59999, False, False),
        (60001, 65535, False, False),
        (1, 65535, False, True),
    ]
    # Only rules of "all" lose anything, and the same parsed rules may be laid again.
    for ephemeral in ((32768, 60999), (1, 65535), (32768, 60999)):
        laid = lay(parsed, ephemeral)
        assert (laid[0], laid[-1]) == (parsed[0], parsed[-1])
        kept = [port for rule in laid[1:-1] for port, _ in rule.ports()]
        first, last = ephemeral
        assert kept == [port for port in range(1, 65536) if port not in (2000, 60000) and not first <= port <= last]


@pytest.mark.parametrize(
    ("text", "address", "interface", "families"),
    [
        ("5000", None, None, (4, 6)),
        ("192.0.2.1/5000", "192.0.2.1", None, (4,)),
        ("2001:db8::1/5000", "2001:db8::1", None, (6,)),
        ("[2001:DB8::1]/5000", "2001:db8::1", None, (6,)),
        ("[192.0.2.1]/5000", "192.0.2.1", None, (4,)),
        ("192.0.2.1%eth0/5000", "192.0.2.1", "eth0", (4,)),
        ("fe80::1%eth0/5000", "fe80::1", "eth0", (6,)),
        ("[fe80::1]%eth0/5000", "fe80::1", "eth0", (6,)),
        ("[fe80::1%eth0]/5000", "fe80::1", "eth0", (6,)),
        ("%lo/5000", None, "lo", (4, 6)),
        ("%eth0,1/5000", None, "eth0,1", (4, 6)),
        ("*%lo/5000", None, "lo", (4, 6)),
        ("*/5000", None, None, (4, 6)),
        ("0.0.0.0/5000", "0.0.0.0", None, (4,)),
        ("::/5000", "::", None, (6,)),
        ("::%lo/5000", "::", "lo", (6,)),
        ("192.0.2.1/all", "192.0.2.1", None, (4,)),
        ("::1/auto", "::1", None, (6,)),
        ("%eth0/all", None, "eth0", (4, 6)),
        ("::1/~22-65535", "::1", None, (6,)),
        ("5000:2001:db8::5/6000", "5000:2001:db8::5", None, (6,)),
        ("5000::5/6000", "5000::5", None, (6,)),
        ("1:2:3:4:5:6:192.0.2.5/6000", "1:2:3:4:5:6:c000:205", None, (6,)),
    ],
)
def test_places(text: str, address: str | None, interface: str | None, families: tuple[int, ...]) -> None:
    (rule,) = rules_of("-u", [text])
    assert (rule.address, rule.interface, rule.families) == (address, interface, families)
    assert rule.target_address is None
    assert rule.text == text


ALL_BUT_5 = [(None, 1, 4, "192.0.2.5", 1), (None, 6, 49151, "192.0.2.5", 6)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5000:192.0.2.5/6000", [(None, 5000, 5000, "192.0.2.5", 6000)]),
        ("5000:[192.0.2.5]/6000", [(None, 5000, 5000, "192.0.2.5", 6000)]),
        ("5000:[2001:DB8::5]/6000", [(None, 5000, 5000, "2001:db8::5", 6000)]),
        ("5000:::5/6000", [(None, 5000, 5000, "::5", 6000)]),
        ("5000-5001:192.0.2.5/6000-6001", [(None, 5000, 5001, "192.0.2.5", 6000)]),
        ("5000-5001:2001:db8::5/6000-6001", [(None, 5000, 5001, "2001:db8::5", 6000)]),
        ("*/5000:2001:db8::5/6000", [(None, 5000, 5000, "2001:db8::5", 6000)]),
        ("127.0.0.1/5000:192.0.2.5/6000", [("127.0.0.1", 5000, 5000, "192.0.2.5", 6000)]),
        ("::1/5000:[2001:db8::5]/6000", [("::1", 5000, 5000, "2001:db8::5", 6000)]),
        ("::/5000:2001:db8::5/6000", [("::", 5000, 5000, "2001:db8::5", 6000)]),
        (
            "5000,6000:192.0.2.5/7000",
            [(None, 5000, 5000, None, 5000), (None, 6000, 6000, "192.0.2.5", 7000)],
        ),
        (
            "5000,6000:2001:db8::5/7000",
            [(None, 5000, 5000, None, 5000), (None, 6000, 6000, "2001:db8::5", 7000)],
        ),
        (
            "5000:192.0.2.5/1,6000:2001:db8::6/2",
            [(None, 5000, 5000, "192.0.2.5", 1), (None, 6000, 6000, "2001:db8::6", 2)],
        ),
        (
            "5000:192.0.2.5/1,5000:[2001:db8::6]/2",
            [(None, 5000, 5000, "192.0.2.5", 1), (None, 5000, 5000, "2001:db8::6", 2)],
        ),
        ("~5001,5000-5001:192.0.2.5/1-2", [(None, 5000, 5000, "192.0.2.5", 1)]),
        ("auto,5000:192.0.2.5/6000", [(None, 5000, 5000, "192.0.2.5", 6000)]),
        ("5000:192.0.2.5", [(None, 5000, 5000, "192.0.2.5", 5000)]),
        ("5000-5001:2001:db8::5", [(None, 5000, 5001, "2001:db8::5", 5000)]),
        ("5000:[2001:db8::5]", [(None, 5000, 5000, "2001:db8::5", 5000)]),
        ("127.0.0.1/5000:192.0.2.5,~1", [("127.0.0.1", 5000, 5000, "192.0.2.5", 5000)]),
        ("all:192.0.2.5", [(None, 1, 49151, "192.0.2.5", 1)]),
        ("::1/all:2001:db8::5,~1", [("::1", 2, 49151, "2001:db8::5", 2)]),
        ("all:192.0.2.5,5:192.0.2.6/7", [(None, 5, 5, "192.0.2.6", 7), *ALL_BUT_5]),
        ("all:192.0.2.5,auto", [(None, 1, 65535, "192.0.2.5", 1)]),
    ],
)
def test_target_addresses(text: str, expected: list[tuple[str | None, int, int, str | None, int]]) -> None:
    rules = rules_of("-U", [text])
    assert [(rule.address, rule.first, rule.last, rule.target_address, rule.target) for rule in rules] == expected
    for rule in rules:
        addresses = [address for address in (rule.address, rule.target_address) if address]
        assert rule.families == ((4, 6) if not addresses else (6,) if ":" in addresses[0] else (4,))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("5000", {(True, False)}),
        ("5000,~1", {(True, False)}),
        ("all", {(False, False)}),
        ("~22", {(False, False)}),
        ("all,8053:53", {(False, False), (True, False)}),
        ("auto", {(False, True)}),
        ("all,auto", {(False, True)}),
        ("all:192.0.2.5", {(False, False)}),
        ("8000,auto", {(False, True)}),
    ],
)
def test_what_forgives_and_what_is_automatic(text: str, kinds: set[tuple[bool, bool]]) -> None:
    assert {(rule.strict, rule.auto) for rule in rules_of("-u", [text])} == kinds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing is not a port from 1 to 65535, nor 0 with a target"),
        ("5000:0", "0 is not a port from 1 to 65535; "),
        ("5000:192.0.2.5/0", "0 is not a port"),
        ("0-5", "0 is not a port from 1 to 65535; "),
        ("~0", "0 is not a port"),
        ("65536", "65536 is not a port from 1 to 65535, nor 0 with a target; write [ADDRESS[%INTERFACE]/]PORT"),
        ("9" * 5000, "is not a port"),
        ("5000,", "nothing is not a port"),
        ("5000:", "nothing is not a port"),
        (":5000", "nothing is not a port"),
        ("abc", "abc is not a port"),
        ("~all", "all is not a port"),
        ("none,5000", "none is not a port"),
        ("*/none", "none is not a port"),
        ("all:53", "53 is not an IP address"),
        ("all:", "nothing is not an IP address"),
        ("all:192.0.2.5/53", "all:192.0.2.5 is not an IP address"),
        ("allows", "allows is not a port from 1 to 65535, nor 0 with a target"),
        ("5000, 6000", " 6000 is not a port"),
        ("5000\n", r"5000\n is not a port"),
        ("\udc80", r"\udc80 is not a port"),
        ("٣", "is not a port"),
        ("-5", "nothing is not a port"),
        ("5-", "nothing is not a port"),
        ("1-2-3", "2-3 is not a port"),
        ("5010-5000", "5010-5000 runs backwards"),
        ("5000-5001:80", "5000-5001 and 80 differ in width"),
        ("5000-5001:192.0.2.5/80", "5000-5001 and 80 differ in width"),
        ("0", "port 0 lacks a target; write 0:PORT"),
        ("0:80,auto", "0 and auto in one list"),
        ("0-1:80-81", "0 is not a port"),
        ("0:80-81", "0 and 80-81 differ in width"),
        ("80:0", "0 is not a port"),
        ("~0", "0 is not a port"),
        ("00:80", "00 is not a port"),
        ("5000:80:90", "80:90 is not a port"),
        ("~5000:80", "5000:80 is not a port"),
        ("*/5000/6000", "5000/6000 is not a port"),
        ("0:192.0.2.5", "0:192.0.2.5 lacks a port; write 0:192.0.2.5/PORT"),
        ("5000:192.0.2.5,5000", "port 5000 is given twice"),
        ("192.0.2.1/5000:2001:db8::5", "192.0.2.1 and 2001:db8::5 are of different families"),
        ("::1/all:192.0.2.5", "::1 and 192.0.2.5 are of different families"),
        ("5000:192.0.2.5/", "nothing is not a port"),
        ("5000:/6000", "nothing is not an IP address"),
        ("5000:host/6000", "host is not an IP address"),
        ("5000:[]/6000", "[] is not an IP address"),
        ("5000:[192.0.2.5/6000", "[192.0.2.5 is not an IP address"),
        ("5000:*/6000", "* is not an IP address"),
        ("5000:[fe80::1%eth0]/6000", "[fe80::1%eth0] is not an IP address"),
        ("5000:192.0.2.5/6/7", "192.0.2.5/6 is not an IP address"),
        ("host/5000", "host is not an IP address"),
        ("5000/6000", "5000 is not an IP address"),
        ("fe80::x/5000", "fe80::x is not an IP address"),
        ("[*]/5000", "[*] is not an IP address"),
        ("[]/5000", "[] is not an IP address"),
        ("[%eth0]/5000", "[] is not an IP address"),
        ("[[::1]]/5000", "[[::1]] is not an IP address"),
        ("[::1/5000", "[::1 is not an IP address"),
        ("/5000", "nothing is not an IP address"),
        ("%/5000", "nothing is no interface name"),
        ("1.2.3.4%/5000", "nothing is no interface name"),
        ("[fe80::1%eth0]%eth0/5000", "eth0]%eth0 is no interface name"),
        ("%a234567890123456/5000", "a234567890123456 is no interface name"),
        ("%../5000", ".. is no interface name"),
        ("%eth 0/5000", "eth 0 is no interface name"),
        ("%\udc80/5000", r"\udc80 is no interface name"),
        ("5000,5000", "port 5000 is given twice"),
        ("5000,4999-5001:53-55", "port 5000 is given twice"),
        ("5000:192.0.2.5/1,5000:192.0.2.6/1", "port 5000 is given twice"),
        ("5000:192.0.2.5/1,5000", "port 5000 is given twice"),
        ("5000-5009:192.0.2.5/1-10,5001:::5/1,5002:192.0.2.6/1", "port 5002 is given twice"),
        ("5000,5000,~5000", "port 5000 is given twice"),
        ("8000,8000:9000,auto", "port 8000 is given twice"),
        ("auto,auto", "auto in one list; give it once"),
        ("all,5000,all:192.0.2.5", "all and all:192.0.2.5 in one list; give it once"),
        ("192.0.2.1/5000:[2001:db8::5]/6000", "192.0.2.1 and 2001:db8::5 are of different families"),
        ("::/5000:192.0.2.5/6000", ":: and 192.0.2.5 are of different families"),
    ],
)
def test_refusals_name_the_option_and_the_fault(text: str, message: str) -> None:
    error = refusal("80", text)
    assert message in str(error)
    assert error.message.startswith(f"-u {text}: " if text.isprintable() else "-u ")
    assert str(error).isprintable()
    assert error.remedy


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["5000", "127.0.0.1/5000"], "-u 127.0.0.1/5000: udp port 5000 on 127.0.0.1 is forwarded twice, by 5000 too"),
        (["127.0.0.1/5000", "5000"], "-u 5000: udp port 5000 on 127.0.0.1 is forwarded twice, by 127.0.0.1/5000 too"),
        (["0.0.0.0/1-9", "5,6"], "-u 5,6: udp port 5 on 0.0.0.0 is forwarded twice, by 0.0.0.0/1-9 too"),
        (["0.0.0.0/5", "127.0.0.1/5"], "udp port 5 on 127.0.0.1"),
        (["::/5", "[::1]%lo/5"], "udp port 5 on ::1"),
        (["%lo/5", "*/5"], "udp port 5 on every address"),
        (["%lo/5:53", "127.0.0.1/5"], "udp port 5 on 127.0.0.1"),
        (["5:192.0.2.5/53", "127.0.0.1/5"], "udp port 5 on 127.0.0.1"),
        (["::1/1", "1-5,~1", "127.0.0.1/1,3-5"], "udp port 3 on 127.0.0.1"),
    ],
)
def test_places_that_cover_each_other_are_refused(texts: list[str], message: str) -> None:
    error = refusal(*texts)
    assert message in str(error)
    assert "add ~" in error.remedy


def test_the_remedy_for_places_that_cover_each_other_works() -> None:
    assert refusal("5000-5010", "127.0.0.1/5005-5020").remedy == "add ~5005-5010 to one of them"
    assert len(rules_of("-u", ["5000-5010,~5005-5010", "127.0.0.1/5005-5020"])) == 2


@pytest.mark.parametrize(
    "texts",
    [
        ["127.0.0.1/5000", "127.0.0.2/5000", "::1/5000"],
        ["%lo/6000", "%eth0/6000", "127.0.0.1%eth1/6000"],
        ["0.0.0.0/5000", "::/5000"],
        ["0.0.0.0/5000", "::1/5000"],
        ["5000:192.0.2.5/1", "::1/5000"],
        ["5000:192.0.2.5/1", "5000:[2001:db8::5]/1"],
        ["all", "127.0.0.1/5000"],
        ["127.0.0.1/5000", "all"],
        ["all", "127.0.0.1/all", "%lo/~22"],
        ["auto", "127.0.0.1/5000"],
        ["5000", "auto", "127.0.0.1/auto", "%lo/5000,auto"],
    ],
)
def test_what_does_not_cover_each_other_is_left_whole(texts: list[str]) -> None:
    alone = [rule for text in texts for rule in rules_of("-u", [text])]
    assert sorted(map(repr, rules_of("-u", texts))) == sorted(map(repr, alone))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["5000-5010", "5005:53"], [(5000, 5004, 5000), (5005, 5005, 53), (5006, 5010, 5006)]),
        (["5005:53", "5000-5010"], [(5000, 5010, 5000)]),
        (["5000-5010:1-11", "5000-5003,5010"], [(5000, 5003, 5000), (5004, 5009, 5), (5010, 5010, 5010)]),
        (["5000-5010", "5005:53,~5005"], [(5000, 5010, 5000)]),
        (["5000", "5000:1", "5000:2"], [(5000, 5000, 2)]),
        (["5000", "*/5000:1", "%lo/6000"], [(5000, 5000, 1), (6000, 6000, 6000)]),
        (["127.0.0.1/5000", "[127.0.0.1]/5000:1"], [(5000, 5000, 1)]),
        (["[fe80::1%lo]/5000", "fe80::1%lo/5000:1"], [(5000, 5000, 1)]),
        (["all", "8053:53"], [(8053, 8053, 53), (1, 8052, 1), (8054, 49151, 8054)]),
        (["8053:53", "all"], [(8053, 8053, 53), (1, 8052, 1), (8054, 49151, 8054)]),
        (["~1-100", "~50-65535"], [(1, 49, 1), (101, 49151, 101)]),
        (["all", "all"], [ALL]),
        (["auto", "8000:9000,auto"], [(1, 7999, 1), (8000, 8000, 9000), (8001, 65535, 8001)]),
        (["8000:9000,auto", "auto"], [(1, 65535, 1)]),
        (["5000", "auto"], [(5000, 5000, 5000), (1, 65535, 1)]),
        (["auto", "5000", "all"], [(5000, 5000, 5000), (1, 4999, 1), (5001, 49151, 5001), (1, 65535, 1)]),
        (["5000", "5000:192.0.2.5/1"], [(5000, 5000, 1)]),
        (["5000:192.0.2.5/1", "5000:[::5]/2", "5000:[::6]/3"], [(5000, 5000, 1), (5000, 5000, 3)]),
        (["5000:192.0.2.5/1", "5000:[::5]/2", "5000:3"], [(5000, 5000, 3)]),
        (["%b/2", "%a/1", "%b/1"], [(1, 1, 1), (2, 2, 2), (1, 1, 1)]),
    ],
)
def test_the_last_option_wins(texts: list[str], expected: list[tuple[int, int, int]]) -> None:
    assert ranges(*texts) == expected


def test_strict_rules_come_first_and_automatic_ones_last() -> None:
    rules = rules_of("-u", ["auto", "all", "127.0.0.1/5000", "::1/all,7"])
    assert [rule.text for rule in rules] == ["127.0.0.1/5000", "::1/all,7", "all", "::1/all,7", "::1/all,7", "auto"]


def test_rules_know_their_protocol_and_text() -> None:
    rules = rules_of("-t", ["5000-5010", "127.0.0.1/53"], protocol="tcp")
    assert [(rule.protocol, rule.text) for rule in rules] == [("tcp", "5000-5010"), ("tcp", "127.0.0.1/53")]
    assert rules[1] == ForwardRule("tcp", "127.0.0.1", None, 53, 53, 53)
    assert not rules[1].overlaps(ForwardRule("udp", "127.0.0.1", None, 53, 53, 53))
    with pytest.raises(ConfigurationError, match="tcp port 53"):
        rules_of("-t", ["53", "127.0.0.1/53"], protocol="tcp")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["5000"], {}),
        (["all"], {}),
        (["0:80"], {}),
        (["0:80,8080:80"], {80: 8080}),
        (["8053:53"], {53: 8053}),
        (["53:8053"], {8053: 53}),
        (["5000-5002:6000-6002"], {6000: 5000, 6001: 5001, 6002: 5002}),
        (["5000-5002:5001-5003"], {5001: 5000, 5002: 5001, 5003: 5002}),
        (["5000:80,6000:80,7000:90"], {90: 7000}),
        (["5000:80,6000:80,7000:80"], {}),
        (["80,8080:80"], {}),
        (["8080:80", "all"], {}),
        (["8080:80", "all,~80"], {80: 8080}),
        (["100:60000", "all"], {60000: 100}),
        (["127.0.0.1/8053:53", "127.0.0.2/8053:53", "::1/8053:53"], {53: 8053}),
        (["127.0.0.1/8053:53", "127.0.0.2/8054:53"], {}),
        (["127.0.0.1/8053:53", "127.0.0.2/53"], {}),
        (["8053:53,auto"], {}),
        (["8053:53", "auto"], {53: 8053}),
        (["10-11:11-12", "127.0.0.1/12-13:10-11"], {10: 12, 12: 11}),
    ],
)
def test_reverse(texts: list[str], expected: dict[int, int]) -> None:
    assert reverse(rules_of("-u", texts)) == expected


@pytest.mark.parametrize(
    ("text", "target", "port"),
    [
        ("8000-8010:9000-9010,auto", 9000, 8000),
        ("8000-8010:9000-9010,auto", 9010, 8010),
        ("8000-8010:9000-9010,auto", 8999, None),
        ("8000-8010:9000-9010,auto", 9011, None),
        ("8000-8010:9000-9010,auto", 8000, None),
        ("auto", 65535, 65535),
        ("65535:1", 1, 65535),
    ],
)
def test_listening_for(text: str, target: int, port: int | None) -> None:
    (rule,) = rules_of("-u", [text])
    assert rule.listening_for(target) == port


def test_thousands_of_ports_do_not_take_a_minute() -> None:
    excluded = ",".join(f"~{port}" for port in range(1, 40001, 2))
    assert len(rules_of("-u", [excluded, excluded, f"auto,{excluded}"])) == 2 * 20000
    named = ",".join(str(port) for port in range(1, 40001, 2))
    assert len(rules_of("-u", [excluded, named, f"127.0.0.1/{excluded}", "5:53"])) == 3 * 20000
    assert len(rules_of("-u", [str(port) for port in range(1, 1001)])) == 1000
    assert reverse(rules_of("-u", ["1-65534:2-65535"]))[65535] == 65534


@given(PORT, PORT, st.integers(0, 300))
def test_every_port_of_a_range_keeps_its_distance(first: int, target: int, width: int) -> None:
    width = min(width, 65535 - first, 65535 - target)
    (rule,) = rules_of("-u", [f"{first}-{first + width}:{target}-{target + width}"])
    assert list(rule.ports()) == [(first + i, target + i) for i in range(width + 1)]
    assert [rule.listening_for(target) for _, target in rule.ports()] == [port for port, _ in rule.ports()]


@given(PORT, PORT)
@example(8080, 80)
@example(65535, 1)
@example(80, 80)
def test_a_remap_opens_its_port_and_no_other(port: int, target: int) -> None:
    rules = rules_of("-u", [f"{port}:{target}"])
    assert [pair for rule in rules for pair in rule.ports()] == [(port, target)]
    assert reverse(rules) == ({} if port == target else {target: port})


def test_every_remap_is_reversed() -> None:
    """Each distance between two ports occurs, above all those from a high port to a low one."""
    for port in range(1, 65536):
        for target in (65536 - port, 1, 65535):
            rule = ForwardRule("udp", None, None, port, port, target)
            assert reverse([rule]) == ({} if port == target else {target: port})


GRAMMAR = st.lists(
    st.one_of(
        st.sampled_from(["all", "auto", "none", "192.0.2.1", "::1", "2001:db8::5", "eth0", "5000", "65535", "0"]),
        st.sampled_from("0123456789-:,/~%*[]. \n"),
    ),
    max_size=12,
).map("".join)


@given(st.lists(st.text(st.characters(), max_size=30) | GRAMMAR, max_size=4))
def test_any_text_gives_rules_or_one_clear_error(texts: list[str]) -> None:
    try:
        rules = rules_of("--udp-ports", texts)
    except ConfigurationError as error:
        assert error.message.startswith("--udp-ports ")
        assert str(error).isprintable()
        assert error.remedy
        return
    for rule in rules:
        assert 1 <= rule.first <= rule.last <= 65535
        assert 1 <= rule.target <= 65535 - (rule.last - rule.first)
        assert rule.text in texts
    assert not any(one.overlaps(two) for one, two in combinations([rule for rule in rules if rule.strict], 2))


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, dict[int, int], dict[int, int]]:
    """A list of ports of the model, with what it forwards strictly and what it forwards with forgiveness."""
    items: list[str] = []
    strict: dict[int, int] = {}
    excluded: set[int] = set()
    for bounds in draw(st.lists(st.tuples(st.integers(1, SMALL), st.integers(1, SMALL)), max_size=4)):
        first, last = sorted(bounds)
        wanted = range(first, last + 1)
        if not strict.keys().isdisjoint(wanted):
            continue
        target = draw(st.integers(1, 100))
        strict.update({port: target + port - first for port in wanted})
        items.append(f"{first}-{last}:{target}-{target + last - first}")
    for bounds in draw(st.lists(st.tuples(st.integers(1, SMALL), st.integers(1, SMALL)), max_size=2)):
        first, last = sorted(bounds)
        excluded.update(range(first, last + 1))
        items.append(f"~{first}-{last}")
    everything = not strict or draw(st.booleans())
    if everything and (strict or not items or draw(st.booleans())):
        items.append("all")
    forgiving = {port: port for port in range(1, MODEL_EPHEMERAL[0])} if everything else {}
    text = ",".join(draw(st.permutations(items)))
    return (
        text,
        {port: target for port, target in strict.items() if port not in excluded},
        {port: target for port, target in forgiving.items() if port not in excluded},
    )


@given(st.lists(lists(), max_size=6), st.sampled_from(["", "127.0.0.1/", "%lo/", "::1%lo/"]))
def test_lists_of_one_place_are_what_a_dictionary_would_be(
    values: list[tuple[str, dict[int, int], dict[int, int]]], place: str
) -> None:
    strict: dict[int, int] = {}
    forgiving: dict[int, int] = {}
    for _, named, rest in values:
        strict.update(named)
        forgiving.update(rest)
    rules = rules_of("-u", [place + text for text, _, _ in values], MODEL_EPHEMERAL)
    forwarded = [pair for rule in rules for pair in rule.ports()]
    assert dict(forwarded) == forgiving | strict
    assert len(forwarded) == len(dict(forwarded))
    assert {port for rule in rules if rule.strict for port, _ in rule.ports()} == set(strict)
    assert not any(one.overlaps(two) for one, two in combinations(rules, 2))
    assert [rule.strict for rule in rules] == sorted((rule.strict for rule in rules), reverse=True)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), unique_by=lambda pair: pair[0]))
def test_reverse_is_what_counting_gives(pairs: list[tuple[int, int]]) -> None:
    rules = rules_of("-u", [f"{port}:{target}" for port, target in pairs])
    sources = {target: [port for port, other in pairs if other == target] for _, target in pairs}
    assert reverse(rules) == {
        target: ports[0] for target, ports in sources.items() if len(ports) == 1 and ports != [target]
    }


@given(st.lists(lists(), min_size=1, max_size=3))
def test_automatic_lists_of_one_place_never_overlap(values: list[tuple[str, dict[int, int], dict[int, int]]]) -> None:
    texts = [",".join(item for item in [*text.split(","), "auto"] if item != "all") for text, _, _ in values]
    rules = rules_of("-u", texts)
    assert all(rule.auto and not rule.strict for rule in rules)
    assert not any(one.overlaps(two) for one, two in combinations(rules, 2))
