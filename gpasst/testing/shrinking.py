"""The smallest weather that a test still fails in: delta debugging over the fates of frames.

Theory of operation: what weather did in a run is a list of *disturbances*: a frame of a rule that was lost, late,
doubled, corrupt, or left its place. `smallest` looks for the least of them that still make the test fail (ddmin:
Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002), by running the test with these
fates, while all other frames pass. It first tries the disturbances of one kind alone, since those are easier to
understand. A program that repeats what was lost sends less where less is lost, so the frames behind have lower numbers
then: in the end `smallest` tries whether a disturbance can go if those behind it move up (`moved_up`). `describe` says
what is left: in words, as a table, and as rules that a test can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from gpasst.impair.facts import LINK
from gpasst.impair.fate import AT_ONCE, HELD_FULL, PASSES, QUEUE_FULL, Fate
from gpasst.impair.grammar import text
from gpasst.impair.quantities import show_time
from gpasst.impair.rule import CERTAIN, Rule
from gpasst.ranges import merged
from gpasst.records import dataclass, replace

if TYPE_CHECKING:
    from gpasst.api.replay import Key
    from gpasst.impair.active import ActiveRule
    from gpasst.impair.facts import Place

CLAUSES = 3  # disturbances that one sentence names
ROWS = 20  # and that the table has
_NOUNS = {"udp": "datagram", "tcp": "segment", "icmp": "message"}
_SUFFIXES = {1: "st", 2: "nd", 3: "rd"}
_HALVES = 2
_TEENS = range(11, 14)
_TIMED = (QUEUE_FULL, HELD_FULL)  # what depends on time cannot be replayed


class Exhausted(Exception):
    """The test has run often enough."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What weather did to one frame.

    :ivar place: place of the rule among those that the run put in force, one for each direction.
    :ivar key: what the rule is found again by (`gpasst.api.replay`).
    :ivar origin: the rule.
    :ivar towards: the direction.
    :ivar n: the number of the frame in it.
    :ivar fate: what happened.
    :ivar flow: protocol and ends of the frame, for the table.
    :ivar length: bytes of the frame.
    :ivar where: the link.
    """

    place: int
    key: Key
    origin: Rule
    towards: str
    n: int
    fate: Fate
    flow: str
    length: int
    where: Place = LINK

    @property
    def kind(self) -> str:
        """What happened, without its measure."""
        return str(self.fate).split(" ", 1)[0]


def disturbances(rules: Mapping[Key, ActiveRule]) -> list[Disturbance]:
    """Return what rules did that a run can do without, in the order of the rules and of their frames.

    :param rules: the rules of the run by their keys, as they came into force.
    """
    return [
        Disturbance(place, key, active.rule, active.log.towards, n, fate, str(flow), length, active.log.place)
        for place, (key, active) in enumerate(rules.items())
        for _, n, fate, flow, length in active.log.frames()
        if fate != PASSES and fate.place != AT_ONCE and fate not in _TIMED
    ]


def smallest(found: Sequence[Disturbance], fails: Callable[[Sequence[Disturbance]], bool]) -> list[Disturbance]:
    """Return disturbances with which the test fails, and without any one of which it does not.

    :param found: disturbances with which it fails.
    :param fails: runs the test with some of them; it raises `Exhausted` when the test has run often enough.
    """
    kept = list(found)

    def adopt(candidates: Iterable[list[Disturbance]]) -> bool:
        nonlocal kept
        for candidate in candidates:
            if fails(candidate):
                kept = candidate
                return True
        return False

    try:
        kinds = {item.kind: [other for other in kept if other.kind == item.kind] for item in kept}
        if len(kinds) > 1:
            adopt(sorted(kinds.values(), key=len))
        parts = _HALVES
        while len(kept) > 1:
            size = -(-len(kept) // parts)
            pieces = [kept[at : at + size] for at in range(0, len(kept), size)]
            rests = [[item for other in pieces if other is not piece for item in other] for piece in pieces]
            if adopt(pieces):
                parts = _HALVES
            # The rest of one half is the other half.
            elif len(pieces) > _HALVES and adopt(rests):
                parts = max(parts - 1, _HALVES)
            elif size == 1:
                break
            else:
                parts = min(_HALVES * parts, len(kept))
        while len(kept) > 1 and adopt(moved_up(kept)):
            pass
    except Exhausted:
        pass
    return kept


def moved_up(found: Sequence[Disturbance]) -> Iterator[list[Disturbance]]:
    """Yield `found` without each one of them, while those behind it in its rule have numbers less by one."""
    for gone in found:
        yield [
            replace(item, n=item.n - 1) if item.key == gone.key and item.n > gone.n else item
            for item in found
            if item is not gone
        ]


def describe(found: Sequence[Disturbance]) -> list[str]:
    """Return lines that say what is left: a sentence, a table, and rules."""
    clauses = [f"the {_which(item)} {_what(item)}" for item in found]
    said = ", and ".join(clauses) if len(found) <= CLAUSES else f"these {len(found)} frames are disturbed"
    rows = [("frame", "fate", "flow", "bytes", "rule")]
    rows += [(str(item.n), str(item.fate), item.flow, str(item.length), text(item.origin)) for item in found[:ROWS]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(found) > ROWS:
        table.append(f"and {len(found) - ROWS} more")
    owners = dict.fromkeys(item.where.owner for item in found)
    calls = [
        f"{owner}.impair({text(replace(rule, when=None))!r})" + (f"  # and when={rule.when!r}" if rule.when else "")
        for owner in owners
        for rule in pasted([item for item in found if item.where.owner == owner])
    ]
    return [f"fails when {said}", "", *table, "", "as rules:", *calls]


def pasted(found: Sequence[Disturbance]) -> list[Rule]:
    """Return rules of one link that do the same to the same frames, and let all others pass.

    They are exact but where a rule that had an `nth` of its own stood before others.
    """
    rules: list[Rule] = []
    groups = [list(group) for _, group in groupby(sorted(found, key=attrgetter("place", "n")), attrgetter("place"))]
    for index, group in enumerate(groups):
        match, origin = _match(group[0]), group[0].origin
        effects: dict[Rule, list[int]] = {}
        for item in group:
            effects.setdefault(_effect(match, origin, item.fate), []).append(item.n)
        # A rule does not count what one before it has taken, and counts twice what goes on twice.
        moves: dict[int, int] = {}
        for effect, numbers in effects.items():
            own = [n + sum(move for other, move in moves.items() if other < n) for n in numbers]
            rules.append(replace(effect, nth=tuple(merged((n, n) for n in own))))
            moves |= dict.fromkeys(numbers, bool(effect.duplicate) if effect.goes_on else -1)
        later = any(other[0].towards == group[0].towards for other in groups[index + 1 :])
        if later and not (origin.goes_on or origin.nth or origin.every):
            # Later rules were not asked about what this one had matched.
            rules.append(match)
    return rules


def _match(item: Disturbance) -> Rule:
    """Return the match of a rule, of one direction, without effects."""
    rule = item.origin
    names = ("protocols", "src", "dst", "sport", "dport", "size", "flags", "no_flags", "when")
    return Rule(to=item.towards, **{name: getattr(rule, name) for name in names})


def _effect(match: Rule, rule: Rule, fate: Fate) -> Rule:
    """Return a rule with a match that does what a fate says."""
    if fate.lost == "lost":
        return replace(match, loss=CERTAIN)
    if fate.lost:
        if rule.partition or rule.reset or rule.unreachable:
            return replace(match, partition=rule.partition, reset=rule.reset, unreachable=rule.unreachable)
        return replace(match, mtu=rule.mtu, icmp=rule.icmp)
    return replace(
        match,
        delay=fate.delay,
        reorder=CERTAIN if fate.place else 0,
        gap=fate.place,
        duplicate=CERTAIN if fate.twice else 0,
        corrupt=CERTAIN if fate.corrupt >= 0 else 0,
        payload=fate.corrupt >= 0 and rule.payload,
        mark=CERTAIN if fate.mark else 0,
        rebind=fate.rebind,
        goes_on=rule.goes_on,
    )


def _which(item: Disturbance) -> str:
    """Return which frame a disturbance is about, such as ``3rd datagram to port 53``."""
    rule = item.origin
    noun = _NOUNS.get(rule.protocols[0], "frame") if len(rule.protocols) == 1 else "frame"
    shown = replace(_match(item), to="", protocols=(), when=None)
    words = text(shown).partition(": ")[0].split() if shown != Rule() else []
    ends = [f"{_END.get(name, name)} {value}" for name, value in zip(words[::2], words[1::2], strict=True)]
    suffix = "th" if item.n % 100 in _TEENS else _SUFFIXES.get(item.n % 10, "th")
    if item.where != LINK or not ends:
        ends.append(item.where.shown(item.towards))
    return " ".join([f"{item.n}{suffix} {noun}", *ends])


_END = {"sport": "from port", "dport": "to port", "src": "from", "dst": "to", "size": "of size", "flags": "with flags"}


def _what(item: Disturbance) -> str:
    """Return what happens to it, as a verb."""
    return " and ".join(_verbs(item.fate))


def _verbs(fate: Fate) -> Iterator[str]:
    if fate.lost:
        _, _, why = fate.lost.partition(": ")
        yield f"is lost ({why})" if why else "is lost"
    if fate.rebind:
        yield "finds another port"
    if fate.place > 0:
        yield f"is {fate.place} places late"
    if fate.delay:
        yield f"is {show_time(fate.delay)} late"
    if fate.twice:
        yield "comes twice"
    if fate.corrupt >= 0:
        yield "is corrupt"
    if fate.mark:
        yield "is marked"
