"""Weather by name: profiles of real networks, and what goes with them.

A profile is a list of rules with the source of their numbers. It has rates and delays of both directions; a delay is
half a round trip. What its source does not say, such as a loss, is not in it, or is named there as an assumption; a
rule of your own may stand before it::

    with net.impair("udp: loss 1% continue"), net.impair(gpasst.weather.MOBILE_3G): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from gpasst.errors import ConfigurationError
from gpasst.impair.grammar import parse
from gpasst.impair.rule import Rule
from gpasst.records import dataclass

_NAME_OFFSET: Final = 12  # bytes; of the question in a DNS message (RFC 1035, section 4.1.1)
_LENGTH_BYTES: Final = 2  # before a DNS message over TCP (RFC 1035, section 4.2.2)
_ANY_LABELS: Final = "*."


class Message(Protocol):
    """What predicates here look at, of a parsed frame (`gpasst.packet.frame`)."""

    @property
    def protocol(self) -> str:
        """``"udp"`` or ``"tcp"``."""

    @property
    def payload(self) -> bytes:
        """The bytes behind the transport header."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Rules of one kind of network. Iterating yields their text.

    :ivar name: the name, as ``--impair`` takes it.
    :ivar rules: the text of each rule.
    :ivar source: where the numbers come from.
    """

    name: str
    rules: tuple[str, ...]
    source: str

    def __iter__(self) -> Iterator[str]:
        return iter(self.rules)


CLEAR: Final = Profile("CLEAR", (), "no weather")

PARTITION: Final = Profile("PARTITION", ("partition",), "nothing crosses, of any protocol")

MOBILE_3G: Final = Profile(
    "MOBILE_3G",
    ("to guest: delay 150ms rate 1.6mbit", "to host: delay 150ms rate 768kbit"),
    "WebPageTest, www/settings/connectivity.ini.sample: Mobile 3G, 1.6 Mbps/768 Kbps, 300 ms round trip, no loss",
)

DIAL_UP: Final = Profile(
    "DIAL_UP",
    ("to guest: delay 60ms rate 49kbit", "to host: delay 60ms rate 30kbit"),
    "WebPageTest, www/settings/connectivity.ini.sample: 56K Dial-Up, 49/30 Kbps, 120 ms round trip, no loss",
)

# The quartiles of a normal distribution are 0.674 standard deviations from its median: 5 ms of a half round trip.
_LEO: Final = "loss burst p=0.02% r=10% good=0% bad=50% delay 25ms±7.4ms distribution normal reorder 0%"
LEO_SATELLITE: Final = Profile(
    "LEO_SATELLITE",
    (f"to guest: {_LEO} rate 87.25mbit", f"to host: {_LEO} rate 13.54mbit"),
    "round trips of 40, 50 and 60 ms (quartiles): Michel et al., A First Look at Starlink Performance, IMC 2022; "
    "rates: Ookla, medians of Starlink in the USA, Q3 2021; half of the packets lost at handovers: Kassem et al., "
    "A Browser-side View of Starlink Connectivity, IMC 2022. How often and for how long is an assumption: "
    "a burst of ten packets in five thousand",
)

CAFE_WIFI: Final = Profile(
    "CAFE_WIFI",
    ("distribution 1ms,2ms,3ms,5ms,8ms,13ms,20ms,30ms,45ms,60ms reorder 0%",),
    "Pei et al., WiFi Can Be the Weakest Link of Round Trip Network Latency in the Wild, INFOCOM 2016: round trips of "
    "an access point's hop are longer than 20 ms for half of the packets, and than 100 ms for a tenth; the deciles "
    "between are an assumption. 802.11 sends again what was lost, so loss shows as delay, and keeps the order",
)

PROFILES: Final = {
    profile.name: profile for profile in (CLEAR, PARTITION, MOBILE_3G, LEO_SATELLITE, CAFE_WIFI, DIAL_UP)
}


def rules(text: str) -> tuple[Rule, ...]:
    """Return the rules of the name of a profile, such as ``MOBILE_3G`` or ``mobile-3g``, or of the text of one rule.

    :raises ConfigurationError: naming the part that is wrong, and the remedy.
    """
    profile = PROFILES.get(text.strip().upper().replace("-", "_"))
    if profile is not None:
        return tuple(map(parse, profile.rules))
    try:
        return (parse(text),)
    except ConfigurationError as error:
        if " " in text.strip():
            raise
        raise ConfigurationError(error.message, f"{error.remedy}; or a profile: {', '.join(PROFILES)}") from None


def check(text: str) -> None:
    """Refuse what `rules` takes for none, as the value of an option.

    :raises ConfigurationError: with what follows the option and its value in a message.
    """
    try:
        rules(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"is no rule: {error.message}", error.remedy) from None


def dns_name(name: str) -> Callable[[Message], bool]:
    """Return a predicate, for `when`, of DNS messages that ask for a name, and their answers.

    ::

        net.impair(when=dns_name("example.org"), to="guest", loss=1, nth=1)

    :param name: the name; with ``*.`` before it all names below it.
    :raises ConfigurationError: if it is no domain name.
    """
    below = name.startswith(_ANY_LABELS)
    try:
        labels = [label.encode("idna") for label in name.removeprefix(_ANY_LABELS).rstrip(".").lower().split(".")]
    except UnicodeError:
        labels = [b""]
    if not all(labels):
        raise ConfigurationError(
            f"dns_name {name!r} is not a domain name", "write it like example.org or *.example.org"
        )
    wire = b"".join(bytes((len(label),)) + label for label in labels)

    def asks(frame: Message) -> bool:
        start = _NAME_OFFSET + (_LENGTH_BYTES if frame.protocol == "tcp" else 0)
        question = frame.payload[start:].partition(b"\0")[0].lower()
        return question.endswith(wire) and (len(question) > len(wire)) == below

    asks.__qualname__ = f"dns_name({name!r})"
    return asks
