"""Weather and datagrams: each effect in both directions and families, on a tap and on a stream (6 s)."""

from __future__ import annotations

import errno
import socket
import subprocess
import time

import pytest

import gpasst
from gpasst.impair.engine import Engine
from gpasst.impair.facts import Flow, Run
from gpasst.impair.grammar import parse
from gpasst.linux import UDP_SEGMENT
from tests.support.families import LEVEL
from tests.support.lab import FAR, Remote
from tests.support.machines import Machine
from tests.support.weather import await_hits, ends, numbered

TOS = {4: socket.IP_TOS, 6: socket.IPV6_TCLASS}
RECEIVE_TOS = {4: socket.IP_RECVTOS, 6: socket.IPV6_RECVTCLASS}
RECEIVE_ERRORS = {4: 11, 6: 25}  # IP_RECVERR, IPV6_RECVERR
MTU_DISCOVER, MTU = {4: 10, 6: 23}, {4: 14, 6: 24}  # IP_MTU_DISCOVER, IPV6_MTU_DISCOVER; IP_MTU, IPV6_MTU
ALWAYS = 2  # IP_PMTUDISC_DO
ECT, CE = 2, 3


def rule(to: str, port: int, effects: str, match: str = "") -> str:
    """Return a rule about one server's flows."""
    return f"to {to} udp {'sport' if to == 'guest' else 'dport'} {port} {match}: {effects}"


def numbers(received: list[bytes]) -> list[int]:
    return [int(data.split()[0]) for data in received]


def test_chosen_datagrams_are_lost(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair:
        before = machine.net.statistics().drops.get(gpasst.Drop.IMPAIRED.value, 0)
        with machine.net.impair(rule(to, pair.port, "loss 100%", "nth 2,4-5")) as impaired:
            for data in numbered(7):
                pair.send(to, data)
            arrived = [pair.receive(to) for _ in range(4)]
        assert numbers(arrived) == [1, 3, 6, 7]
        assert impaired.hits == 3
        assert [line.n for line in impaired.log] == [2, 4, 5]
        assert machine.net.statistics().drops[gpasst.Drop.IMPAIRED.value] == before + 3
        assert pair.rest(to) == []


def test_no_datagram_comes_before_its_delay(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, "delay 20ms")):
        begin = time.monotonic()
        for data in numbered(5):
            pair.send(to, data)
        assert numbers([pair.receive(to) for _ in range(5)]) == [1, 2, 3, 4, 5]
        assert time.monotonic() - begin >= 0.02


def test_what_is_held_leaves_in_order_when_the_rule_ends(
    machine: Machine, remote: Remote, family: int, to: str
) -> None:
    with ends(machine, remote, family) as pair:
        impaired = machine.net.impair(rule(to, pair.port, "delay 3600s"))
        for data in numbered(5):
            pair.send(to, data)
        await_hits(impaired, 5)
        impaired.remove()
        assert numbers([pair.receive(to) for _ in range(5)]) == [1, 2, 3, 4, 5]


def test_a_datagram_crosses_twice(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, "duplicate 100%", "nth 2")):
        for data in numbered(3):
            pair.send(to, data)
        assert numbers([pair.receive(to) for _ in range(4)]) == [1, 2, 2, 3]


def test_a_datagram_changes_its_place(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, "reorder 100% gap 2 seed 3")):
        # Each lets two others pass, and what has nobody to let pass leaves after a while.
        for data in numbered(6):
            pair.send(to, data)
        assert sorted(numbers([pair.receive(to) for _ in range(6)])) == [1, 2, 3, 4, 5, 6]


def test_a_receiver_drops_what_was_damaged(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, "corrupt 100%", "nth 2")):
        for data in numbered(3, 50):
            pair.send(to, data)
        assert numbers([pair.receive(to) for _ in range(2)]) == [1, 3]


def test_damage_that_no_checksum_finds_arrives(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, "corrupt payload", "nth 2")):
        sent = numbered(3, 50)
        for data in sent:
            pair.send(to, data)
        first, damaged, last = [pair.receive(to) for _ in range(3)]
        assert [first, last] == [sent[0], sent[2]]
        assert sum((a ^ b).bit_count() for a, b in zip(sent[1], damaged, strict=True)) == 1


def test_only_what_fits_a_path_passes_it(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, "mtu 1280")):
        for data in (bytes(1200), bytes(1300), bytes(1201)):
            pair.send(to, data)
        assert [len(pair.receive(to)) for _ in range(2)] == [1200, 1201]


def test_a_guest_learns_of_a_narrow_path(machine: Machine, remote: Remote, family: int) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule("host", pair.port, "mtu 1285 icmp")):
        pair.guest.setsockopt(LEVEL[family], MTU_DISCOVER[family], ALWAYS)
        pair.guest.setsockopt(LEVEL[family], RECEIVE_ERRORS[family], 1)
        datagram = bytes(1290 - (28 if family == 4 else 48))
        pair.guest.send(datagram)
        with pytest.raises(OSError, match="Message too long"):
            pair.guest.recv(9)
        assert pair.guest.getsockopt(LEVEL[family], MTU[family]) == 1285
        with pytest.raises(OSError, match="Message too long"):
            pair.guest.send(datagram)


