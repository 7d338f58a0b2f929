"""The table of parts: what can stand in a rule, in text and as keywords, and what it means.

Theory of operation: a part has one name, which is its word in the text form and its keyword in the Python form. A value
of the Python form becomes the text of the value, and that is read; so each part has one reader. What a reader returns
are fields of `gpasst.impair.rule.Rule`, and `show` returns the canonical text of these fields.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from gpasst.errors import ConfigurationError
from gpasst.impair import quantities
from gpasst.impair.chance import DISTRIBUTIONS
from gpasst.impair.facts import PROTOCOLS
from gpasst.impair.quantities import (
    COUNT_MAXIMUM,
    parse_count,
    parse_probability,
    parse_ranges,
    parse_time,
    show_probability,
    show_ranges,
    show_time,
)
from gpasst.impair.rule import CERTAIN, Burst, Prefix, Queue, Rule
from gpasst.records import dataclass
from gpasst.values import SEED_MAXIMUM, shown
from gpasst.wire import TCP_ACK, TCP_CWR, TCP_ECE, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN, TCP_URG

Fields = dict[str, Any]

GUEST: Final = "guest"
HOST: Final = "host"
UNREACHABLE: Final = ("port", "host", "net", "admin")
TCP_FLAGS: Final = {
    "fin": TCP_FIN,
    "syn": TCP_SYN,
    "rst": TCP_RST,
    "psh": TCP_PSH,
    "ack": TCP_ACK,
    "urg": TCP_URG,
    "ece": TCP_ECE,
    "cwr": TCP_CWR,
}
PORT_MAXIMUM: Final = 65535
FRAME_MAXIMUM: Final = 65535 + 14 + 40  # bytes: of an IPv6 packet with its header, behind an Ethernet header
MTU_MINIMUM: Final = 68  # bytes (RFC 791, section 3.2); IPv6 demands 1280 (RFC 8200, section 5)
MTU_MAXIMUM: Final = 65535
GAP_MAXIMUM: Final = 1000  # frames
DELAYS_MAXIMUM: Final = 4096  # measured values
RANGES_MAXIMUM: Final = 4096  # of one part; far more than a rule that anybody reads
VALUE_SHOWN: Final = 80  # characters of a value in a message
BURST: Final = Burst(CERTAIN // 100, CERTAIN // 4, 0, CERTAIN)
"""Of ``loss burst``: one frame in a hundred begins a burst of four on average, and all of a burst is lost."""

_PAYLOAD, _MARK, _EVERY = "payload", "mark", "every"
_HEAD, _TAIL = "head", "tail"
_SIGNS: Final = ("±", "+-", "+/-")


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    :ivar name: its word, and its keyword.
    :ivar read: returns the fields of a rule that a text stands for; raises `ConfigurationError` with the fault alone.
    :ivar show: returns the text for a rule; empty if the part is not in it.
    :ivar match: whether it says which frames are meant; else it is an effect, or what stands at the end.
    :ivar bare: whether it may stand without a value.
    :ivar unit: what a number of the Python form counts, as the text form writes it.
    """

    name: str
    read: Callable[[str], Fields]
    show: Callable[[Rule], str]
    match: bool = False
    bare: bool = False
    unit: str = ""


def _flag(name: str, field: str = "") -> Part:
    """Return a part that is there or not."""

    def read(text: str) -> Fields:
        if text:
            raise ConfigurationError("has no value", f"write {name} alone")
        return {field or name: True}

    return Part(name, read, lambda rule: name if getattr(rule, field or name) else "", bare=True)


def _choice(name: str, words: tuple[str, ...], field: str = "", match: bool = False) -> Part:
    """Return a part whose value is one of some words."""

    def read(text: str) -> Fields:
        if text not in words:
            raise ConfigurationError(f"is not one of {', '.join(words)}", f"write {name} {words[0]}")
        return {field or name: text}

    return Part(name, read, lambda rule: getattr(rule, field or name), match=match)


def _ranges(name: str, lowest: int, highest: int) -> Part:
    """Return a part of ranges of whole numbers."""

    def read(text: str) -> Fields:
        return {name: _limited(parse_ranges(text, lowest, highest))}

    return Part(name, read, lambda rule: show_ranges(getattr(rule, name), highest), match=True)


