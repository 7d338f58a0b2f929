"""Which frames are meant: filters in the words of the rules of weather, or functions of a parsed frame.

Theory of operation: a filter is the match of a rule (`gpasst.impair.match`), so it means the same frames. All that a
superframe's frames have in common is looked at once, before it is cut. Unlike a rule, a filter that names no protocol
means every protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gpasst.capture.record import Record
from gpasst.errors import ConfigurationError
from gpasst.impair import grammar
from gpasst.impair.facts import Flow, Run
from gpasst.impair.match import Matcher
from gpasst.impair.parts import MATCH
from gpasst.impair.rule import Rule
from gpasst.packet.frame import Frame
from gpasst.values import shown
from gpasst.wire import VIRTIO_NET_CODEC

Predicate = Callable[[Frame], Any]

_VIRTIO = VIRTIO_NET_CODEC.size
_WORDS = tuple(part.name for part in MATCH if part.name not in ("nth", "when"))
_EFFECT = "partition"  # that of a rule which is about every protocol


class Selection:
    """A filter.

    :param rule: what the frames have to match.
    :param predicate: returns whether a frame that does is meant; None for all.
    :param note: what the predicate demands, for messages.
    :ivar error: what the predicate has raised first, None if it has not. Frames for which it raises are not meant.
    """

    def __init__(self, rule: Rule, predicate: Predicate | None = None, note: str = "") -> None:
        self._text = (grammar.text(rule).removesuffix(_EFFECT).rstrip(": ") or "any frame") + note
        self._to = rule.to
        self._matcher = Matcher(rule)
        self._predicate = predicate
        self._matched = 0
        self.error: BaseException | None = None

    def __str__(self) -> str:
        return self._text

    def check(self) -> None:
        """Raise what the predicate has raised first, if it has.

        :raises BaseException: that.
        """
        if self.error is not None:
            raise self.error

    def select(self, records: Iterable[Record]) -> list[Record]:
        """Return what is meant of some records: whole ones, and the single frames of others.

        The records of one link are given in their order, each once, since a filter may count.
        """
        found: list[Record] = []
        cuts = self._matcher.picks or self._predicate is not None
        for record in records:
            if self._to and (self._to == "guest") is not record.to_guest:
                continue
            frame = Frame(record.data[_VIRTIO:], record.to_guest)
            if not self._matcher.concerns(_flow(frame)):
                continue
            if not cuts:
                found.append(record)
                continue
            found += [record.single(frame.data) for frame in record.parsed() if self._fits(frame)]
        return found

    def _fits(self, frame: Frame) -> bool:
        run = Run(_flow(frame), None, frame.size, flags=frame.flag_bits)
        if not self._matcher.fits(run, 0):
            return False
        self._matched += 1
        if not self._matcher.selects(self._matched):
            return False
        try:
            return self._predicate is None or bool(self._predicate(frame))
        except BaseException as error:
            # It is the caller's, and this may be the path of all frames: whoever looks at the frames gets to see it.
            # What pytest.fail raises is no Exception.
            self.error = self.error or error
            return False


def read_filter(given: str | Predicate) -> Selection:
    """Return the filter of a text or function.

    :param given: a match of the rules of weather, such as ``"to guest udp dport 53"``; or a function of a `Frame` that
        returns whether it is meant.
    :raises ConfigurationError: naming the part that is wrong, and the remedy.
    """
    if callable(given):
        return Selection(grammar.parse(_EFFECT), given)
    if not isinstance(given, str):
        raise ConfigurationError(f"filter {given!r}: is neither text nor a function", "write it like udp dport 53")
    try:
        return Selection(grammar.parse(f"{given.strip()}: {_EFFECT}"))
    except ConfigurationError as error:
        raise ConfigurationError(shown(f"filter {given}: {error.message}"), error.remedy) from None


def build_filter(payload: bytes | None = None, when: Predicate | None = None, **match: Any) -> Selection:
    """Return the filter of keywords, which does not count.

    :param payload: the exact bytes behind the headers of UDP, TCP or ICMP; None for any.
    :param when: returns whether a frame that matches the rest is meant; None for all.
    :param match: parts of a match, such as ``protocol="udp", dport=53``; None for one that is not there.
    :raises ConfigurationError: naming the part that is wrong, and the remedy.
    """
    unknown = sorted(match.keys() - set(_WORDS))
    if unknown:
        raise ConfigurationError(f"{unknown[0]} is no part of an expectation", f"give {', '.join(_WORDS)} or payload")
    if payload is not None and not isinstance(payload, bytes | bytearray | memoryview):
        raise ConfigurationError(f"payload {payload!r} is no bytes", "encode it")
    if when is not None and not callable(when):
        raise ConfigurationError(f"when {when!r}: is no function", "give one that takes a parsed frame")

    def meant(frame: Frame) -> Any:
        return (payload is None or frame.payload == payload) and (when is None or when(frame))

    note = "" if payload is None else f" payload {bytes(payload)!r}"
    note += "" if when is None else f" when {getattr(when, '__qualname__', 'a predicate')}"
    predicate = meant if note else None
    return Selection(grammar.build(**match, partition=True), predicate, note)


def _flow(frame: Frame) -> Flow:
    return Flow(frame.protocol, frame.family, frame.source, frame.destination, frame.sport, frame.dport)
