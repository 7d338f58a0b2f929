"""Captures, expectations and recording on open namespaces and links, from every kind of program. Takes 10 seconds."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest

import gpasst
from gpasst.capture.history import FRAMES_LIMIT
from tests.support import machines
from tests.support.captures import dissected, packets, records
from tests.support.families import FAMILY
from tests.support.lab import FAR, FAR4, HOST, HOST4, Remote, bound
from tests.support.machines import Machine
from tests.support.streams import MEBI, carried, connected, noise

pytestmark = pytest.mark.usefixtures("tun", "remote")

both_links = pytest.mark.parametrize("make", [machines.tap, machines.stream], ids=["tap", "stream"])
LATE = 0.05  # seconds after which something happens that is waited for
MOMENT = 0.05  # seconds that are waited for what does not come
PATIENCE = 5.0


@contextmanager
def talking(machine: Machine, remote: Remote, family: int = 4) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """A socket of the guest's that is connected to one of the remote machine's, and that one with its port."""
    with (
        bound(remote.socket(FAMILY[family]), FAR[family]) as far,
        machine.socket(family, socket.SOCK_DGRAM) as guest,
    ):
        guest.connect(far.getsockname()[:2])
        yield guest, far, far.getsockname()[1]


def answered(guest: socket.socket, far: socket.socket, question: bytes, answer: bytes) -> None:
    guest.send(question)
    data, sender = far.recvfrom(999)
    assert data == question
    far.sendto(answer, sender)
    assert guest.recv(999) == answer


def carried_over(guest: socket.socket, far: socket.socket, data: bytes) -> None:
    """Send a datagram that nobody answers, and wait until it has arrived."""
    guest.send(data)
    while far.recv(999) != data:
        pass


@both_links
def test_a_capture_has_parsed_frames_as_they_come(make: Any, remote: Remote, family: int) -> None:
    with make() as machine, talking(machine, remote, family) as (guest, far, port):
        answered(guest, far, b"before", b"before")
        with machine.net.capture() as capture:
            answered(guest, far, b"question", b"answer")
            question, answer = [frame for frame in capture.udp if port in (frame.sport, frame.dport)]
            assert (question.to, question.dst, question.dport) == ("host", FAR[family], port)
            assert (answer.to, answer.src, answer.payload) == ("guest", FAR[family], b"answer")
            assert question.udp is not None and question.udp.length == 8 + len(b"question")
            assert question.ip is not None and question.ip.version == family
            assert 0 <= answer.time_ns - question.time_ns < PATIENCE * 1e9
            answered(guest, far, b"more", b"answer")
            assert 4 <= len(list(capture)) <= len(capture)
            text = str(capture)
        answered(guest, far, b"behind", b"behind")
        payloads = [frame.payload for frame in capture.udp if frame.dport == port]
    assert payloads == [b"question", b"more"]
    assert "b'question'" in text and "b'before'" not in text
    assert [frame.payload for frame in capture.udp if frame.dport == port] == payloads, "also when all is closed"


@both_links
def test_superframes_are_captured_as_segments(make: Any, remote: Remote, family: int) -> None:
    with make(mtu=1500) as machine, connected(machine, remote, family) as (guest, far):
        port = far.getsockname()[1]
        with machine.net.capture(filter=f"tcp dport {port}") as down, machine.net.capture(filter="to guest tcp") as up:
            for ends in ((guest, far), (far, guest)):
                assert carried(*ends, noise(MEBI))
        for capture in (down, up):
            sizes = [len(frame.payload) for frame in capture]
            assert sum(sizes) >= MEBI
            assert max(sizes) <= 1460
        assert {frame.dport for frame in down} == {port}
        assert {frame.sport for frame in up} == {port}
        assert down.udp == up.udp == down.icmp == []
        assert len(down.tcp) == len(down)


def test_filters_are_texts_or_functions(remote: Remote) -> None:
    with machines.tap() as machine, talking(machine, remote) as (guest, far, port):
        net = machine.net
        given: Any
        with (
            net.capture(filter=f"to guest udp sport {port}") as answers,
            net.capture(filter=lambda frame: frame.payload == b"question") as questions,
            net.capture(filter=lambda frame: 1 // len(frame.fate)) as broken,
        ):
            answered(guest, far, b"question", b"answer")
            answered(guest, far, b"more", b"answer")
            assert [frame.payload for frame in answers] == [b"answer"] * 2
            assert [frame.dport for frame in questions] == [port]
            with pytest.raises(ZeroDivisionError):
                list(broken)
        for given in ("udp dport 70000", 7):
            with pytest.raises(gpasst.ConfigurationError, match=f"^filter {given}"):
                net.capture(filter=given)
        with pytest.raises(gpasst.ConfigurationError, match=r"write filter='udp dport 53', or \./udp dport 53"):
            net.capture("udp dport 53")


def test_waiting_for_a_frame(remote: Remote) -> None:
    with machines.tap() as machine, talking(machine, remote) as (guest, far, port):
        with machine.net.capture(filter="udp") as capture:
            guest.send(b"early")
            assert capture.wait_for(lambda frame: frame.payload == b"early", PATIENCE).dport == port
            timer = threading.Timer(LATE, lambda: guest.send(b"late"))
            timer.start()
            assert capture.wait_for(lambda frame: frame.payload == b"late", PATIENCE).dport == port
            timer.join()
            with pytest.raises(AssertionError, match=rf"within {MOMENT} s; what was:\n(?s:.*)b'early'(?s:.*)b'late'"):
                capture.wait_for(lambda frame: frame.payload == b"never", MOMENT)
        began = time.monotonic()
        with pytest.raises(AssertionError):
            capture.wait_for(lambda frame: False, 60)
        assert time.monotonic() - began < PATIENCE, "nothing more comes to a closed one"
        del far


@pytest.mark.parametrize("name", ["guest.pcap", "guest.pcapng"])
def test_a_file_is_written_from_now_on(name: str, remote: Remote, tmp_path: Path) -> None:
    path = tmp_path / name
    with machines.tap() as machine, talking(machine, remote) as (guest, far, port):
        answered(guest, far, b"before", b"before")
        with machine.net.capture(path, f"udp dport {port}") as capture:
            assert capture.path == str(path)
            answered(guest, far, b"question", b"answer")
        answered(guest, far, b"behind", b"behind")
        if name.endswith("ng"):
            assert [(p.interface, p.direction) for p in packets(path)] == [(machine.interface, 2)]
        else:
            assert len(records(path)) == 1
        assert len(dissected(path, "-Y", f"udp.dstport == {port}")) == 1
        with pytest.raises(gpasst.PlatformError, match=r"^capture /nosuch/file: No such file or directory"):
            machine.net.capture("/nosuch/file")


def test_a_capture_that_is_left_open_ends_with_its_namespace(tmp_path: Path) -> None:
    path = tmp_path / "guest.pcapng"
    with gpasst.Pasta(config_net=True) as net, net.socket() as guest:
        capture = net.capture(str(path), "udp dport 9")
        guest.sendto(b"x", (net.gateway4, 9))
        capture.wait_for(lambda frame: True, PATIENCE)
    assert len(capture) == len(packets(path)) == 1
    capture.close()
    with pytest.raises(gpasst.ConfigurationError, match="is not open"):
        net.capture()


@both_links
def test_an_expectation_looks_back_and_then_waits(make: Any, remote: Remote, family: int) -> None:
    with make(record=True) as machine, talking(machine, remote, family) as (guest, far, port):
        net = machine.net
        answered(guest, far, b"question", b"answer")
        frame = net.expect("udp", dst=FAR[family], dport=port, payload=b"question", timeout=PATIENCE)
        assert (frame.to, frame.sport) == ("host", guest.getsockname()[1])
        assert net.expect(src=FAR[family], sport=port, to="guest", timeout=0).payload == b"answer"
        timer = threading.Timer(LATE, lambda: [guest.send(b"late %d" % number) for number in range(3)])
        timer.start()
        frame = net.expect("udp", dport=port, count=4, timeout=PATIENCE)
        assert frame.payload == b"late 2"
        timer.join()
        assert net.count("udp", dport=port) == 4
        assert net.count("udp", dport=port, payload=b"question") == 1
        assert net.count("udp", dport=port, when=lambda frame: frame.payload.startswith(b"late")) == 3


def test_an_expectation_that_fails_shows_what_crossed(remote: Remote) -> None:
    with machines.tap(record=True) as machine, talking(machine, remote) as (guest, far, port):
        answered(guest, far, b"question", b"answer")
        with pytest.raises(AssertionError) as caught:
            machine.net.expect("udp", dport=port, payload=b"other", timeout=MOMENT)
        first, second, *rows = str(caught.value).splitlines()
        assert first == f"expected 1 x udp dport {port} payload b'other', found 0 within {MOMENT} s; what crossed:"
        assert second.split() == ["seconds", "to", "protocol", "source", "destination", "bytes", "what", "fate"]
        assert any(f"{FAR4}:{port}" in row and row.endswith("b'question'") for row in rows)
        with pytest.raises(AssertionError, match="expected 3 x udp, found 2 within"):
            machine.net.expect("udp", count=3, timeout=MOMENT)
        with pytest.raises(gpasst.ConfigurationError, match="port is no part of an expectation"):
            machine.net.expect("udp", port=53)


def test_what_a_predicate_raises_is_raised(remote: Remote) -> None:
    def broken(frame: gpasst.Frame) -> bool:
        raise ValueError(frame.protocol)

    with machines.tap(record=True) as machine, talking(machine, remote) as (guest, far, port):
        net = machine.net
        answered(guest, far, b"question", b"answer")
        with pytest.raises(ValueError, match="udp"):
            net.expect("udp", dport=port, when=broken, timeout=MOMENT)
        with pytest.raises(ValueError, match="udp"):
            net.count("udp", dport=port, when=broken)
        with pytest.raises(ValueError, match="udp"), net.never("udp", dport=port, when=broken):
            guest.send(b"meant for somebody else")


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_how_many_frames_can_be_expected(remote: Remote, count: Any) -> None:
    with machines.tap(record=True) as machine:
        with pytest.raises(gpasst.ConfigurationError, match=f"^count {count}: cannot be expected; give 1 or more"):
            machine.net.expect("udp", count=count)


@pytest.mark.parametrize("timeout", [float("nan"), None])
def test_what_is_no_time_is_not_waited_for(timeout: Any) -> None:
    with gpasst.Pasta(config_net=True, record=True) as net, net.capture() as capture:
        for call in (
            lambda: net.expect("udp", timeout=timeout),
            lambda: capture.wait_for(lambda frame: False, timeout),
            lambda: net.wait_bound("tcp", 80, timeout),
        ):
            with pytest.raises(gpasst.ConfigurationError, match=f"^timeout {timeout}: is no number of seconds"):
                call()


@both_links
def test_never(make: Any, remote: Remote) -> None:
    with make() as machine, talking(machine, remote) as (guest, far, port):
        carried_over(guest, far, b"before")
        with machine.net.never("udp", dport=port + 1), machine.net.never("tcp"):
            carried_over(guest, far, b"meant for somebody else")
        never = machine.net.never("udp", dst=FAR4)
        for _ in range(2):
            with pytest.raises(AssertionError, match=rf"^expected never udp dst {FAR4}, but:\n(?s:.*)b'forbidden'"):
                with never:
                    carried_over(guest, far, b"forbidden")
        with pytest.raises(ValueError, match="the test's own"):
            with machine.net.never("udp"):
                carried_over(guest, far, b"forbidden")
                raise ValueError("the test's own")


def test_what_is_not_recorded_cannot_be_asked_for(tmp_path: Path) -> None:
    with gpasst.Pasta(config_net=True) as net:
        calls: list[Callable[[], object]] = [
            lambda: net.expect("udp"),
            lambda: net.count("udp"),
            lambda: net.save(str(tmp_path / "guest.pcapng")),
        ]
        for call in calls:
            with pytest.raises(
                gpasst.ConfigurationError, match=r"^what crosses is not recorded; open it with record=True$"
            ):
                call()
    with gpasst.Pasta(splice_only=True, record=True) as net:
        assert net.count() == 0
        calls = [lambda: net.expect("udp"), lambda: net.capture(), lambda: net.never("udp")]
        for call in calls:
            with pytest.raises(
                gpasst.ConfigurationError, match=r"^nothing crosses a link here; leave --splice-only out$"
            ):
                call()


def test_what_was_recorded_is_saved_at_any_time(remote: Remote, tmp_path: Path) -> None:
    path, later = tmp_path / "guest.pcapng", tmp_path / "later.pcap"
    with machines.tap(record=True) as machine, talking(machine, remote) as (guest, far, port):
        answered(guest, far, b"question", b"answer")
        machine.net.save(str(path))
        name = machine.interface
        with pytest.raises(gpasst.PlatformError, match=r"^capture /dev/full: No space left on device"):
            machine.net.save("/dev/full")
    machine.net.save(str(later))
    assert len(dissected(path, "-Y", f"udp.port == {port}")) == 2
    assert len(dissected(later, "-Y", f"udp.port == {port}")) == 2
    assert {packet.interface for packet in packets(path)} == {name}
    assert machine.net.count("udp", dport=port) == 1


def test_memory_is_bounded(remote: Remote) -> None:
    with machines.tap(record=True, udp_ports="none") as machine, talking(machine, remote) as (guest, _, port):
        with machine.net.capture(filter="udp") as capture:
            total = FRAMES_LIMIT + 500
            for number in range(total):
                guest.send(number.to_bytes(4, "big"))
                if number % 100 == 99:
                    # The guest does not outrun the proxy.
                    machine.net.statistics()
            last = (total - 1).to_bytes(4, "big")
            capture.wait_for(lambda frame: frame.payload == last, PATIENCE)
            assert len(capture) == FRAMES_LIMIT
            assert len(capture) + capture.forgotten == total
            assert "frames before)" in str(capture)
        assert machine.net.count() <= FRAMES_LIMIT
        assert machine.net.expect("udp", dport=port, payload=last).payload == last


# Every kind of program: gevent's greenlets, with and without patches, and threads of asyncio.
PATCHED = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, socket, gpasst

def later():
    gevent.sleep(0.05)
    guest.send(b"late")

with gpasst.Pasta(config_net=True, record=True) as net, net.socket() as guest:
    guest.connect((net.gateway4, 9))
    with net.capture(filter="udp") as capture, net.never("tcp"):
        job = gevent.spawn(later)
        assert net.expect("udp", dport=9, payload=b"late", timeout=5).to == "host"
        assert capture.wait_for(lambda frame: frame.payload == b"late", 5)
        job.join()
    assert net.count("udp", dport=9) == len(capture) == 1
print("whole")
"""