def _limited(ranges: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(ranges) > RANGES_MAXIMUM:
        raise ConfigurationError(f"has more than {RANGES_MAXIMUM} ranges", "write several rules")
    return ranges


def _addresses(name: str) -> Part:
    """Return a part of addresses and prefixes."""

    def read(text: str) -> Fields:
        return {name: _limited(tuple(dict.fromkeys(_prefix(item.strip()) for item in text.split(","))))}

    return Part(name, read, lambda rule: ",".join(map(_show_prefix, getattr(rule, name))), match=True)


def _prefix(text: str) -> Prefix:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(
            "is not an address or prefix", "write it like 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32"
        ) from None
    if "%" in text:
        raise ConfigurationError("has a scope, which no packet has", "write it without %")
    return network.network_address.packed, network.prefixlen


def _show_prefix(prefix: Prefix) -> str:
    packed, bits = prefix
    address = ipaddress.ip_address(packed)
    return str(address) if bits == address.max_prefixlen else f"{address}/{bits}"


def _read_protocol(text: str) -> Fields:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PROTOCOLS:
            raise ConfigurationError(f"is not one of {', '.join(PROTOCOLS)}", "write it like udp or tcp,udp")
    return {"protocols": tuple(name for name in PROTOCOLS if name in names)}


def _read_nth(text: str) -> Fields:
    word, _, count = text.partition(" ")
    if word == _EVERY:
        return {"every": parse_count(count.strip(), 1, COUNT_MAXIMUM)}
    return {"nth": _limited(parse_ranges(text, 1, COUNT_MAXIMUM))}


def _show_nth(rule: Rule) -> str:
    return f"{_EVERY} {rule.every}" if rule.every else show_ranges(rule.nth, COUNT_MAXIMUM)


def _read_flags(text: str) -> Fields:
    found = {"flags": 0, "no_flags": 0}
    for item in text.lower().split(","):
        name = item.strip()
        field = "no_flags" if name.startswith("!") else "flags"
        bit = TCP_FLAGS.get(name.removeprefix("!"))
        if bit is None:
            raise ConfigurationError(f"a TCP flag is one of {', '.join(TCP_FLAGS)}", "write it like syn,!ack")
        found[field] |= bit
    if found["flags"] & found["no_flags"]:
        raise ConfigurationError("a flag is both set and not set", "name each flag once")
    return found


def _show_flags(rule: Rule) -> str:
    names = [name for name, bit in TCP_FLAGS.items() if rule.flags & bit]
    return ",".join(names + [f"!{name}" for name, bit in TCP_FLAGS.items() if rule.no_flags & bit])


def _read_when(text: str) -> Fields:
    raise ConfigurationError("a predicate is a Python function", "give it to net.impair(when=...)")


def _show_when(rule: Rule) -> str:
    return str(getattr(rule.when, "__qualname__", "a predicate")) if rule.when else ""


def _read_loss(text: str) -> Fields:
    words = text.split()
    if words[:1] != ["burst"]:
        return {"loss": parse_probability(text)}
    values = {"p": BURST.p, "r": BURST.r, "good": BURST.good, "bad": BURST.bad}
    for word in words[1:]:
        name, sign, value = word.partition("=")
        if name not in values or not sign:
            raise ConfigurationError(
                "a burst has p, r, good and bad", "write it like burst p=1% r=25% good=0% bad=100%"
            )
        values[name] = parse_probability(value)
    return {"burst": Burst(**values)}


def _show_loss(rule: Rule) -> str:
    burst = rule.burst
    if not burst:
        return show_probability(rule.loss) if rule.loss else ""
    named = [("p", burst.p), ("r", burst.r), ("good", burst.good), ("bad", burst.bad)]
    return " ".join(["burst", *(f"{name}={show_probability(value)}" for name, value in named)])


def _read_delay(text: str) -> Fields:
    for sign in _SIGNS:
        delay, found, jitter = text.partition(sign)
        if found:
            return {"delay": parse_time(delay), "jitter": parse_time(jitter)}
    return {"delay": parse_time(text)}


def _show_delay(rule: Rule) -> str:
    if rule.jitter:
        return f"{show_time(rule.delay)}±{show_time(rule.jitter)}"
    return show_time(rule.delay) if rule.delay else ""


def _read_distribution(text: str) -> Fields:
    if text in DISTRIBUTIONS:
        return {"distribution": text}
    if not any(char.isdigit() for char in text):
        raise ConfigurationError(
            f"is not one of {', '.join(DISTRIBUTIONS)}, nor a list of delays", "write it like normal or 18ms,20ms,25ms"
        )
    delays = tuple(parse_time(item) for item in text.split(","))
    if len(delays) > DELAYS_MAXIMUM:
        raise ConfigurationError(f"has more than {DELAYS_MAXIMUM} delays", "leave some out")
    return {"delays": delays}


def _read_reorder(text: str) -> Fields:
    probability = parse_probability(text)
    return {"reorder": probability, "in_order": not probability}


def _show_reorder(rule: Rule) -> str:
    return show_probability(rule.reorder) if rule.reorder or rule.in_order else ""


def _read_with_word(word: str, field: str, flag: str) -> Callable[[str], Fields]:
    """Return a reader of a probability, of a word, or of a word and a probability; the word alone means always."""

    def read(text: str) -> Fields:
        first, _, rest = text.partition(" ")
        if first != word:
            if not flag:
                raise ConfigurationError(f"is not {word}, nor {word} and a probability", f"write {word} or {word} 5%")
            return {field: parse_probability(text)}
        found: Fields = {field: parse_probability(rest) if rest else CERTAIN}
        return found | {flag: True} if flag else found

    return read


def _show_word(word: str, probability: int) -> str:
    return word if probability == CERTAIN else f"{word} {show_probability(probability)}" if probability else ""


def _show_corrupt(rule: Rule) -> str:
    if rule.payload:
        return _show_word(_PAYLOAD, rule.corrupt)
    return show_probability(rule.corrupt) if rule.corrupt else ""


def _read_queue(text: str) -> Fields:
    words = text.split()
    head = words[-1:] == [_HEAD]
    if words[-1:] in ([_HEAD], [_TAIL]):
        words.pop()
    if words[1:] in (["frames"], ["frame"]):
        return {"queue": Queue(frames=parse_count(words[0], 1, COUNT_MAXIMUM), head=head)}
    limit = "".join(words)
    for parse, field in ((parse_time, "time"), (quantities.parse_size, "size")):
        try:
            value = parse(limit)
        except ConfigurationError:
            continue
        if value:
            return {"queue": Queue(head=head, **{field: value})}
    raise ConfigurationError("is no limit of a queue", "write it like 100 frames, 64KiB or 50ms, then tail or head")


def _show_queue(rule: Rule) -> str:
    queue = rule.queue
    if not queue:
        return ""
    limit = show_time(queue.time) if queue.time else quantities.show_size(queue.size)
    return (f"{queue.frames} frames" if queue.frames else limit) + (f" {_HEAD}" if queue.head else "")


def _number(
    name: str, parse: Callable[[str], int], show: Callable[[int], str], field: str = "", unit: str = ""
) -> Part:
    """Return an effect whose value is one quantity, 0 for none."""
    return Part(
        name,
        lambda text: {field or name: parse(text)},
        lambda rule: show(getattr(rule, field or name)) if getattr(rule, field or name) else "",
        unit=unit,
    )


MATCH: Final = (
    _choice("to", (GUEST, HOST), match=True),
    Part("protocol", _read_protocol, lambda rule: ",".join(rule.protocols), match=True),
    _addresses("src"),
    _addresses("dst"),
    _ranges("sport", 1, PORT_MAXIMUM),
    _ranges("dport", 1, PORT_MAXIMUM),
    _ranges("size", 1, FRAME_MAXIMUM),
    Part("nth", _read_nth, _show_nth, match=True),
    Part("flags", _read_flags, _show_flags, match=True),
    Part("when", _read_when, _show_when, match=True),
)
EFFECTS: Final = (
    Part("loss", _read_loss, _show_loss),
    Part("delay", _read_delay, _show_delay, unit="s"),
    # The delay's text has the jitter.
    Part("jitter", lambda text: {"jitter": parse_time(text)}, lambda rule: "", unit="s"),
    Part(
        "distribution",
        _read_distribution,
        lambda rule: rule.distribution or ",".join(map(show_time, rule.delays)),
        unit="s",
    ),
    Part("reorder", _read_reorder, _show_reorder),
    _number("gap", lambda text: parse_count(text, 1, GAP_MAXIMUM), str),
    _number("duplicate", parse_probability, show_probability),
    Part("corrupt", _read_with_word(_PAYLOAD, "corrupt", _PAYLOAD), _show_corrupt),
    _number("rate", quantities.parse_rate, quantities.show_rate, unit="bit"),
    Part("queue", _read_queue, _show_queue),
    _number("mtu", lambda text: parse_count(text, MTU_MINIMUM, MTU_MAXIMUM), str),
    _flag("icmp"),
    Part("ecn", _read_with_word(_MARK, "mark", ""), lambda rule: _show_word(_MARK, rule.mark)),
    _flag("reset"),
    _choice("unreachable", UNREACHABLE),
    _flag("partition"),
    _flag("rebind"),
)
END: Final = (
    _flag("continue", "goes_on"),
    Part(
        "seed",
        lambda text: {"seed": parse_count(text, 0, SEED_MAXIMUM)},
        lambda rule: "" if rule.seed is None else str(rule.seed),
    ),
)
PARTS: Final = {part.name: part for part in (*MATCH, *EFFECTS, *END)}


def at_fault(name: str, text: str, error: ConfigurationError) -> ConfigurationError:
    """Return an error that names the part and its value before the fault."""
    message = error.message
    if len(text) > VALUE_SHOWN:
        text = f"{text[:VALUE_SHOWN]}..."
    joint = ":" if not message.startswith(("is ", "has ")) else ""
    return ConfigurationError(shown(f"{name} {text}".rstrip() + f"{joint} {message}"), error.remedy)
