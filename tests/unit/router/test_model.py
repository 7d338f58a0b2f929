"""Any conversation through a NAT, beside a model of RFC 4787 that is written down as the RFC says it."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gpasst.router.behaviour import (
    ADDRESS_DEPENDENT,
    DEPENDENCES,
    ENDPOINT_INDEPENDENT,
    Behaviour,
)
from gpasst.router.interface import INSIDE, OUTSIDE
from tests.support.routing import ROUTER4, A, B, S, T, World

TIMEOUT = 100.0
Endpoint = tuple[str, int]


@dataclass
class Flow:
    """An inside endpoint and a remote one, the outside port between them, and when it was refreshed.

    :ivar first: the remote endpoint that the inside got this port for.
    """

    inside: Endpoint
    remote: Endpoint
    port: int
    first: Endpoint
    last: float


class Model:
    """All flows that there have ever been; those whose time is over count no more."""

    def __init__(self, mapping: str, filtering: str, refresh: bool) -> None:
        self.mapping, self.filtering, self.refresh = mapping, filtering, refresh
        self.flows: list[Flow] = []

    def alive(self, now: float) -> list[Flow]:
        return [flow for flow in self.flows if now - flow.last <= TIMEOUT]

    def expected_port(self, inside: Endpoint, remote: Endpoint, now: float) -> int | None:
        """Return the outside port that a datagram from inside has, None for a new one."""
        alive = [flow for flow in self.alive(now) if flow.inside == inside]
        for flow in alive:
            if flow.remote == remote:
                return flow.port
        for flow in alive:
            same_address = self.mapping == ADDRESS_DEPENDENT and flow.first[0] == remote[0]
            if self.mapping == ENDPOINT_INDEPENDENT or same_address or flow.first == remote:
                return flow.port
        return None

    def left(self, inside: Endpoint, remote: Endpoint, port: int, now: float) -> None:
        for flow in self.alive(now):
            if (flow.inside, flow.remote) == (inside, remote):
                flow.last = now
                return
        first = next((flow.first for flow in self.alive(now) if flow.port == port), remote)
        self.flows.append(Flow(inside, remote, port, first, now))

    def came(self, remote: Endpoint, port: int, now: float) -> Endpoint | None:
        """Return the inside endpoint that a datagram to an outside port reaches, None for none."""
        alive = self.alive(now)
        own = [flow for flow in alive if flow.port == port]
        if not own:
            return None
        inside = own[0].inside
        same = [flow for flow in own if flow.remote == remote]
        admitted = (
            bool(same)
            or self.filtering == ENDPOINT_INDEPENDENT
            or (self.filtering == ADDRESS_DEPENDENT and any(flow.remote[0] == remote[0] for flow in own))
        )
        if not admitted:
            return None
        known = [flow for flow in alive if (flow.inside, flow.remote) == (inside, remote)]
        if not known:
            newest = max(flow.last for flow in own)
            self.flows.append(Flow(inside, remote, port, own[0].first, now if self.refresh else newest))
        elif self.refresh:
            known[0].last = now
        return inside


insides = st.tuples(st.sampled_from((A, B)), st.sampled_from((5000, 5001)))
remotes = st.tuples(st.sampled_from((S, T)), st.sampled_from((100, 200)))
steps = st.lists(
    st.tuples(st.just("out"), insides, remotes)
    | st.tuples(st.just("in"), remotes, st.integers(0, 5))
    | st.tuples(st.just("wait"), st.sampled_from((30.0, 60.0, 101.0)), st.none()),
    max_size=40,
)


@given(st.sampled_from(DEPENDENCES), st.sampled_from(DEPENDENCES), st.booleans(), st.booleans(), steps)
def test_a_nat_does_what_the_model_says(
    mapping: str, filtering: str, refresh: bool, preservation: bool, steps: list[tuple[str, object, object]]
) -> None:
    world = World(
        Behaviour(mapping, filtering, inbound_refresh=refresh, port_preservation=preservation, timeout=TIMEOUT)
    )
    model, ports = Model(mapping, filtering, refresh), [4000]
    for what, one, other in steps:
        if what == "wait":
            assert isinstance(one, float)
            world.passes(one)
        elif what == "out":
            assert isinstance(one, tuple)
            assert isinstance(other, tuple)
            (source, sport), (destination, dport) = one, other
            frame = world.udp(INSIDE, source, sport, destination, dport)
            assert frame is not None
            expected = model.expected_port(one, other, world.now)
            taken = {flow.port for flow in model.alive(world.now)}
            assert frame.sport == expected if expected is not None else frame.sport not in taken
            assert (frame.src, frame.dst, frame.dport) == (ROUTER4[OUTSIDE], *other)
            model.left(one, other, frame.sport, world.now)
            ports.append(frame.sport)
        else:
            assert isinstance(one, tuple)
            assert isinstance(other, int)
            port = ports[-1 - other % len(ports)]
            source, sport = one
            frame = world.udp(OUTSIDE, source, sport, ROUTER4[OUTSIDE], port)
            reached = model.came(one, port, world.now)
            assert ((frame.dst, frame.dport) if frame is not None else None) == reached