def test_from_a_patched_program() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", PATCHED], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("whole\n", 0), done.stderr


def test_from_greenlets_of_the_callers_hub() -> None:
    def work() -> int:
        with gpasst.Pasta(config_net=True, record=True) as net, net.socket() as guest:
            guest.connect((net.gateway4, 9))
            jobs = [gevent.spawn(net.expect, "udp", dport=9, payload=b"late", timeout=PATIENCE) for _ in range(3)]
            gevent.sleep(LATE)
            guest.send(b"late")
            return sum(job.get(timeout=PATIENCE).payload == b"late" for job in jobs)

    assert gevent.spawn(work).get(timeout=30) == 3


def test_from_a_thread_beside_the_callers_hub() -> None:
    def work() -> list[Any]:
        with gpasst.Pasta(config_net=True, record=True) as net, net.socket() as guest:
            guest.connect((net.gateway4, 9))
            guest.send(b"early")
            ask = partial(net.expect, "udp", dport=9, payload=b"early", timeout=PATIENCE)
            return [gevent.get_hub().threadpool.apply(ask), net.count("udp", dport=9)]

    frame, count = gevent.spawn(work).get(timeout=30)
    assert (frame.payload, count) == (b"early", 1)


def test_from_threads_of_asyncio() -> None:
    async def main() -> None:
        async with gpasst.Pasta(config_net=True, record=True) as net:
            with net.socket() as guest:
                guest.connect((net.gateway4, 9))
                waiting = asyncio.ensure_future(
                    asyncio.to_thread(net.expect, "udp", dport=9, payload=b"late", timeout=PATIENCE)
                )
                await asyncio.sleep(LATE)
                guest.send(b"late")
                assert (await waiting).to == "host"
                assert await asyncio.to_thread(net.count, "udp", dport=9) == 1

    asyncio.run(main())


