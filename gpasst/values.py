"""The values that options take as text: their rules, and what they mean.

Theory of operation: a rule is a function of one value that raises `ConfigurationError` where the value breaks it. The
message is the *fault* alone, like "is no interface name"; whoever knows the option puts option and value before it
(`gpasst.config.check_value`). So every rule stands once, and every message has one form.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from gpasst.errors import ConfigurationError
from gpasst.linux import IFNAMSIZ

Rule = Callable[[Any], object]
"""Takes a value, and raises `ConfigurationError` with the fault if the value breaks the rule."""

NONE: Final = "none"  # the value that takes back what came before it
NAME_MAXIMUM: Final = 253  # bytes of a domain name as text; 255 in wire format (RFC 1035, section 2.3.4)
LABEL_MAXIMUM: Final = 63  # bytes of one of its labels (RFC 1035, section 2.3.4)
IPV4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")  # an IPv4 address in IPv6's form (RFC 4291, section 2.5.5.1)
LOOPBACK6: Final = ipaddress.IPv6Address("::1")  # unlike 127.0.0.1, which passt takes to keep traffic on the host
BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")
INTERFACE_NAME_LENGTH: Final = IFNAMSIZ - 1  # bytes
NOT_IN_NAMES: Final = b"/:% \xa0"  # printable bytes that no interface name contains
NO_NAMES: Final = ("", ".", "..", "all", "default")  # the last two are folders of net.ipv4.conf
SEED_MAXIMUM: Final = (1 << 64) - 1
NUMBER_MAXIMUM: Final = (1 << 31) - 1  # of an int in C, which such a value ends in
LENGTH_EXAMPLES: Final = {4: 24, 6: 64}  # bits of ordinary prefixes, by family
ADDRESS_EXAMPLE: Final = "write it like 192.0.2.2 or 2001:db8::2"
MAC_EXAMPLE: Final = "02:00:00:00:00:01"
LIKENESS: Final = 0.8  # of a mistyped word and a known one, from 0 to 1, as difflib has it
GROUP_BIT: Final = 1  # of the first byte of a MAC address (IEEE 802, section 8.2.2)


def shown(value: object) -> str:
    """Return a value as messages show it: in one line, and in quotes if it is empty."""
    text = str(value)
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text) or "''"


def similar(word: str, known: Iterable[str]) -> str:
    """Return how a remedy begins that names the known word most like an unknown one; empty if none is like it."""
    from difflib import get_close_matches  # which only mistakes need

    found = get_close_matches(word, known, 1, LIKENESS)
    return f"write {found[0]}, or " if found else ""


def end_text(address: str, port: int) -> str:
    """Return the text of an address and port; of the address alone where the port is 0."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def check_timeout(seconds: float) -> None:
    """Refuse a time to wait that is no number of seconds: NaN never passes.

    :raises ConfigurationError: if it is none.
    """
    if not isinstance(seconds, int | float) or math.isnan(seconds):
        raise ConfigurationError(f"timeout {seconds!r}: is no number of seconds", "write it like 2.0")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither true nor false.

    :param name: of the parameter.
    :raises ConfigurationError: if it is neither.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} {value!r} is neither True nor False", "pass one of these")


def check_seed(value: object) -> None:
    """Refuse what is no seed of chance; None for one that is chosen elsewhere.

    :raises ConfigurationError: if it is none.
    """
    if value is not None and not (type(value) is int and 0 <= value <= SEED_MAXIMUM):
        raise ConfigurationError(f"seed {value!r}", f"give a whole number from 0 to {SEED_MAXIMUM}")


def check_count(name: str, value: object) -> None:
    """Refuse what is no number of things.

    :param name: of the parameter.
    :raises ConfigurationError: if it is none.
    """
    if type(value) is not int or value < 0:
        raise ConfigurationError(f"{name} {value!r} is no number", "give a whole number from 0 on")


def anything(value: str) -> None:
    """Accept every text: what it names shows when it is used."""


def number(lowest: int, highest: int = NUMBER_MAXIMUM, unit: str = "", zero: bool = False) -> Rule:
    """Return the rule of whole numbers from `lowest` to `highest`.

    :param unit: what the number counts, for messages.
    :param zero: whether 0 is accepted too.
    """

    def check(value: int) -> None:
        if not (lowest <= value <= highest or (zero and value == 0)):
            limits = f"{lowest} to {highest}" if highest < NUMBER_MAXIMUM else f"at least {lowest}"
            unit_shown = f" {unit}" if unit else ""
            raise ConfigurationError("is out of range", f"give {limits}{unit_shown}{', or 0' if zero else ''}")

    return check


