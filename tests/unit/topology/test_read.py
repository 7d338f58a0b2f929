"""Network files: what they are read as, and the one line that refuses the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.errors import ConfigurationError
from gpasst.topology.addresses import places
from gpasst.topology.read import NETWORKS_MAXIMUM, read
from gpasst.topology.records import (
    BETWEEN,
    LINK,
    PARTITION,
    CommandPlan,
    HostPlan,
    NetworkPlan,
    PortPlan,
    RouterPlan,
    Topology,
    WeatherPlan,
)

FILE = """\
[network.net]
subnet4 = "10.1.0.0/24"
subnet6 = "none"
uplink = true

[network.lan]
mtu = 1400
seed = 7
capture = "lan.pcapng"

[host.server]
networks = "net"
run = ["python3", "-m", "http.server", "80"]
wait_bound = "tcp 80"
forward = ["tcp 0:80", "udp 5000-5009"]

[host.a]
networks = ["lan"]
run = [["ping", "server"], ["true"]]

[host.b]
networks = ["lan", "net"]
forwarding = true
run = "ping a | cat"

[router.home]
inside = "lan"
outside = "net"
nat = "none"
hairpin = false
timeout = "2s"
firewall = "drop in"

[[weather]]
network = "lan"
between = ["a", "b"]
rule = ["delay 20ms", "MOBILE_3G"]
one_way = true
from = "2s"
until = 5

[[weather]]
network = "lan"
link = "home"
rule = "loss 1%"

