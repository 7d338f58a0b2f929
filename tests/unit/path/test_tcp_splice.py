"""Splice pairs of TCP over real sockets on loopback: how they are set up, and how they end."""

from __future__ import annotations

import errno
import os
import select
import socket
from _socket import socket as RawSocket  # a class
from contextlib import ExitStack
from typing import Any

import pytest

from gpasst.counters import Drop
from gpasst.errors import PacketError, PlatformError
from gpasst.host.socket_pool import READY, READY_SHARE
from gpasst.path import tcp_splice
from gpasst.path.budget import STEP_SECONDS
from gpasst.path.tcp_carrier import Carrier
from gpasst.path.tcp_splice import TRIES
from gpasst.tcp.pairs import StreamPair
from gpasst.tcp.states import State
from tests.support.addresses import ip
from tests.support.families import FAMILIES, LOOPBACK
from tests.support.replies import refused
from tests.support.splicing import TCP_CLOSE, Spliced, became, spliced, taken
from tests.support.streams import STILL, is_reset, noise, reset
from tests.support.tcp import Ready

WINDOW = 1 << 16
both_sides = pytest.mark.parametrize("inside", [False, True], ids=["to-namespace", "to-host"])
both_ends = pytest.mark.parametrize("by", ["client", "service"])


def sides(by: str, client: socket.socket, service: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return the end that acts, and the other one."""
    return (client, service) if by == "client" else (service, client)


@FAMILIES
@both_sides
def test_there_and_back(family: int, inside: bool) -> None:
    with spliced(family, inside) as it:
        client, service, pair = it.open()
        with client, service:
            client.sendall(b"question")
            assert it.received(service, 8) == b"question"
            service.sendall(b"answer")
            assert it.received(client, 6) == b"answer"
            for one, other in ((client, service), (service, client)):
                one.shutdown(socket.SHUT_WR)
                assert it.ended(other)
        assert len(it.splice.pairs) == 0
        assert (it.counters.tcp.spliced.bytes, it.counters.drops) == (14, {})
        assert not pair.open


@FAMILIES
@both_sides
def test_a_pair_knows_all_its_ends(family: int, inside: bool) -> None:
    with spliced(family, inside) as it:
        client, service, pair = it.open()
        with client, service:
            assert (pair.source[1], pair.addressed) == (client.getsockname()[1], ip(LOOPBACK[family]))
            assert pair.remote == (ip(LOOPBACK[family]), service.getsockname()[1])
            assert pair.local[1] == service.getpeername()[1]
            assert (pair.state, pair.inside) == (State.ESTABLISHED, not inside)


@both_ends
@both_sides
def test_half_a_connection_goes_on(by: str, inside: bool) -> None:
    with spliced(4, inside) as it:
        client, service, pair = it.open()
        with client, service:
            one, other = sides(by, client, service)
            one.sendall(noise(5000))
            one.shutdown(socket.SHUT_WR)
            assert it.received(other, 5000) == noise(5000)
            assert it.ended(other)
            assert pair.state is (State.CLOSE_WAIT if inside == (by == "client") else State.FIN_WAIT_2)
            other.sendall(noise(300_000, 1))
            assert it.received(one, 300_000) == noise(300_000, 1)
            other.close()
            assert it.ended(one)
        assert len(it.splice.pairs) == 0


@both_sides
def test_sockets_of_the_namespace_come_from_the_pool(inside: bool) -> None:
    with spliced(4, inside) as it, ExitStack() as stack:
        it.splice.listen(inside, 4)
        assert it.made == ([] if inside else [READY])
        for _ in range(3):
            for sock in it.open()[:2]:
                stack.enter_context(sock)
        assert it.made == ([] if inside else [READY])


def test_a_low_limit_makes_a_small_pool() -> None:
    with spliced(limit=256) as it:
        it.splice.listen(False, 4)
        assert it.made == [it.descriptors.line // READY_SHARE + 1]


def test_who_must_not_have_a_pair_is_reset() -> None:
    with spliced() as it, it.client() as client:
        sock, _ = it._listener.accept()  # noqa: SLF001
        with refused(Drop.SPLICE_ADDRESS):
            it.splice.open(it.listener, sock, (ip("192.0.2.1"), 40000), it.addressed)
        assert is_reset(client)
        assert it.made == []


def test_a_pair_of_a_pair_is_reset() -> None:
    """The service's port leads back, so that the pair's own socket is the next client."""
    with spliced() as it:
        client, service, pair = it.open()
        with client, service:
            it.splice.pairs.add(pair)
            with refused(Drop.HAIRPIN):
                it.splice.pairs.check(pair.inside, pair.local, pair.remote)


@pytest.mark.parametrize("first", [True, False])
def test_without_a_watch_there_is_no_pair(first: bool) -> None:
    class Refusing(Ready):
        def register(self, fd: int, eventmask: int, /) -> None:
            if not first and not self.watched:
                self.watched.add(fd)
                return
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    epoll = Refusing()
    with spliced(epoll=epoll) as it, it.client() as client:
        with pytest.raises(PacketError, match="no watch: No space left on device") as error:
            it.accept()
        assert error.value.reason is Drop.NO_SOCKET
        assert is_reset(client)
        assert len(it.splice.pairs) == 0


@FAMILIES
@both_sides
def test_a_refused_client_is_reset_and_counted(family: int, inside: bool) -> None:
    with spliced(family, inside) as it, it.client() as client:
        it.service.close()
        it.accept()
        assert not it.ended(client)
        assert (it.counters.refusals, it.counters.drops, len(it.splice.pairs)) == (1, {}, 0)


def test_without_a_way_to_the_target_a_client_is_reset(remote: object) -> None:
    """The lab's host has no route there."""
    del remote
    with spliced() as it, it.client() as client:
        it.lead(ip("203.0.113.73"))
        with refused(Drop.UNREACHABLE):
            it.accept()
        assert is_reset(client)


def test_a_target_that_turns_out_to_be_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_splice, "SO_ERROR", socket.SO_KEEPALIVE)  # which is 0
    with spliced() as it, it.client() as client:
        it.service.close()
        it.accept()
        assert not it.ended(client)
        assert (it.counters.refusals, it.counters.drops) == (0, {Drop.UNREACHABLE: 1})


