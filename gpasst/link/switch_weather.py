"""Weather between the ports of a switch.

Theory of operation: a frame from one host to another crosses the link of the first, what is between the two, and the
link of the second. Each of these may have an edge (`gpasst.link.edge`), whose key is the pair of names of the ports:
that of the sender, or empty for a link to its host, and that of the receiver, or empty for a link from its host. An
edge exists while it has rules or holds frames. Partitions (`gpasst.switch.partition`) cut off between two links.

While there is any of these, this stands between the ports (`gpasst.link.switch.Between`), and pairs of ports with one
of these have no way. A frame that an edge lets go of goes on behind that edge. Rules belong to names, so they outlive a
port that comes again.

A frame that is lost on its way from a host is recorded at the sender's link with its fate, one that is lost behind that
at the receiver's. Answers to senders of lost frames are subject to no rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gpasst.counters import Drop
from gpasst.impair.action import Action, Answer
from gpasst.impair.active import ActiveRule
from gpasst.impair.engine import HELD_BYTES, HELD_FRAMES, Engine
from gpasst.impair.facts import TO_GUEST, TO_HOST, Flow, Place, Run
from gpasst.impair.hold import Room
from gpasst.impair.log import FateLog
from gpasst.impair.rule import Rule
from gpasst.link.edge import LOGS_KEPT, AnswerQueue, Edge, Means, record_offered
from gpasst.link.flows import Flows
from gpasst.link.held import Item, run_of
from gpasst.link.switch import Data, Port, Switch
from gpasst.packet.alteration import protected
from gpasst.packet.superframe import VIRTIO, shape
from gpasst.switch.partition import Partition
from gpasst.wire import VIRTIO_NET_BLANK, VIRTIO_NET_CODEC

Key = tuple[str, str]
"""The names of the sender's port and of the receiver's; one of both may be empty."""

AnswersOf = Callable[[Answer, Flow, bytes, int], Iterable[bytes]]
"""Returns the frames that answer a lost frame: see `gpasst.link.edge.Outlet.answer`."""

ROOM_FRAMES: Final = 4 * HELD_FRAMES  # that all edges of a network hold together
ROOM_BYTES: Final = 4 * HELD_BYTES
CUT: Final = "lost: partition"
_GSO_TYPE = VIRTIO_NET_CODEC.offset("gso_type")


class SwitchWeather:
    """The weather of one network.

    :param switch: the switch.
    :param answers_of: returns the answers to senders of lost frames.
    :param means: what edges work with.
    """

    def __init__(self, switch: Switch, answers_of: AnswersOf, means: Means) -> None:
        self._switch = switch
        self._answers_of = answers_of
        self._means = means
        self._answers = AnswerQueue(means, _nothing)
        self._flows = Flows()
        self._room = Room(ROOM_FRAMES, ROOM_BYTES)
        self._edges: dict[Key, Edge] = {}
        self._partitions: tuple[Partition, ...] = ()
        self._ended: deque[FateLog] = deque(maxlen=LOGS_KEPT)
        self._closed = False

    # --- Rules and partitions ---------------------------------------------------------------------------------------

    def add(self, key: Key, towards: str, place: Place, rule: Rule, seed: int) -> ActiveRule:
        """Put a rule in force at an edge, behind those that are.

        :param towards: the direction of the edge, at its place.
        """
        edge = self._edges.get(key)
        if edge is None:
            outlet = _Outlet(self, *key)
            edge = self._edges[key] = Edge(Engine(towards, place, self._room), outlet, self._answers, self._means)
            self._refresh()
        return edge.engine.add(rule, seed)

    def remove(self, rules: Iterable[ActiveRule]) -> None:
        """End rules. What they hold leaves at once, in order; those that have ended are ignored."""
        rules = [rule for rule in rules if not rule.removed]
        self._ended += [rule.log for rule in rules]
        for edge in list(self._edges.values()):
            if any(rule in rules for rule in edge.engine.rules):
                edge.remove(rules)

    def cut(self, partition: Partition) -> None:
        """Let a partition cut off hosts from now on."""
        self._partitions = (*self._partitions, partition)
        self._refresh()

    def heal(self, partition: Partition) -> None:
        """End a partition; more calls do nothing."""
        self._partitions = tuple(other for other in self._partitions if other is not partition)
        self._refresh()

    def after(self, seconds: float, change: Callable[[], None]) -> None:
        """Call a function once, after so many seconds, unless this is closed before."""
        self._means.at(self._means.clock() + seconds, lambda _: None if self._closed else change())

    def logs(self) -> list[FateLog]:
        """Return the logs of the rules in force, and of the last that have ended."""
        return [*self._ended, *(rule.log for edge in self._edges.values() for rule in edge.engine.rules)]

    def close(self) -> None:
        """End all rules and partitions, and forget what is held."""
        self._closed = True
        for edge in self._edges.values():
            edge.close()
        self._edges.clear()
        self._answers.clear()
        self._partitions = ()
        self._refresh()

    def settled(self, key: Key) -> None:
        """Take note that an edge may have nothing left to do."""
        edge = self._edges.get(key)
        if edge is not None and not edge.active:
            del self._edges[key]
            self._refresh()

    def _refresh(self) -> None:
        self._switch.between = self if self._edges or self._partitions else None
        self._switch.reset()

    # --- Frames -----------------------------------------------------------------------------------------------------

    def enters(self, source: Port, data: Data) -> bool:
        """Return whether a frame that came in by a port goes on now; see `gpasst.link.switch.Between`."""
        return self._goes_on((source.name, ""), data, False)

    def passes(self, source: Port, target: Port, data: Data) -> bool:
        """Return whether a frame leaves by a port now; see `gpasst.link.switch.Between`."""
        if self._cuts(source, target):
            count = shape(data).count if data[_GSO_TYPE] else 1
            for partition in self._partitions:
                if partition.cuts(source.name, target.name):
                    partition.hits += count
            self._means.counters.drop(Drop.IMPAIRED_PARTITION, count)
            self.record(True, target.name, data, CUT)
            return False
        return self._goes_on((source.name, target.name), data, True) and self._goes_on(("", target.name), data, True)

    def sees(self, source: Port, target: Port) -> bool:
        """Return whether frames from one port to another are of interest; see `gpasst.link.switch.Between`."""
        one, other = source.name, target.name
        edges = self._edges
        return (one, "") in edges or (one, other) in edges or ("", other) in edges or self._cuts(source, target)

    def _cuts(self, source: Port, target: Port) -> bool:
        return any(partition.cuts(source.name, target.name) for partition in self._partitions)

    def _goes_on(self, key: Key, data: Data, to_guest: bool) -> bool:
        """Return whether a frame goes on now behind an edge, whole and unchanged."""
        edge = self._edges.get(key)
        if edge is None:
            return True
        flow, flags = self._flows.find(data, 0, len(data))
        if not edge.engine.concerns(flow):
            return True
        item = Item(lambda: bytes(data), to_guest)
        return not edge.offer(run_of(flow, flags, item, len(data) - VIRTIO, data[_GSO_TYPE] > 0))

    def leave(self, source: str, target: str, data: bytes, damaged: bool) -> None:
        """Let a frame go on behind an edge, after the time of its offer.

        :param source: the edge's sender, empty for a link to its host.
        :param target: its receiver, empty for a link from its host.
        :param damaged: whether a bit is wrong, which a checksum may show.
        """
        switch = self._switch
        if damaged and self._unverified(target, data):
            # A part of this process verifies no checksums.
            self._means.counters.drop(Drop.CHECKSUM)
            return
        port = switch.named.get(target or source)
        if port is None or port.down:
            self._means.counters.drop(Drop.LINK_DOWN)
        elif not target:
            switch.route(port, data)
        elif not source or self._goes_on(("", target), data, True):
            switch.deliver(port, data, later=True)

    def _unverified(self, target: str, data: bytes) -> bool:
        """Return whether a checksum is wrong that the receiver of a damaged frame does not look at."""
        port = self._switch.named.get(target) if target else self._switch.leads(data)
        return port is not None and port.inner and protected(data)

    def record(self, to_guest: bool, name: str, data: Data, fate: str) -> None:
        """Record a frame that was lost at a link."""
        if self._switch.recorder is not None:
            self._switch.recorder.write(to_guest, data, comment=fate, link=name)

    def record_offered(self, name: str, run: Run, actions: list[Action]) -> None:
        """Record a run that came in by a port, lost parts apart."""
        if self._switch.recorder is not None:
            record_offered(self._switch.recorder, run, actions, name)

    def answer(self, kind: Answer, flow: Flow, frame: bytes, mtu: int) -> None:
        """Answer the sender of a frame that was lost; see `gpasst.link.edge.Outlet.answer`."""
        for made in self._answers_of(kind, flow, frame, mtu):
            data = VIRTIO_NET_BLANK + made
            port = self._switch.leads(data)
            if port is not None:
                self._switch.deliver(port, data, later=True)


class Edges:
    """A link of a network, or what is between two hosts: where a rule acts in one or both directions.

    :param weather: the network's weather.
    :param place: names the directions.
    :param keys: the edge of each direction.
    """

    def __init__(self, weather: SwitchWeather, place: Place, keys: Mapping[str, Key]) -> None:
        self._weather = weather
        self._place = place
        self._keys = keys
        self.remove, self.after = weather.remove, weather.after

    def add(self, rule: Rule, seed: int) -> list[ActiveRule]:
        """Put a rule in force, behind those that are; return it once for each of its directions."""
        return [
            self._weather.add(key, towards, self._place, rule, seed)
            for towards, key in self._keys.items()
            if rule.to in ("", towards)
        ]


def link_keys(name: str) -> dict[str, Key]:
    """Return the edges of the link of a host."""
    return {TO_GUEST: ("", name), TO_HOST: (name, "")}


def pair_keys(one: str, other: str) -> dict[str, Key]:
    """Return the edges between two hosts, the first of which is called the guest."""
    return {TO_GUEST: (other, one), TO_HOST: (one, other)}


class _Outlet:
    """Leads on from one edge (`gpasst.link.edge.Outlet`)."""

    def __init__(self, weather: SwitchWeather, source: str, target: str) -> None:
        self._weather = weather
        self._source = source
        self._target = target
        self.answer = weather.answer

    def keep(self, run: Run, actions: list[Action]) -> None:
        """Record what has come in by a port."""
        if not self._target:
            self._weather.record_offered(self._source, run, actions)

    def leave(self, run: Run, data: bytes, count: int, damaged: bool) -> None:
        """Let a frame go on."""
        self._weather.leave(self._source, self._target, data, damaged)

    def lose(self, run: Run, data: bytes, fate: str, fresh: bool) -> None:
        """Record what is lost."""
        if self._target or not fresh:
            self._weather.record(self._target != "", self._target or self._source, data, fate)

    def rebind(self, flow: Flow) -> None:
        """Do nothing: a switch translates no addresses."""

    def caught_up(self) -> bool:
        """Return True: what came before has gone on."""
        return True

    def settle(self) -> None:
        """Do nothing: what goes on does so at once."""

    def changed(self) -> None:
        """Let an edge end that has nothing left to do."""
        self._weather.settled((self._source, self._target))


def _nothing() -> None:
    """Do nothing: answers go out at once."""
