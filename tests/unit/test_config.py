"""Options: what they accept, and the one line that refuses the rest."""

from __future__ import annotations

import ipaddress
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpasst.config import Config, PortSide, options
from gpasst.errors import ConfigurationError
from gpasst.features import ALL, Feature

NOBODY = "is not one machine's address"


def configured(**fields: Any) -> Config:
    """Return the options of a caller who gives a text or a list where the record has a tuple."""
    return Config(**fields)


@pytest.mark.parametrize(
    ("values", "option", "fault"),
    [
        ({"address": "192.0.2"}, "--address", "192.0.2 is not an IP address"),
        ({"address": "192.0.2.2/33"}, "--address", "192.0.2.2/33 has no prefix length from 0 to 32"),
        ({"address": "192.0.2.2/"}, "--address", "192.0.2.2/ has no prefix length from 0 to 32"),
        ({"address": "192.0.2.2/255.255.255.0"}, "--address", "192.0.2.2/255.255.255.0 has no prefix length"),
        ({"address": "2001:db8::2/129"}, "--address", "2001:db8::2/129 has no prefix length from 0 to 128"),
        ({"address": ["192.0.2.2", "guest"]}, "--address", "guest is not an IP address"),
        ({"address": "0.0.0.0"}, "--address", NOBODY),
        ({"address": "127.0.0.1/8"}, "--address", NOBODY),
        ({"address": "::1"}, "--address", NOBODY),
        ({"gateway": "192.0.2.1/24"}, "--gateway", "192.0.2.1/24 has a prefix length"),
        ({"gateway": "fe80::1%eth0"}, "--gateway", "fe80::1%eth0 has a scope"),
        ({"gateway": "224.0.0.1"}, "--gateway", NOBODY),
        ({"gateway": "255.255.255.255"}, "--gateway", NOBODY),
        ({"gateway": "none"}, "--gateway", "none is not an IP address"),
        ({"outbound": "eth0"}, "--outbound", "eth0 is not an IP address"),
        ({"outbound": "::1"}, "--outbound", "::1 is a loopback address"),
        ({"dns": "resolver"}, "--dns", "resolver is not an IP address"),
        ({"dns_host": "none"}, "--dns-host", "none is not an IP address"),
        ({"dns_forward": "127.0.0.53"}, "--dns-forward", "127.0.0.53 is a loopback address"),
        ({"dns_forward": "::1"}, "--dns-forward", "::1 is a loopback address"),
        ({"map_host_loopback": "lo"}, "--map-host-loopback", "lo is not an IP address"),
        ({"map_host_loopback": "::"}, "--map-host-loopback", NOBODY),
        ({"map_guest_addr": "192.0.2.2/24"}, "--map-guest-addr", "has a prefix length"),
        ({"map_guest_addr": "ff02::1"}, "--map-guest-addr", NOBODY),
        ({"netmask": "255.0.255.0"}, "--netmask", "255.0.255.0 is neither a mask nor a length"),
        ({"netmask": "0.0.0.255"}, "--netmask", "0.0.0.255 is neither a mask nor a length"),
        ({"netmask": "33"}, "--netmask", "33 is neither a mask nor a length"),
        ({"mac_addr": "9a:55:9a:55:9a"}, "--mac-addr", "9a:55:9a:55:9a is not a MAC address"),
        ({"mac_addr": "01:00:5e:00:00:01"}, "--mac-addr", NOBODY),
        ({"mac_addr": "00:00:00:00:00:00"}, "--mac-addr", NOBODY),
        ({"ns_mac_addr": "9a559a559a55"}, "--ns-mac-addr", "9a559a559a55 is not a MAC address"),
        ({"mtu": 67}, "--mtu", "67 is out of range"),
        ({"mtu": 65522}, "--mtu", "65522 is out of range"),
        ({"mtu": -1}, "--mtu", "-1 is out of range"),
        ({"mtu": "1500"}, "--mtu", "takes a whole number, not '1500'"),
        ({"mtu": True}, "--mtu", "takes a whole number, not True"),
        ({"interface": "a234567890123456"}, "--interface", "a234567890123456 is no interface name"),
        ({"interface": "eth 0"}, "--interface", "eth 0 is no interface name"),
        ({"ns_ifname": ".."}, "--ns-ifname", ".. is no interface name"),
        ({"outbound_if4": "a/b"}, "--outbound-if4", "a/b is no interface name"),
        ({"outbound_if6": "a:b"}, "--outbound-if6", "a:b is no interface name"),
        ({"udp_timeout": 0}, "--udp-timeout", "0 is out of range"),
        ({"udp_filter": "port"}, "--udp-filter", "port is unknown"),
        ({"without": ["gro", "speed"]}, "--without", "speed is unknown"),
        ({"udp_ports": "5000:"}, "--udp-ports", "nothing is not a port"),
        ({"udp_ports": "5000,4999-5001"}, "--udp-ports", "port 5000 is given twice"),
        ({"udp_ports": 5000}, "--udp-ports", "takes text, not 5000"),
        ({"udp_ports": [5000]}, "--udp-ports", "takes text, not 5000"),
        ({"address": None}, "--address", "takes text, not None"),
        ({"address": b"192.0.2.2"}, "--address", "takes text, not b'192.0.2.2'"),
        ({"search": "x" * 64}, "--search", "is not a domain name"),
        ({"search": "a..b"}, "--search", "a..b is not a domain name"),
        ({"search": "a.example a..b"}, "--search", "a.example a..b is not a domain name"),
        ({"search": " "}, "--search", "is not a domain name"),
        ({"no_copy_addrs": True}, "--no-copy-addrs", "is about what --config-net copies"),
        ({"no_copy_routes": True}, "--no-copy-routes", "is about what --config-net copies"),
        ({"no_splice": True, "host_lo_to_ns_lo": True}, "--no-splice", "--host-lo-to-ns-lo exclude each other"),
        ({"ipv4_only": True, "outbound_if6": "up0"}, "--ipv4-only", "--outbound-if6 exclude each other"),
        ({"ipv6_only": True, "outbound_if4": "up0"}, "--ipv6-only", "--outbound-if4 exclude each other"),
        ({"address": "192.0.2.2/24", "netmask": "24"}, "--netmask 24", "with a prefix length exclude each other"),
        ({"netns": 5}, "--netns", "takes text, not 5"),
        ({"config_net": "yes"}, "--config-net", "takes True or False, not 'yes'"),
        ({"pid": 0}, "process ID", "0 is no process ID"),
        ({"pid": "12"}, "process ID", "12 is no process ID"),
        ({"pid": True}, "process ID", "True is no process ID"),
        ({"hostname": "ab" * 32}, "--hostname", "is not a domain name"),
        ({"hostname": "."}, "--hostname", ". is not a domain name"),
        ({"fqdn": "a..b"}, "--fqdn", "a..b is not a domain name"),
        ({"fqdn": f"{'x' * 63}." * 4}, "--fqdn", "is not a domain name"),
        ({"dhcp_dns": True, "no_dhcp_dns": True}, "--dhcp-dns", "--no-dhcp-dns exclude each other"),
        ({"dhcp_search": True, "no_dhcp_search": True}, "--dhcp-search", "--no-dhcp-search exclude each other"),
        ({"ipv4_only": True, "ipv6_only": True}, "--ipv4-only", "--ipv6-only exclude each other"),
        ({"userns": "/proc/1/ns/user", "netns_only": True}, "--userns", "--netns-only exclude each other"),
        ({"splice_only": True, "pcap": "file"}, "--pcap", "--splice-only makes no tap"),
        ({"tcp_ports": "5000,5000"}, "--tcp-ports", "port 5000 is given twice"),
        ({"pid": 1, "netns": "name"}, "PID", "--netns exclude each other"),
    ],
)
def test_refusals_name_the_option_the_fault_and_the_remedy(values: dict[str, Any], option: str, fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Config(**values)
    assert option in caught.value.message
    assert fault in caught.value.message
    assert caught.value.remedy
    assert str(caught.value) == f"{caught.value.message}; {caught.value.remedy}"
    assert "\n" not in str(caught.value)
    assert not caught.value.message.endswith(".")


ADDRESS_OPTIONS = (
    "address",
    "gateway",
    "outbound",
    "map_host_loopback",
    "map_guest_addr",
    "dns",
    "dns_forward",
    "dns_host",
)


@pytest.mark.parametrize("name", ADDRESS_OPTIONS)
@pytest.mark.parametrize("value", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"])
def test_no_address_is_that_of_nobody_or_of_many(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{value} {NOBODY}"):
        configured(**{name: value})


@pytest.mark.parametrize("name", ADDRESS_OPTIONS)
@pytest.mark.parametrize("value", ["::ffff:192.0.2.2", "::192.0.2.2"])
def test_no_address_has_two_families(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match="is an IPv4 address in the form of an IPv6 one"):
        configured(**{name: ipaddress.ip_address(value).compressed})


@pytest.mark.parametrize("name", ADDRESS_OPTIONS)
@pytest.mark.parametrize("value", ["127.0.0.9", "::1"])
def test_which_addresses_may_be_loopback_ones(name: str, value: str) -> None:
    if name in ("dns", "dns_host") or (name, value) == ("outbound", "127.0.0.9"):
        assert getattr(configured(**{name: value}), name) == (value,)
    else:
        with pytest.raises(ConfigurationError, match=value):
            configured(**{name: value})


def test_nothing_given() -> None:
    config = Config()
    assert config.families == (4, 6)
    assert config.creates_namespace
    assert (config.mtu, config.udp_timeout, config.udp_filter, config.busy_poll) == (65520, 180, "endpoint", 100)
    assert config.mac_addr == "9a:55:9a:55:9a:55"
    assert all(rules == () for rules in config.port_rules.values())
    assert not any(value for name, value in vars_of(config).items() if name not in KEPT)


KEPT = ("fd", "mtu", "udp_timeout", "udp_filter", "mac_addr", "busy_poll")


def vars_of(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in options()}


@pytest.mark.parametrize(
    "given_values",
    ["192.0.2.2", ("192.0.2.2",), ["192.0.2.2"], {"192.0.2.2": 1}, iter(["192.0.2.2"])],
)
def test_one_value_or_several(given_values: Any) -> None:
    assert Config(address=given_values).address == ("192.0.2.2",)


@pytest.mark.parametrize("mtu", [0, 68, 1500, 65520, 65521])
def test_mtus(mtu: int) -> None:
    assert Config(mtu=mtu).mtu == mtu


def test_families() -> None:
    assert Config(ipv4_only=True).families == (4,)
    assert Config(ipv6_only=True).families == (6,)


def test_features_can_be_done_without() -> None:
    assert Config().features == ALL
    assert configured(without="gro").features == ALL - {Feature.GRO}
    assert configured(without=["gro", "join"]).features == ALL - {Feature.GRO, Feature.JOIN}
    assert Config(no_offload=True).features == frozenset()


def test_only_a_new_namespace_is_created() -> None:
    assert not Config(pid=1).creates_namespace
    assert not Config(netns="name").creates_namespace
    assert Config(netns_only=True).creates_namespace


def test_port_rules_are_those_of_the_ports() -> None:
    config = configured(udp_ports=["5000:7000", "127.0.0.1/53"], udp_ns="53")
    (one, two) = config.port_rules[PortSide("udp", inside=False)]
    assert (one.first, one.target, one.address) == (5000, 7000, None)
    assert (two.first, two.target, two.address) == (53, 53, "127.0.0.1")
    (back,) = config.port_rules[PortSide("udp", inside=True)]
    assert (back.protocol, back.first, back.target) == ("udp", 53, 53)


def test_port_rules_follow_from_the_options() -> None:
    config = configured(udp_ports="5000")
    assert replace(config, udp_ports=("6000",)) == configured(udp_ports="6000")
    assert replace(config, udp_ports=("6000",)).port_rules == configured(udp_ports="6000").port_rules
    assert "port_rules" not in repr(config)
    with pytest.raises(TypeError):
        configured(port_rules={})


def test_a_config_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().mtu = 1500  # type: ignore[misc]
    assert configured(mtu=1500, address="192.0.2.2") == configured(mtu=1500, address=["192.0.2.2"])


def test_addresses_that_are_allowed() -> None:
    config = configured(
        address=["192.0.2.2/24", "2001:db8::2/64"],
        gateway=["192.0.2.1", "fe80::1"],
        map_host_loopback=["none", "192.0.2.9"],
        map_guest_addr="none",
        dns=["none"],
        dns_host="127.0.0.53",
        outbound="127.0.0.1",
        search=["none", "example.org.", "a.example b.example"],
        hostname="gäst",
        fqdn=f"{'x' * 62}." * 4 + "y",
    )
    assert config.address == ("192.0.2.2/24", "2001:db8::2/64")


def test_every_option_says_what_it_is() -> None:
    described = options()
    assert "pid" not in described
    assert all(option.help and not option.help.endswith(".") for option in described.values())
    shorts = [option.short for option in described.values() if option.short]
    assert len(shorts) == len(set(shorts))
    defaults = vars_of(Config())
    assert all(bool(option.metavar) == (type(defaults[name]) is not bool) for name, option in described.items())
    assert [option.alias for option in described.values() if option.alias] == ["--socket-path"]
    assert all(option.repeat == (type(defaults[name]) is tuple) for name, option in described.items())


@given(st.sampled_from(sorted(options())), st.one_of(st.text(max_size=20), st.integers(), st.lists(st.text())))
def test_any_value_is_accepted_or_refused_in_words(name: str, value: Any) -> None:
    try:
        config = Config(**{name: value})
    except ConfigurationError as error:
        assert error.message
        assert error.remedy
        return
    assert getattr(config, name) in (value, (value,), tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", sorted(name for name, option in options().items() if option.metavar))
def test_no_value_is_empty(name: str) -> None:
    for value in ("", [""]) if options()[name].repeat else ("",):
        with pytest.raises(ConfigurationError) as caught:
            configured(**{name: value})
        assert str(caught.value).startswith(f"--{name.replace('_', '-')} '' is empty; give ")


@pytest.mark.parametrize("name", sorted(name for name, option in options().items() if option.kind is str))
def test_a_zero_byte_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(**{name: "a\0\n"})
    assert str(caught.value).isprintable()


def test_a_user_namespace_alone_names_no_network_namespace() -> None:
    with pytest.raises(ConfigurationError, match="--userns /nonexistent is of no use"):
        Config(userns="/nonexistent")
    assert Config(userns="/nonexistent", netns="blue").userns == "/nonexistent"


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"address": "192.0.2.7/33"}, "write it like 192.0.2.7/24"),
        ({"address": "2001:db8::7/129"}, "write it like 2001:db8::7/64"),
        ({"gateway": "192.0.2.1/24"}, "write 192.0.2.1"),
        ({"gateway": "fe80::1%eth0"}, "write fe80::1"),
        ({"address": "::ffff:192.0.2.2"}, "write 192.0.2.2"),
        ({"gateway": "::192.0.2.1"}, "write 192.0.2.1"),
        ({"mac_addr": "00:00:00:00:00:00"}, "choose another, like 02:00:00:00:00:01"),
        ({"mac_addr": "01:00:00:00:00:00"}, "choose another, like 02:00:00:00:00:01"),
        ({"mac_addr": "03:00:00:00:00:09"}, "write 02:00:00:00:00:09"),
    ],
)
def test_the_remedy_makes_a_good_value(values: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Config(**values)
    assert caught.value.remedy == remedy
    ((name, _),) = values.items()
    configured(**{name: remedy.rsplit(maxsplit=1)[-1]})