def test_a_socket_that_connects_to_itself_by_chance_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may give it the port that it shall connect to, if nobody listens there."""
    bound: list[Any] = []

    def bind_once(sock: Any) -> None:
        if not bound:
            sock.bind(("127.0.0.1", it.remote[1]))
            bound.append(sock)

    with spliced() as it, it.client() as client:
        it.service.close()
        monkeypatch.setattr(tcp_splice, "prepare_stream", bind_once)
        pair = it.accept()
        assert bound and bound[0].fileno() == -1
        assert pair.local != pair.remote
        assert not it.ended(client)
        assert it.counters.refusals == 1


def test_where_all_do_so_the_client_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def own(name: Any) -> tuple[bytes, int]:
        tries.append(name)
        return it.remote

    with spliced() as it, it.client() as client:
        monkeypatch.setattr(tcp_splice, "end_of", own)
        with refused(Drop.NO_SOCKET):
            it.accept()
        assert len(tries) == TRIES
        assert is_reset(client)


@both_sides
def test_without_a_socket_the_client_is_reset(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files") if inside else PlatformError("the namespace is gone")

    with spliced(4, inside) as it, it.client() as client:
        if inside:
            monkeypatch.setattr(tcp_splice, "RawSocket", refuse)
        else:
            monkeypatch.setattr(it.pool, "take", refuse)
        with refused(Drop.NO_SOCKET):
            it.accept()
        assert is_reset(client)
        assert len(it.splice.pairs) == 0


def test_without_a_descriptor_an_idle_pair_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with spliced(4, inside=True) as it:
        client, service, pair = it.open()
        failed: list[bool] = []

        def refuse_once(*arguments: Any) -> Any:
            if not failed:
                failed.append(True)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return RawSocket(*arguments)

        monkeypatch.setattr(tcp_splice, "RawSocket", refuse_once)
        with client, service, it.client():
            it.accept()
            assert is_reset(client) and is_reset(service)
            assert it.counters.drops == {Drop.CONNECTIONS_FULL: 1}
            assert not pair.open and len(it.splice.pairs) == 1


def test_near_the_limit_of_descriptors_the_longest_idle_pair_gives_way() -> None:
    # With a quarter in reserve, the line is where the pool's next descriptor stands.
    lowest = os.dup(0)
    os.close(lowest)
    with spliced(4, inside=True, limit=(lowest + 40) * 4 // 3) as it, ExitStack() as stack:
        made: list[tuple[socket.socket, socket.socket, StreamPair]] = []
        while not it.counters.drops:
            it.time += 1
            made.append(it.open())
            for sock in made[-1][:2]:
                stack.enter_context(sock)
            made[0][0].sendall(b"?")
            assert it.received(made[0][1], 1) == b"?"
        assert it.counters.drops == {Drop.CONNECTIONS_FULL: 1}
        open_ = [pair.open for _, _, pair in made]
        assert open_ == [True, False, *[True] * (len(made) - 2)], "the first was active"
        assert is_reset(made[1][0]) and is_reset(made[1][1])
        last, service, _ = made[-1]
        last.sendall(noise(100_000))
        assert it.received(service, 100_000) == noise(100_000)


def test_nothing_can_give_way_where_nothing_is() -> None:
    with spliced() as it:
        assert (it.splice.held(), it.splice.let_go()) == (0, False)


def test_a_client_that_goes_while_its_pair_connects() -> None:
    with spliced() as it:
        client = it.client()
        pair = it.accept()
        reset(client)
        became_closed(pair, 0)
        it.until(lambda: not pair.open, "the end")
        with it.served() as service:
            assert is_reset(service)
        assert (it.counters.refusals, it.counters.drops) == (0, {})


def became_closed(pair: StreamPair, index: int) -> None:
    """Await the reset of one of a pair's sockets."""
    sock: Any = pair.ways[index].source
    became(sock, TCP_CLOSE)