def test_nothing_is_left_of_captures() -> None:
    with gpasst.Pasta(config_net=True) as net:
        for _ in range(3):
            with net.capture(), net.never("tcp", dst=HOST4):
                pass
        gc.collect()
        proxy = net._proxy  # noqa: SLF001
        assert proxy is not None and proxy.link is not None
        assert proxy.link.recorder is None, "nobody records any more"


@both_links
def test_weather_is_seen(make: Any, remote: Remote, family: int) -> None:
    """A frame that is lost has its fate, once, and does not count if it was for the guest."""
    with make(record=True) as machine, talking(machine, remote, family) as (guest, far, port):
        net = machine.net
        carried_over(guest, far, b"first")
        sender = (HOST[family], guest.getsockname()[1])
        with net.capture(filter="udp") as capture:
            with net.impair(loss=1, to="host", dport=port):
                guest.send(b"lost down")
                down = capture.wait_for(lambda frame: frame.payload == b"lost down", PATIENCE)
            with net.impair(loss=1, to="guest", sport=port):
                far.sendto(b"lost up", sender)
                up = capture.wait_for(lambda frame: frame.payload == b"lost up", PATIENCE)
            answered(guest, far, b"question", b"answer")
            assert [(frame.to, bool(frame.fate)) for frame in (down, up)] == [("host", True), ("guest", True)]
            assert [frame.fate for frame in capture if frame.payload in (b"question", b"answer")] == ["", ""]
            assert "lost" in str(capture)
        assert net.count("udp", payload=b"lost down") == 1
        assert net.count("udp", payload=b"lost up") == 0
        assert [frame.payload for frame in capture].count(b"lost up") == 1
