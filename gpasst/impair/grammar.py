"""Rules as text and as keywords, and the one text that stands for each rule.

The text form is ``[MATCH:] EFFECT ... [continue] [seed N]``::

    to guest udp dport 53: loss 30% delay 20ms±5ms seed 7

A match is a series of words with their values; the name of a protocol needs no word before it. The colon that ends it
is followed by white space. Effects are words with their values, too. The order of either does not matter. The Python
form has the same words as keywords, ``continue_`` for the one that Python reserves.

Both forms are read by `gpasst.impair.parts`, and what parts demand of each other stands in `_DEMANDS` here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from gpasst.errors import ConfigurationError
from gpasst.impair.facts import PROTOCOLS, TCP, WITH_PORTS
from gpasst.impair.parts import EFFECTS, END, MATCH, PARTS, VALUE_SHOWN, Fields, Part, at_fault
from gpasst.impair.rule import Rule
from gpasst.records import replace
from gpasst.values import shown

RULE_MAXIMUM: Final = 65536  # characters
NUMBER_BITS: Final = 64  # of a whole number; a seed has as many
NOTHING: Final = "loss 0%"  # the effect of a rule that has none, such as one that counts

_RESERVED: Final = {"continue_": "continue"}
_MATCH: Final = {part.name: part for part in MATCH}
_BEHIND: Final = {part.name: part for part in (*EFFECTS, *END)}
_ADDRESSES: Final = ("src", "dst")
_EXAMPLE: Final = "write it like udp dport 53: loss 30%"


def parse(text: str) -> Rule:
    """Return the rule of a text.

    :raises ConfigurationError: naming the part that is wrong, and the remedy.
    """
    if len(text) > RULE_MAXIMUM:
        raise ConfigurationError(f"a rule has {len(text)} characters", f"{RULE_MAXIMUM} are the most")
    words = text.split()
    end = next((index for index in range(len(words)) if _ends_match(words, index)), -1)
    match = [*words[:end], words[end][:-1]] if end >= 0 else []
    clauses = [*_clauses([word for word in match if word], _MATCH), *_clauses(words[end + 1 :], _BEHIND)]
    return _rule(clauses)


def build(**keywords: Any) -> Rule:
    """Return the rule of keywords: those of the table of parts.

    A value is the text of the text form. A number stands for itself; it counts seconds for times, and bits a second for
    rates. True stands for a part without a value; None and False for one that is not in the rule. A list is a text with
    commas.

    :raises ConfigurationError: naming the part that is wrong, and the remedy.
    """
    when = keywords.pop("when", None)
    if when is not None and not callable(when):
        raise ConfigurationError(shown(f"when {when}: is no function"), "give one that takes a parsed frame")
    clauses = []
    for keyword, value in keywords.items():
        name = _RESERVED.get(keyword, keyword)
        part = PARTS.get(name)
        if part is None:
            raise ConfigurationError(shown(f"{keyword} is no part of a rule"), f"give {', '.join(PARTS)}")
        if value is not None and value is not False:
            clauses.append((part, _text_of(part, value)))
    return replace(_rule(clauses), when=when)


def text(rule: Rule) -> str:
    """Return the text of a rule, from which `parse` makes an equal one unless the rule has a predicate."""
    match = " ".join(_shown(MATCH, rule))
    effects = list(_shown(EFFECTS, rule)) or [NOTHING]
    behind = " ".join([*effects, *_shown(END, rule)])
    return f"{match}: {behind}" if match else behind


def essence(rule: Rule) -> str:
    """Return the text of what the fates of a rule depend on: all but its seed, and its predicate, which has no text."""
    return text(replace(rule, seed=None, when=None))


def _ends_match(words: list[str], index: int) -> bool:
    """Return whether a word ends the match: it ends with a colon that is none of an IPv6 address."""
    word = words[index]
    if not word.endswith(":"):
        return False
    if not index or words[index - 1] not in _ADDRESSES:
        return True
    part = _MATCH[words[index - 1]]
    return not (_reads(part, word) and not _reads(part, word[:-1]))


def _reads(part: Part, value: str) -> bool:
    try:
        part.read(value)
    except ConfigurationError:
        return False
    return True


def _clauses(words: list[str], parts: dict[str, Part]) -> Iterator[tuple[Part, str]]:
    """Yield the parts that words name, each with the text of its value."""
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        part = parts.get(word)
        if part is None and _is_protocol(word, parts):
            yield PARTS["protocol"], word
        elif part is None:
            raise _unknown(word[:VALUE_SHOWN], parts)
        elif part.bare:
            yield part, ""
        else:
            first = index
            while index < len(words) and (
                index == first or not (words[index] in PARTS or _is_protocol(words[index], parts))
            ):
                index += 1
            yield part, " ".join(words[first:index])


def _is_protocol(word: str, parts: dict[str, Part]) -> bool:
    return "protocol" in parts and set(word.split(",")) <= set(PROTOCOLS)


def _unknown(word: str, parts: dict[str, Part]) -> ConfigurationError:
    if parts is _MATCH and word in _BEHIND:
        return ConfigurationError(f"{word} stands before the colon", f"put effects behind it: {_EXAMPLE}")
    if parts is _BEHIND and (word in _MATCH or _is_protocol(word, _MATCH)):
        return ConfigurationError(f"{word} stands behind the effects, or lacks a colon", _EXAMPLE)
    kind = "match" if parts is _MATCH else "effect"
    return ConfigurationError(shown(f"{word} is no {kind}"), f"give {', '.join(parts)}")


def _text_of(part: Part, value: object) -> str:
    """Return the text of a keyword's value."""
    if value is True:
        return ""
    if isinstance(value, float):
        return f"{float(value)!r}{part.unit}"  # a subclass may have another repr
    if isinstance(value, int):
        if value.bit_length() > NUMBER_BITS:
            raise ConfigurationError(f"{part.name}: a number has {value.bit_length()} bits", "give a smaller one")
        return f"{value:d}{part.unit}"
    if isinstance(value, list | tuple):
        return ",".join(_text_of(part, item) for item in value)
    return " ".join(str(value).split())