@both_sides
@pytest.mark.parametrize("size", [0, 1, 5000, 50_000])
def test_all_that_a_client_does_while_its_pair_connects_comes_in_one_edge(size: int, inside: bool) -> None:
    with spliced(4, inside) as it:
        client = it.client()
        it.accept()
        client.sendall(noise(size))
        client.close()
        with it.served() as service:
            assert it.received(service, size) == noise(size)
            assert it.ended(service)
            service.close()
        it.until(lambda: not len(it.splice.pairs), "the end of both")
        assert it.counters.drops == {}


@both_sides
@pytest.mark.parametrize("size", [0, 1, 5000, 50_000])
def test_a_service_that_is_quicker_than_the_first_look(size: int, inside: bool) -> None:
    """It accepts, answers and resets before the pair knows that it has connected."""
    with spliced(4, inside) as it, it.client() as client:
        pair = it.accept()
        service = it.served()
        service.sendall(noise(size))
        reset(service)
        became_closed(pair, 1)
        assert it.received(client, size) == noise(size)
        assert not it.ended(client)
        assert (it.counters.refusals, it.counters.drops, pair.open) == (0, {}, False)


@both_ends
@both_sides
@pytest.mark.parametrize("shut", [False, True])
@pytest.mark.parametrize("size", [0, 1, 5000, 50_000])
def test_a_reset_is_a_reset_behind_what_was_sent(by: str, inside: bool, size: int, shut: bool) -> None:
    with spliced(4, inside) as it:
        client, service, pair = it.open()
        one, other = sides(by, client, service)
        with one, other:
            one.sendall(noise(size))
            if shut:
                one.shutdown(socket.SHUT_WR)
            reset(one)
            became_closed(pair, int(by == "service"))
            assert it.received(other, size) == noise(size)
            it.until(lambda: not pair.open, "the end of the pair")
            assert it.ended(other) is False or shut