def test_a_router_marks_what_understands_marks(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, "ecn mark")):
        sender, receiver = (pair.server, pair.guest) if to == "guest" else (pair.guest, pair.server)
        receiver.setsockopt(LEVEL[family], RECEIVE_TOS[family], 1)
        seen = []
        for tos in (0, ECT):
            sender.setsockopt(LEVEL[family], TOS[family], tos)
            pair.send(to, b"?")
            _, controls, _, _ = receiver.recvmsg(9, 64)
            seen += [data[0] for level, _, data in controls if level == LEVEL[family]]
        assert seen == [0, CE]


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("port", {4: errno.ECONNREFUSED, 6: errno.ECONNREFUSED}),
        ("host", {4: errno.EHOSTUNREACH, 6: errno.EHOSTUNREACH}),
        ("net", {4: errno.ENETUNREACH, 6: errno.ENETUNREACH}),
        ("admin", {4: errno.EHOSTUNREACH, 6: errno.EACCES}),
    ],
)
def test_senders_learn_that_nobody_is_there(
    machine: Machine, remote: Remote, family: int, to: str, kind: str, numbers: dict[int, int]
) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, f"unreachable {kind}")):
        pair.server.connect(pair.mapped)
        sender = pair.server if to == "guest" else pair.guest
        sender.setsockopt(LEVEL[family], RECEIVE_ERRORS[family], 1)
        sender.send(b"?")
        with pytest.raises(OSError) as caught:  # the number is what counts
            sender.recv(9)
        assert caught.value.errno == numbers[family]


def test_a_rebinding_changes_the_port_and_nothing_else(machine: Machine, remote: Remote, family: int) -> None:
    with ends(machine, remote, family) as pair:
        with machine.net.impair(rule("host", pair.port, "rebind", "nth 2")):
            pair.guest.send(b"before")
            assert pair.server.recvfrom(9) == (b"before", pair.mapped)
            pair.guest.send(b"after")
            data, sender = pair.server.recvfrom(9)
        assert data == b"after"
        assert sender[0] == pair.mapped[0]
        assert sender[1] != pair.mapped[1]
        pair.server.sendto(b"answer", sender)
        assert pair.guest.recv(9) == b"answer"
        assert pair.port in {flow.shown[1] for flow in machine.net.flows() if flow.port == sender[1]}
        pair.server.sendto(b"late", pair.mapped)
        pair.server.sendto(b"again", sender)
        assert pair.guest.recv(9) == b"again", "the old port leads nowhere"


def test_a_rate_takes_its_time(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(rule(to, pair.port, "rate 2mbit")):
        begin = time.monotonic()
        for data in numbered(10, 988):
            pair.send(to, data)
        assert numbers([pair.receive(to) for _ in range(10)]) == list(range(1, 11))
        assert time.monotonic() - begin >= 9 * 1000 * 8 / 2_000_000


def test_a_partition_stops_all(machine: Machine, remote: Remote, family: int) -> None:
    with ends(machine, remote, family) as pair:
        with machine.net.impair("partition") as cut:
            for to in ("guest", "host"):
                for data in numbered(3):
                    pair.send(to, data)
            await_hits(cut, 6)
        assert pair.rest("guest") == []
        assert pair.rest("host") == []


def test_fates_do_not_depend_on_how_datagrams_cross(machine: Machine, remote: Remote, family: int, to: str) -> None:
    """Sent one by one, as superframes, and as the pure engine decides."""
    with ends(machine, remote, family) as pair:
        text = rule(to, pair.port, "loss 30% duplicate 10% seed 7")
        active = (engine := Engine(to)).add(parse(text), 7)
        flow = Flow("udp", 4, bytes(4), bytes(4), pair.port, pair.port)
        for _ in range(192):
            engine.offer(Run(flow, None, 100), 0.0)
        expected = active.log.fates
        for segments in (1, 32):
            with machine.net.impair(text) as impaired:
                sender = pair.server if to == "guest" else pair.guest
                sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 100 if segments > 1 else 0)
                for _ in range(192 // segments):
                    pair.send(to, bytes(100 * segments))
                await_hits(impaired, 192)
                sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 0)
            assert impaired.log.fates == expected
            lost = sum("lost" in fate for _, fate in expected)
            twice = sum("twice" in fate or "doubled" in fate for _, fate in expected)
            assert len(pair.rest(to)) == 192 - lost + twice


def test_fragments_meet_weather_by_protocol(machine: Machine, remote: Remote, family: int) -> None:
    with ends(machine, remote, family) as pair:
        with machine.net.impair("to host udp: loss 100%", seed=1) as impaired:
            pair.guest.send(bytes(4000))
            await_hits(impaired, 3)
        with machine.net.impair("to host udp: delay 1ms"):
            pair.guest.send(bytes(4000))
            assert len(pair.server.recv(9000)) == 4000


def test_echo_is_lost_and_late(machine: Machine, family: int) -> None:
    with machine.net.impair("to guest icmp nth 2: loss 100%"), machine.net.impair("to host icmp: delay 20ms"):
        printed = machine.run(["ping", "-c", "3", "-i", "0.05", "-W", "1", FAR[family]])
    # The program waits for the last answers for two round trips, which a busy machine may exceed.
    assert "icmp_seq=1 " in printed
    assert "icmp_seq=2 " not in printed
    assert float(printed.rsplit("= ", 1)[1].split("/")[0]) >= 20, "the shortest time, in milliseconds"


def test_echo_requests_are_answered_by_a_router(machine: Machine, family: int) -> None:
    failures = subprocess.CalledProcessError, AssertionError
    with machine.net.impair("to host icmp: unreachable host"), pytest.raises(failures):
        machine.run(["ping", "-c", "1", "-W", "1", FAR[family]])
    assert machine.net.statistics().errors_up


def test_a_flow_of_no_rule_is_left_alone(machine: Machine, remote: Remote, family: int, to: str) -> None:
    with ends(machine, remote, family) as pair, machine.net.impair(f"to {to} udp sport 1 dport 1: loss 100%") as other:
        for data in numbered(5):
            pair.send(to, data)
        assert numbers(pair.rest(to)) == [1, 2, 3, 4, 5]
        assert other.hits == 0