def one_of(words: Iterable[str]) -> Rule:
    """Return the rule of values that are one of `words`."""
    known = tuple(words)

    def check(value: str) -> None:
        if value not in known:
            raise ConfigurationError("is unknown", f"give one of {', '.join(known)}")

    return check


def none_or(rule: Rule) -> Rule:
    """Return `rule` for values that may be ``none``, too."""

    def check(value: str) -> None:
        if value != NONE:
            rule(value)

    return check


def parse_number(text: str) -> int:
    """Turn the text of a whole number into the number.

    :raises ConfigurationError: if it is none.
    """
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise ConfigurationError("is not a whole number", "write it in digits")
    return int(text)


def split_address(text: str) -> tuple[str, int | None]:
    """Split ``ADDR[/LEN]`` into an address and its prefix length in bits, None if absent.

    :raises ConfigurationError: if either part is malformed, or the address has a scope.
    """
    host, slash, length = text.partition("/")
    host, scope, _ = host.partition("%")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigurationError("is not an IP address", ADDRESS_EXAMPLE) from None
    if scope:
        raise ConfigurationError("has a scope, which means nothing in the guest's network", f"write {host}")
    if not slash:
        return str(address), None
    bits = address.max_prefixlen
    if not re.fullmatch("[0-9]{1,3}", length) or int(length) > bits:
        raise ConfigurationError(
            f"has no prefix length from 0 to {bits}", f"write it like {host}/{LENGTH_EXAMPLES[address.version]}"
        )
    return str(address), int(length)


def check_address(value: str) -> None:
    """Check that a value is the address of a machine, maybe of the host itself.

    :raises ConfigurationError: if it is not.
    """
    text, prefix = split_address(value)
    if prefix is not None:
        raise ConfigurationError("has a prefix length", f"write {text}")
    address = ipaddress.ip_address(text)
    if address.is_unspecified or address.is_multicast or address == BROADCAST:
        raise ConfigurationError("is not one machine's address", ADDRESS_EXAMPLE)
    if isinstance(address, ipaddress.IPv6Address) and not address.is_loopback:
        # No packet of either family has it: the kernel sends IPv4 for a mapped one, and nothing for the others.
        embedded = ipaddress.IPv4Address(address.packed[12:]) if address in IPV4_COMPATIBLE else address.ipv4_mapped
        if embedded:
            raise ConfigurationError("is an IPv4 address in the form of an IPv6 one", f"write {embedded}")


def check_outbound(value: str) -> None:
    """Check that a value is an address that a machine sends from to others.

    :raises ConfigurationError: if it is not.
    """
    check_address(value)
    if ipaddress.ip_address(value) == LOOPBACK6:
        raise ConfigurationError("is a loopback address, which reaches no other machine", ADDRESS_EXAMPLE)


def check_interface_address(value: str) -> None:
    """Check that a value is the address of one machine on the guest's network, with or without a prefix length.

    :raises ConfigurationError: if it is not.
    """
    text, _ = split_address(value)
    check_address(text)
    address = ipaddress.ip_address(text)
    if address.is_loopback:
        raise ConfigurationError("is not one machine's address on a network", ADDRESS_EXAMPLE)


def check_guest_side_address(value: str) -> None:
    """Check that a value is an address that the guest sends to, without a prefix length.

    :raises ConfigurationError: if it is not.
    """
    check_address(value)
    check_interface_address(value)


def check_dns_forward(value: str) -> None:
    """Check that a value is an address that datagrams of the guest are sent to, and no loopback address.

    :raises ConfigurationError: if it is not.
    """
    check_address(value)
    if ipaddress.ip_address(value).is_loopback:
        raise ConfigurationError("is a loopback address", "choose one that the guest sends to its gateway")


def parse_netmask(text: str) -> int:
    """Turn ``255.255.255.0`` or ``24`` into a prefix length in bits.

    :raises ConfigurationError: if it is neither.
    """
    try:
        network = ipaddress.IPv4Network(f"0.0.0.0/{text}")
        # The module takes inverted masks, too, and returns what they stand for.
        if text not in (str(network.netmask), str(network.prefixlen)):
            raise ValueError
        return network.prefixlen
    except ValueError:
        raise ConfigurationError("is neither a mask nor a length", "write it like 255.255.255.0 or 24") from None