@both_ends
def test_a_reset_waits_for_a_slow_reader(by: str) -> None:
    with spliced(4, window=WINDOW) as it:
        client, service, pair = it.open()
        one, other = sides(by, client, service)
        with one, other:
            sent = fill(it, one)
            reset(one)
            became_closed(pair, int(by == "service"))
            it.turn()
            assert pair.open and pair.broken
            got = bytearray()
            ends: list[bool] = []

            def read() -> bool:
                try:
                    got.extend(taken(other))
                except ConnectionResetError:
                    ends.append(True)
                return bool(ends)

            it.until(read, "the reset")
            # What the sender's own socket had still is lost, as it is without a proxy.
            assert 2 * WINDOW < len(got) <= sent
            assert bytes(got) == noise(4 << 20)[: len(got)]
            assert not pair.open


def fill(it: Spliced, sender: socket.socket) -> int:
    """Send until nothing moves any more; return how many bytes were sent."""
    data, sent = noise(4 << 20), 0
    sender.setblocking(False)
    while sent < len(data):
        it.turn()
        try:
            sent += sender.send(data[sent : sent + WINDOW])
        except BlockingIOError:
            if select.select([it.epoll.fileno()], [sender], [], STILL) == ([], [], []):
                return sent
    raise AssertionError("nothing stops the sender")


@both_ends
def test_a_slow_reader_stops_its_sender_alone(by: str) -> None:
    with spliced(4, window=WINDOW) as it:
        client, service, pair = it.open()
        one, other = sides(by, client, service)
        with one, other:
            sent = fill(it, one)
            other.sendall(b"the other way goes on")
            assert it.received(one, 21) == b"the other way goes on"
            assert it.received(other, sent) == noise(4 << 20)[:sent]
            it.turn()
            assert all(way.pipe is None for way in pair.ways)


@both_ends
def test_an_end_that_takes_no_more_breaks_the_pair(by: str) -> None:
    """It has closed, so what still comes for it is answered with a reset."""
    with spliced() as it:
        client, service, pair = it.open()
        one, other = sides(by, client, service)
        with other:
            one.sendall(b"the last word")
            one.close()
            assert it.received(other, 13) == b"the last word"
            assert it.ended(other)
            other.sendall(noise(100_000))
            it.until(lambda: not pair.open, "the end")
            with pytest.raises(ConnectionError):
                for _ in range(2):
                    other.sendall(b"?")


@both_ends
def test_what_nobody_takes_any_more_is_let_go_at_once(by: str) -> None:
    """Though the pair waits for the other end still."""
    with spliced(4, window=WINDOW) as it:
        client, service, pair = it.open()
        one, other = sides(by, client, service)
        with one, other:
            fill(it, one)
            fill(it, other)
            back = pair.ways[by == "client"]
            assert back.pipe or back.kept
            reset(one)
            became_closed(pair, int(by == "service"))
            it.turn()
            assert pair.open
            assert (back.pipe, back.piped, bytes(back.kept)) == (None, 0, b"")