[[weather]]
network = "lan"
partition = [["a"], ["b", "home"]]
"""


def refused(text: str) -> str:
    """Return the line that refuses a file."""
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    assert str(caught.value).isprintable()
    assert caught.value.remedy
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert FILE.count(old) == 1, old
    return FILE.replace(old, new)


def test_every_key_has_its_place() -> None:
    assert read(FILE) == Topology(
        networks=(
            NetworkPlan("net", subnet4="10.1.0.0/24", subnet6="", uplink=True),
            NetworkPlan("lan", mtu=1400, seed=7, capture="lan.pcapng"),
        ),
        hosts=(
            HostPlan(
                "server",
                ("net",),
                run=(CommandPlan(("python3", "-m", "http.server", "80")),),
                wait_bound=(PortPlan("tcp", "80"),),
                forward=(PortPlan("tcp", "0:80"), PortPlan("udp", "5000-5009")),
            ),
            HostPlan("a", ("lan",), run=(CommandPlan(("ping", "server")), CommandPlan(("true",)))),
            HostPlan("b", ("lan", "net"), forwarding=True, run=(CommandPlan(("ping a | cat",), shell=True),)),
        ),
        routers=(
            RouterPlan(
                "home", "lan", "net", (("nat", None), ("hairpin", False), ("timeout", 2.0), ("firewall", ("drop in",)))
            ),
        ),
        weather=(
            WeatherPlan(
                "lan",
                BETWEEN,
                (("a",), ("b",)),
                ("delay 20ms", "MOBILE_3G"),
                one_way=True,
                start=2_000_000,
                until=5_000_000,
            ),
            WeatherPlan("lan", LINK, (("home",),), ("loss 1%",)),
            WeatherPlan("lan", PARTITION, (("a",), ("b", "home"))),
        ),
    )


def test_of_the_only_network_no_name_is_needed() -> None:
    topology = read('[network.lan]\n[host.a]\n[host.b]\n[[weather]]\nbetween = ["a", "b"]\nrule = "loss 1%"\n')
    assert topology.networks == (NetworkPlan("lan"),)
    assert [host.networks for host in topology.hosts] == [("lan",), ("lan",)]
    assert topology.weather[0].network == "lan"


def test_a_network_of_small_packets_has_no_ipv6() -> None:
    topology = read("[network.lan]\nmtu = 1000\n[host.a]\n")
    assert places(topology) == {("a", "lan"): ("10.77.0.2",)}


def test_names_may_stand_in_quotes() -> None:
    (host,) = read('[network."lan.1"]\n[host."a.example"]\n').hosts
    assert (host.name, host.networks) == ("a.example", ("lan.1",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mtu = 1400", "mtu = 99000", "line 7: [network.lan] mtu = 99000: is out of range; give 68 to 65520 bytes"),
        ("mtu = 1400", "mtu = true", "line 7: [network.lan] mtu = true: is no whole number"),
        ("mtu = 1400", 'mtu = 1000\nsubnet6 = "fd01::/64"', "line 7: [network.lan] mtu = 1000: is too small for IPv6"),
        ("seed = 7", "seed = -1", "line 8: [network.lan] seed = -1: is out of range"),
        ("seed = 7", "sed = 7", "line 8: [network.lan] sed is no key of it; write seed, or leave it out; known are"),
        ('"10.1.0.0/24"', '"10.1.0.1/24"', "line 2: [network.net] subnet4 10.1.0.1/24: "),
        ('"10.1.0.0/24"', '"10.1.0.0/31"', "line 2: [network.net] subnet4 10.1.0.0/31 has no room for hosts"),
        ('"10.1.0.0/24"', "7", "line 2: [network.net] subnet4 = 7: is no text; write it in quotes"),
        ('"10.1.0.0/24"', '"none"', "line 1: [network.net] a network needs an address family"),
        ("uplink = true", 'uplink = "yes"', 'line 4: [network.net] uplink = "yes": is neither true nor false'),
        ("[network.lan]", '[network."l n"]', 'line 6: [network."l n"] l n is no interface name'),
        (
            'networks = ["lan"]',
            'networks = ["lna"]',
            "line 18: [host.a] networks = ['lna']: lna is no network",
        ),
        ('networks = ["lan"]', "networks = []", "line 18: [host.a] networks = []: is empty"),
        ('networks = ["lan"]', 'networks = ["lan", "lan"]', "names one twice"),
        ('networks = ["lan"]\n', "", 'line 17: [host.a] networks is missing; write it like networks = ["net"]'),
        ("[host.a]", '[host."a b"]', 'line 17: [host."a b"] a b is not a domain name'),
        ('"ping", "server"', '"", "server"', "line 19: [host.a] run = "),
        ('"ping", "server"', '"ping", 7', "line 19: [host.a] run = "),
        ('"ping", "server"', '"ping", "a\\u0000"', "has a zero byte in it"),
        ('run = "ping a | cat"', "run = 7", "line 24: [host.b] run = 7: is no command"),
        ('["lan", "net"]', '["lan"]', "line 23: [host.b] forwards between networks, and is in one"),
        ('"tcp 80"', '"tcp 0"', 'line 14: [host.server] wait_bound = "tcp 0": is out of range'),
        ('"tcp 80"', '"sctp 80"', "sctp is no protocol with ports; write it like tcp 7000"),
        (
            'run = ["python3", "-m", "http.server", "80"]\n',
            "",
            "line 13: [host.server] waits for a port",
        ),
        ("tcp 0:80", "tcp 99999:80", "line 15: [host.server] forward = "),
        ("tcp 0:80", "tcp auto", "names no port"),
        ("uplink = true", "", "line 15: [host.server] has no uplink, through which forwards lead; add uplink = true"),
        ("[router.home]", "[router.gateway]", "line 26: [router.gateway] has the name of the uplink of net"),
        ("[router.home]", "[router.localhost]", "line 26: [router.localhost] has a name that each host has for itself"),
        ("[host.b]", "[host.ip6-loopback]", "line 21: [host.ip6-loopback] has a name that each host has for itself"),
        ("[router.home]", "[router.a]", "line 26: [router.a] has the name of a host, [host.a]"),
        ('inside = "lan"\n', "", 'line 26: [router.home] inside is missing; write it like inside = "net"'),
        ('inside = "lan"', 'inside = "net"', "line 28: [router.home] leads from net to itself"),
        ("hairpin = false", "hairpin = 0", "line 30: [router.home] hairpin = 0: is neither true nor false"),
        ('timeout = "2s"', "timeout = -1", "line 31: [router.home] timeout = -1: is no number of seconds"),
        (
            '["a", "b"]',
            '["a", "c"]',
            "line 36: [[weather]] between = ['a', 'c']: c is no host of lan",
        ),
        ('["a", "b"]', '["a"]', "line 36: [[weather]] between = ['a']: are not two hosts"),
        ("MOBILE_3G", "MOBILE_9G", "line 37: [[weather]] rule = ['delay 20ms', 'MOBILE_9G']: is no rule: "),
        ('from = "2s"', 'from = "6s"', "line 40: [[weather]] until is no later than from"),
        ("until = 5", "until = 5000", "line 40: [[weather]] until = 5000: a time is 0 to 3600 s"),
        ("until = 5", "until = nan", "line 40: [[weather]] until = nan: a time is"),
        ('rule = "loss 1%"', "", "line 42: [[weather]] rule is missing"),
        (
            'rule = "loss 1%"',
            'rule = "loss 1%"\none_way = true',
            "line 46: [[weather]] one_way is about",
        ),
        ('link = "home"', "", "line 42: [[weather]] has 0 of between, link and partition"),
        ('link = "home"', 'link = "home"\nbetween = ["a", "b"]', "line 42: [[weather]] has 2 of between, link"),
        ('link = "home"', 'link = "server"', 'line 44: [[weather]] link = "server": server is no host of lan'),
        ('[["a"], ["b", "home"]]', '[["a"], ["b", "a"]]', "line 49: [[weather]] partition = "),
        ('[["a"], ["b", "home"]]', '[["a"]]', "has no two groups"),
        ('[["a"], ["b", "home"]]', '[["a"], ["b"]]\nrule = "loss 1%"', "line 50: [[weather]] has both partition"),
        (
            '[[weather]]\nnetwork = "lan"\npartition',
            "[[wether]]\npartition",
            "[wether] is no table of a network file; write weather",
        ),
        ("[router.home]", "[router.home", "the file is no TOML: "),
    ],
)
def test_what_is_wrong_is_one_line(old: str, new: str, message: str) -> None:
    assert message in refused(changed(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has no network; add a table like [network.lan]"),
        ("network = 7", "[network] has no names"),
        ("[network]\nlan = 7", "[network.lan] 7 is no table"),
        ("[network.lan]\n[weather]", "line 2: [weather] is one table; write [[weather]]"),
        ("weather = [7]\n[network.lan]", "[[weather]] 7 is no table"),
        (
            "\n".join(f"[network.n{number}]" for number in range(NETWORKS_MAXIMUM + 1)),
            f"{NETWORKS_MAXIMUM} are the most",
        ),
        ("x = " + "[" * 5000, "the file is no TOML"),
        ("x = " + "9" * 5000, "the file is no TOML"),
        ("[network.lan]\nmtu = 0x" + "f" * 5000, "line 2: [network.lan] mtu = a number of thousands of digits: is out"),
        (" " * (1 << 21), "characters"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, message: str) -> None:
    assert message in refused(text)


@pytest.mark.parametrize(("first", "second"), [("10.1.0.0/16", "10.1.2.0/24"), ("10.1.0.0/24", "10.1.0.0/24")])
def test_a_host_cannot_be_in_two_networks_of_one_prefix(first: str, second: str) -> None:
    text = f'[network.x]\nsubnet4 = "{first}"\n[network.y]\nsubnet4 = "{second}"\n'
    assert read(text), "two homes may well have the same one"
    message = refused(text + '[host.a]\nnetworks = ["x", "y"]\n')
    assert f"line 5: [host.a] is in x and y, whose prefixes {first} and {second} overlap" in message
    message = refused(text + '[router.a]\ninside = "x"\noutside = "y"\n')
    assert "line 5: [router.a] is in y and x, whose prefixes" in message


LINES = st.sampled_from(FILE.splitlines())


@given(st.lists(LINES, max_size=30).map("\n".join) | st.text())
def test_nothing_but_a_refusal_comes_of_any_text(text: str) -> None:
    try:
        read(text)
    except ConfigurationError as error:
        assert str(error).isprintable()
        assert error.remedy