def _rule(clauses: Iterable[tuple[Part, str]]) -> Rule:
    found: Fields = {}
    names = set()
    for part, value in clauses:
        if part.name in names:
            raise ConfigurationError(f"{part.name} is there twice", "give it once")
        names.add(part.name)
        if not value and not part.bare:
            raise ConfigurationError(f"{part.name} has no value", f"see the examples of {part.name} in docs/weather.md")
        try:
            fields = part.read(value)
        except ConfigurationError as error:
            raise at_fault(part.name, value, error) from None
        if not fields.keys().isdisjoint(found):
            raise ConfigurationError(f"{part.name} is there twice", "give it once, with ± or by itself")
        found |= fields
    if names.isdisjoint(part.name for part in EFFECTS):
        raise ConfigurationError("the rule has no effect", "give one, like loss 30% or delay 20ms")
    rule = Rule(**found)
    for fault, message, remedy in _DEMANDS:
        if fault(rule):
            raise ConfigurationError(message, remedy)
    if rule.reorder and not (rule.gap or rule.delay or rule.delays):
        rule = replace(rule, gap=1)
    if rule.rebind and not (rule.nth or rule.every):
        rule = replace(rule, nth=((1, 1),))
    return rule


def _shown(parts: Iterable[Part], rule: Rule) -> Iterator[str]:
    for part in parts:
        value = part.show(rule)
        if value:
            yield value if part.bare or part.name == "protocol" else f"{part.name} {value}"


def _shaped(rule: Rule) -> bool:
    """Return whether a rule has an effect on frames that reach their end."""
    return bool(
        rule.loss
        or rule.burst
        or rule.delay
        or rule.jitter
        or rule.delays
        or rule.reorder
        or rule.duplicate
        or rule.corrupt
        or rule.rate
        or rule.mtu
        or rule.mark
        or rule.rebind
    )


_DEMANDS: Final[tuple[tuple[Callable[[Rule], object], str, str], ...]] = (
    (
        lambda rule: bool(rule.partition) + bool(rule.reset) + bool(rule.unreachable) + _shaped(rule) > 1,
        "partition, reset and unreachable lose every frame, so no other effect can be seen",
        "put it into a rule of its own",
    ),
    (
        lambda rule: (rule.sport or rule.dport) and rule.protocols and WITH_PORTS.isdisjoint(rule.protocols),
        "ports belong to TCP and UDP",
        "name tcp or udp, or leave sport and dport out",
    ),
    (
        lambda rule: (rule.flags or rule.no_flags) and rule.protocols not in ((), (TCP,)),
        "flags belong to TCP",
        "name tcp alone, or leave flags out",
    ),
    (
        lambda rule: rule.reset and rule.protocols not in ((), (TCP,)),
        "reset belongs to TCP",
        "name tcp alone, or write unreachable port",
    ),
    (lambda rule: rule.jitter > rule.delay == 0, "jitter has no delay to vary", "give delay too, like delay 20ms±5ms"),
    (lambda rule: rule.distribution and not rule.jitter, "distribution has no jitter", "give jitter too, like 5ms"),
    (
        lambda rule: rule.delays and (rule.delay or rule.jitter),
        "a list of delays takes the place of delay and jitter",
        "leave these out, or name a distribution",
    ),
    (lambda rule: rule.gap and not rule.reorder, "gap has no reorder", "give reorder too, like reorder 10% gap 3"),
    (lambda rule: rule.queue and not rule.rate, "queue has no rate", "give rate too, like rate 10mbit"),
    (lambda rule: rule.icmp and not rule.mtu, "icmp has no mtu", "give mtu too, like mtu 1280 icmp"),
)
