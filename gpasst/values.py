"""Values that options take as text: addresses, masks, MAC addresses and domain names; how they are read and checked."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from gpasst.errors import ConfigurationError

NONE: Final = "none"  # the value that takes back what came before it
NAME_MAXIMUM: Final = 253  # bytes of a domain name as text; 255 in wire format (RFC 1035, section 2.3.4)
LABEL_MAXIMUM: Final = 63  # bytes of one of its labels (RFC 1035, section 2.3.4)
BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


def split_address(text: str) -> tuple[str, int | None]:
    """Split ``ADDR[/LEN]`` into an address and its prefix length in bits, None if absent.

    :raises ConfigurationError: if either part is malformed, or the address has a scope.
    """
    host, slash, length = text.partition("/")
    try:
        if "%" in host:
            raise ValueError("a scope means nothing in the guest's network")
        address = ipaddress.ip_address(host)
        if slash:
            ipaddress.ip_interface(text)
    except ValueError:
        raise ConfigurationError(f"{text} is not an IP address", "write it like 192.0.2.2 or 2001:db8::2") from None
    if slash and not length.isdecimal():
        raise ConfigurationError(f"{text}: {length} is not a prefix length", "write it like 192.0.2.2/24")
    return str(address), int(length) if slash else None


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
        raise ConfigurationError(
            f"--netmask {text} is neither a mask nor a length", "write it like 255.255.255.0 or 24"
        ) from None


def parse_mac(text: str, option: str) -> bytes:
    """Turn ``02:00:00:00:00:01`` into 6 bytes.

    :param option: name of the option, for messages.
    :raises ConfigurationError: if it is no unicast MAC address.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", text):
        raise ConfigurationError(f"{option} {text} is not a MAC address", "write it like 02:00:00:00:00:01")
    mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if mac[0] & 1 or not any(mac):
        raise ConfigurationError(f"{option} {text} is not one machine's address", "clear the lowest bit of byte one")
    return mac


def check_addresses(option: str, values: Iterable[str], prefix: bool = False) -> None:
    """Check that the values of an option are addresses.

    :param option: name of the option, for messages.
    :param prefix: whether a value may have a prefix length.
    :raises ConfigurationError: naming the option and the first value that is none.
    """
    for value in values:
        try:
            if split_address(value)[1] is not None and not prefix:
                raise ConfigurationError(f"{value} has a prefix length", "leave it out")
        except ConfigurationError as error:
            raise ConfigurationError(f"{option} {error.message}", error.remedy) from None


def check_unicast(option: str, values: Iterable[str]) -> None:
    """Check that the values of an option can be addresses of one machine on the guest's network.

    :param option: name of the option, for messages.
    :param values: addresses that `check_addresses` has passed.
    :raises ConfigurationError: naming the option and the first value that cannot.
    """
    for value in values:
        address = ipaddress.ip_address(split_address(value)[0])
        if (
            address.is_unspecified
            or address.is_loopback
            or address.is_multicast
            or address == BROADCAST
            or (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped)
        ):
            raise ConfigurationError(
                f"{option} {value} is not one machine's address", "write it like 192.0.2.2 or 2001:db8::2"
            )


def is_domain(name: str) -> bool:
    """Tell whether `name` has a wire format: labels of 1 to 63 bytes (RFC 1035, section 3.1)."""
    try:
        return all(0 < length <= LABEL_MAXIMUM for length in _label_lengths(name))
    except UnicodeError:
        return False


def is_host_name(name: str) -> bool:
    """Tell whether `name` is a domain name of at most 253 bytes, without a dot at its end."""
    return is_domain(name) and sum(1 + length for length in _label_lengths(name)) - 1 <= NAME_MAXIMUM


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