def test_a_target_that_is_reset_while_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event has said so, and what it had sent before is delivered still."""
    carry = Carrier.carry
    done: list[bool] = []

    def carry_late(self: Carrier, way: Any, deadline: float) -> Any:
        if not done:
            done.append(True)
            service.sendall(b"the last word")
            reset(service)
            became_closed(pair, 1)
        return carry(self, way, deadline)

    with spliced() as it:
        client, service, pair = it.open()
        with client:
            monkeypatch.setattr(Carrier, "carry", carry_late)
            client.sendall(b"?")
            assert it.received(client, 13) == b"the last word"
            assert not it.ended(client)
            assert not pair.open


def test_both_ends_are_reset_at_once() -> None:
    with spliced() as it:
        client, service, pair = it.open()
        client.sendall(noise(5000))
        service.sendall(noise(5000))
        reset(client)
        reset(service)
        for index in (0, 1):
            became_closed(pair, index)
        it.until(lambda: not pair.open, "the end")


@both_ends
def test_urgent_data_stays_in_line(by: str) -> None:
    with spliced() as it:
        client, service, _ = it.open()
        one, other = sides(by, client, service)
        with one, other:
            for size in (0, 5, 200_000):
                one.send(b"!", socket.MSG_OOB)
                one.sendall(b"x" * (size // 2))
                one.send(b"?", socket.MSG_OOB)
                assert it.received(other, size // 2 + 2) == b"!" + b"x" * (size // 2) + b"?"
            one.sendall(b"last")
            one.send(b"!", socket.MSG_OOB)
            one.close()
            assert it.received(other, 5) == b"last!"
            assert it.ended(other)


def test_pairs_take_turns_when_the_time_is_over() -> None:
    with spliced() as it, ExitStack() as stack:
        services = []
        for _ in range(3):
            client, service, _ = it.open()
            stack.enter_context(client)
            services.append(stack.enter_context(service))
            client.sendall(noise(60_000))
        it.lap = STEP_SECONDS
        it.splice.wake()
        assert it.asked
        for service in services:
            assert it.received(service, 60_000) == noise(60_000)
        it.turn()
        assert not it.asked


def test_a_pair_that_meets_an_internal_error_is_reset_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    carry = Carrier.carry

    def fail(self: Carrier, way: Any, deadline: float) -> Any:
        if way in broken.ways:
            raise ZeroDivisionError
        return carry(self, way, deadline)

    with spliced() as it:
        client, service, broken = it.open()
        other, another, whole = it.open()
        monkeypatch.setattr(Carrier, "carry", fail)
        with client, service, other, another:
            client.sendall(b"?")
            other.sendall(b"?")
            assert it.received(another, 1) == b"?"
            it.until(lambda: not broken.open, "the end")
            assert is_reset(client) and is_reset(service)
            assert [type(error) for error in it.errors] == [ZeroDivisionError]
            assert list(it.splice.pairs) == [whole]
            it.errors.clear()


def test_the_end_resets_everybody_once() -> None:
    with spliced() as it:
        client, service, _ = it.open()
        with client, service, it.client() as late:
            it.accept()
            it.splice.close()
            it.splice.close()
            for sock in (client, service, late):
                assert is_reset(sock)


def test_a_socket_that_another_process_still_holds_disturbs_nobody() -> None:
    """As one that was just forked; the socket lives on there, and has events."""
    with spliced() as it:
        client, service, pair = it.open()
        with client, service, it.client() as other:
            numbers = [way.source.fileno() for way in pair.ways]
            held = [os.dup(number) for number in numbers]
            assert it.splice.let_go()
            second = it.accept()
            assert {way.source.fileno() for way in second.ways} == set(numbers)
            it.until(lambda: not second.connecting, "connected")
            reset(client)
            reset(service)
            it.turn()
            with it.served() as another:
                other.sendall(b"?")
                assert it.received(another, 1) == b"?"
            assert second.open and not second.broken
        for descriptor in held:
            os.close(descriptor)


def test_events_are_activity() -> None:
    with spliced() as it:
        client, service, pair = it.open()
        with client, service:
            it.time = 7.0
            it.turn()
            assert pair.heard == 0.0
            client.sendall(b"?")
            it.received(service, 1)
            assert pair.heard == 7.0
            assert taken(client) == b""