def parse_mac(text: str) -> bytes:
    """Turn ``02:00:00:00:00:01`` into 6 bytes.

    :raises ConfigurationError: if it is no unicast MAC address.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", text):
        raise ConfigurationError("is not a MAC address", f"write it like {MAC_EXAMPLE}")
    mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if not any(mac):
        raise ConfigurationError("is not one machine's address", f"choose another, like {MAC_EXAMPLE}")
    if mac[0] & GROUP_BIT:
        single = bytes([mac[0] & ~GROUP_BIT]) + mac[1:]
        remedy = f"write {single.hex(':')}" if any(single) else f"choose another, like {MAC_EXAMPLE}"
        raise ConfigurationError("is not one machine's address, but a group's", remedy)
    return mac


def is_interface_name(name: str) -> bool:
    """Return whether the kernel accepts `name` for a device, and a message can show it.

    The kernel's rule is dev_valid_name (net/core/dev.c): 1 to 15 bytes, neither ``.`` nor ``..``, without slash, colon
    or white space; the byte 0xA0 counts as white space (lib/ctype.c), whatever character it is a part of. A ``%``
    makes the name a pattern (__dev_alloc_name), and the folders ``all`` and ``default`` in /proc/sys are taken
    (sysctl_dev_name_is_allowed).
    """
    return (
        isinstance(name, str)
        and name.isprintable()
        and name not in NO_NAMES
        and len(name.encode()) <= INTERFACE_NAME_LENGTH
        and not any(byte in NOT_IN_NAMES for byte in name.encode())
    )


def check_interface(value: str) -> None:
    """Check that a value can be the name of a network interface.

    :raises ConfigurationError: if it cannot.
    """
    if not is_interface_name(value):
        raise ConfigurationError(
            "is no interface name",
            f"use up to {INTERFACE_NAME_LENGTH} characters without blank, slash, colon or percent sign, "
            "and neither 'all' nor 'default'",
        )


def check_domain(value: str) -> None:
    """Check that a value is a domain name.

    :raises ConfigurationError: if it is not.
    """
    if not is_domain(value):
        raise ConfigurationError(
            "is not a domain name", f"write it like example.org, labels up to {LABEL_MAXIMUM} bytes"
        )


def check_domains(value: str) -> None:
    """Check that a value is one domain name, or several with blanks between them.

    :raises ConfigurationError: if it is not.
    """
    for name in value.split() or [value]:
        check_domain(name)


def check_host_name(value: str) -> None:
    """Check that a value is the name of a host.

    :raises ConfigurationError: if it is not.
    """
    if not is_host_name(value):
        raise ConfigurationError(
            "is not a domain name",
            f"write it like guest.example.org, labels up to {LABEL_MAXIMUM} bytes, {NAME_MAXIMUM} in all",
        )


def is_domain(name: str) -> bool:
    """Return whether `name` has a wire format, labels of 1 to 63 bytes (RFC 1035, section 3.1), and no blanks."""
    if not isinstance(name, str) or name.split() != [name]:
        return False
    try:
        return all(0 < length <= LABEL_MAXIMUM for length in _label_lengths(name))
    except UnicodeError:
        return False


def is_host_name(name: str) -> bool:
    """Return whether `name` is a domain name of at most 253 bytes, without a dot at its end."""
    return is_domain(name) and sum(1 + length for length in _label_lengths(name)) - 1 <= NAME_MAXIMUM


def behind_none(values: Iterable[str]) -> list[str]:
    """Return the values behind the last ``none``, which takes back what came before it."""
    kept: list[str] = []
    for value in values:
        kept = [] if value == NONE else [*kept, value]
    return kept


def of_family(values: Iterable[str], family: int) -> str | None:
    """Return the last of `values` that is an address of `family` (4 or 6), or None."""
    found = None
    for value in values:
        if value != NONE and ipaddress.ip_address(value.partition("/")[0]).version == family:
            found = value
    return found


def _label_lengths(name: str) -> list[int]:
    """Return the bytes of each label of a domain name."""
    return [len(label.encode("idna")) for label in name.removesuffix(".").split(".")]
