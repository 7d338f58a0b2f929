"""How a router's NAT behaves, in the words of RFC 4787 (UDP), RFC 5382 (TCP) and RFC 5508 (ICMP), and presets.

Theory of operation: *mapping* says when an inside endpoint gets another outside port (RFC 4787, section 4.1), and
*filtering* which outside endpoints may use that port (section 5). Both depend on nothing of the remote end, on its
address, or on its address and port.
"""

from __future__ import annotations

from typing import Final

from gpasst.errors import ConfigurationError
from gpasst.records import dataclass
from gpasst.router.firewall import Rule, parse
from gpasst.values import check_flag, shown

ENDPOINT_INDEPENDENT: Final = "endpoint-independent"
ADDRESS_DEPENDENT: Final = "address-dependent"
ADDRESS_AND_PORT_DEPENDENT: Final = "address-and-port-dependent"
SYMMETRIC: Final = "symmetric"  # mapping that depends on address and port, as RFC 3489, section 5 names it

DEPENDENCES: Final = (ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT)

UDP_TIMEOUT: Final = 120.0  # seconds, of a UDP mapping (RFC 4787, REQ-5)
TCP_TIMEOUT: Final = 7440.0  # seconds, of an established connection without traffic (RFC 5382, REQ-5)
TCP_TRANSITORY: Final = 240.0  # seconds, of one that opens or has closed (RFC 5382, REQ-5)
ICMP_TIMEOUT: Final = 60.0  # seconds, of an echo exchange (RFC 5508, REQ-2)
SHORTEST: Final = 0.001  # seconds


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a router does with flows. NAT is of IPv4 alone: IPv6 crosses with its own addresses (RFC 6092).

    :ivar mapping: one of `DEPENDENCES`; None for no NAT.
    :ivar filtering: one of `DEPENDENCES`.
    :ivar hairpin: whether two inside hosts reach each other by their outside endpoints (RFC 4787, REQ-9).
    :ivar port_preservation: whether an outside port equals the inside port where that is free (RFC 4787, 4.2.1).
    :ivar inbound_refresh: whether packets from outside keep a mapping, too (RFC 4787, REQ-6).
    :ivar timeout: seconds without traffic after which a UDP mapping ends.
    :ivar tcp_timeout: likewise of an established connection.
    :ivar tcp_transitory: likewise of a connection that opens or has closed.
    :ivar icmp_timeout: likewise of an echo exchange.
    :ivar firewall: rules; the first that matches a flow's first packet decides, and without one it passes.
    """

    mapping: str | None = ENDPOINT_INDEPENDENT
    filtering: str = ENDPOINT_INDEPENDENT
    hairpin: bool = True
    port_preservation: bool = True
    inbound_refresh: bool = True
    timeout: float = UDP_TIMEOUT
    tcp_timeout: float = TCP_TIMEOUT
    tcp_transitory: float = TCP_TRANSITORY
    icmp_timeout: float = ICMP_TIMEOUT
    firewall: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        for name in ("hairpin", "port_preservation", "inbound_refresh"):
            check_flag(name, getattr(self, name))
        for name in ("timeout", "tcp_timeout", "tcp_transitory", "icmp_timeout"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= SHORTEST:
                raise ConfigurationError(
                    f"{name} {shown(seconds)} is no time", f"pass seconds of at least {SHORTEST}, such as 120"
                )


@dataclass(frozen=True, slots=True)
class Preset:
    """A kind of router that people meet.

    :ivar name: the name, as network files take it.
    :ivar behaviour: what it does.
    :ivar source: where that comes from.
    """

    name: str
    behaviour: Behaviour
    source: str


_CLOSED: Final = (parse("drop in"),)

HOME: Final = Preset(
    "HOME",
    Behaviour(ENDPOINT_INDEPENDENT, ADDRESS_AND_PORT_DEPENDENT, firewall=_CLOSED),
    "RFC 4787, REQ-1, with the strictest filtering; for IPv6 the simple security of RFC 6092, as RFC 7084, S-1 advises",
)
CORPORATE: Final = Preset(
    "CORPORATE",
    Behaviour(
        ADDRESS_AND_PORT_DEPENDENT,
        ADDRESS_AND_PORT_DEPENDENT,
        hairpin=False,
        port_preservation=False,
        firewall=(
            *map(parse, ("allow out tcp 53,80,443", "allow out udp 53", "allow out icmp", "reject out")),
            *_CLOSED,
        ),
    ),
    "an assumption: symmetric, and a firewall that lets out what the web needs",
)
CARRIER_GRADE: Final = Preset(
    "CARRIER_GRADE",
    Behaviour(ENDPOINT_INDEPENDENT, ENDPOINT_INDEPENDENT, port_preservation=False),
    "RFC 6888, REQ-1 and REQ-7: endpoint-independent mapping and filtering; ports of many subscribers cannot be kept",
)
MOBILE: Final = Preset(
    "MOBILE",
    Behaviour(
        ADDRESS_AND_PORT_DEPENDENT,
        ADDRESS_AND_PORT_DEPENDENT,
        hairpin=False,
        port_preservation=False,
        timeout=60.0,
        firewall=_CLOSED,
    ),
    "an assumption: symmetric, with mappings of a minute and nothing unasked from outside, which is what makes peers "
    "need TURN",
)

PRESETS: Final = {preset.name: preset for preset in (HOME, CORPORATE, CARRIER_GRADE, MOBILE)}


def mapping(word: str | None) -> str | None:
    """Return the mapping behaviour that a word names: one of `DEPENDENCES`, or `SYMMETRIC`.

    :raises ConfigurationError: for another word.
    """
    return ADDRESS_AND_PORT_DEPENDENT if word == SYMMETRIC else word if word is None else dependence("nat", word)


def dependence(name: str, word: str) -> str:
    """Return a word of `DEPENDENCES`.

    :param name: of the parameter, for the message.
    :raises ConfigurationError: for another word.
    """
    if word not in DEPENDENCES:
        extra = f", {SYMMETRIC}, None, or a preset: {', '.join(PRESETS)}" if name == "nat" else ""
        raise ConfigurationError(f"{name} {shown(word)} is no behaviour", f"use {', '.join(DEPENDENCES)}{extra}")
    return word


def preset(value: object) -> Preset | None:
    """Return a preset, or that of a name such as ``HOME`` or ``carrier-grade``; None for any other value."""
    if isinstance(value, Preset):
        return value
    return PRESETS.get(value.strip().upper().replace("-", "_")) if isinstance(value, str) else None
