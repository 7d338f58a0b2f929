"""Many namespaces of one process: apart from each other, and unharmed by the failures and ends of others."""

from __future__ import annotations

import _thread
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpasst.errors import ConfigurationError, PlatformError
from gpasst.helper import pool, tap
from gpasst.helper.client import Helper, Namespace, OpenRequest
from tests.support.namespaces import BARE, CONFIGURED, NOBODY, PATIENCE, assert_ends, facts_inside, inode, inside
from tests.support.ready import until

PAGE = os.sysconf("SC_PAGESIZE") // 1024  # KiB
SMALL = range(1, 20 * 1024)  # KiB; an interpreter with little besides
GROWTH = 2048  # KiB that the allocator and the collector may still settle by after a warm-up
ARP = b"\x08\x06"


@pytest.fixture(name="own")
def _own() -> Iterator[Helper]:
    """A helper process of the test's own."""
    with Helper.start() as started:
        yield started


def small(pid: int) -> bool:
    """Return whether a process executes the small program."""
    return pool.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def resident(pid: int) -> int:
    """Return the resident memory of a process, in KiB; 0 while it executes another program."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE


def held(pid: int) -> tuple[int, int]:
    """Return how many descriptors and threads a process has."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def keeps(count: int, taps: int) -> tuple[int, int]:
    """Return what `held` is of a process that keeps `count` namespaces, and has nothing left of others."""
    standard, requests, pipe = 3, 1, 2
    return standard + requests + pipe + count + taps, 1 + count


def taps(pid: int) -> int:
    """Return how many taps a process holds."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(f"/proc/{pid}/fd/{name}") == tap.TUN_DEVICE
    return count


def udp(namespace: Namespace) -> socket.socket:
    (descriptor,) = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    sock = socket.socket(fileno=descriptor)
    sock.settimeout(PATIENCE)
    return sock


def exchange(sock: socket.socket) -> None:
    """Let a bound socket receive what it sends."""
    sock.sendto(b"x", sock.getsockname())
    assert sock.recv(9) == b"x"


def bound(namespace: Namespace) -> socket.socket:
    sock = udp(namespace)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_one_process_keeps_them_all(own: Helper) -> None:
    namespaces = [own.open(BARE) for _ in range(20)]
    assert len({namespace.pid for namespace in namespaces}) == 1
    assert own.pid != namespaces[0].pid
    assert len({inode(namespace.netns) for namespace in namespaces}) == 20
    assert len({inode(namespace.userns) for namespace in namespaces}) == 1
    assert len({inode(namespace.uts) for namespace in namespaces}) == 20
    for namespace in namespaces:
        namespace.close()


def test_namespaces_are_apart(own: Helper, tun: None) -> None:
    with own.open(CONFIGURED) as one, own.open(CONFIGURED) as other:
        assert one.name == other.name
        for namespace in (one, other):
            facts = facts_inside(namespace)
            assert [(link["name"], link["up"]) for link in facts["links"]] == [("lo", True), ("eth7", True)]
        # The same port of the same address; and what is sent in one leaves through its own tap.
        with udp(one) as first, udp(other) as second:
            first.bind(("10.1.2.3", 4000))
            second.bind(("10.1.2.3", 4000))
            exchange(first)
            exchange(second)
            second.sendto(b"?", ("10.1.2.99", 9))
            question = socket.inet_aton("10.1.2.99")
            while question not in (frame := next_frame(other)) or ARP not in frame:
                pass
            while select.select([one.tap], [], [], 0)[0]:
                assert question not in next_frame(one)


def next_frame(namespace: Namespace) -> bytes:
    assert select.select([namespace.tap], [], [], PATIENCE)[0]
    return os.read(namespace.tap, 65536)


def test_host_names_are_apart(own: Helper) -> None:
    outside = os.uname().nodename
    with own.open(BARE) as one, own.open(BARE) as other:
        assert inside(one, "hostname", "first").returncode == 0
        assert inside(one, "uname", "-n").stdout == "first\n"
        assert inside(other, "uname", "-n").stdout == f"pasta-{outside}\n"
    assert os.uname().nodename == outside


def test_a_host_name_may_be_given_and_is_cut_to_what_the_kernel_takes(own: Helper) -> None:
    for name, shown in (("guest", "guest"), ("x" * 65, "x" * 64)):
        with own.open(replace(BARE, hostname=name)) as namespace:
            assert inside(namespace, "uname", "-n").stdout == f"{shown}\n"


def test_a_failed_open_leaves_nothing_and_harms_nobody(own: Helper, tun: None) -> None:
    with own.open(CONFIGURED) as namespace, bound(namespace) as sock:
        for request in (
            OpenRequest(ifname="lo"),
            OpenRequest(configure=True, addresses=(("10.0.0.1", 33),)),
            OpenRequest(ifname="a/b"),
        ):
            with pytest.raises(ConfigurationError):
                own.open(request)
        until(lambda: held(namespace.pid) == keeps(1, 1), "everything of the failed ones gone")
        exchange(sock)
        bound(namespace).close()


def test_closing_one_harms_nobody(own: Helper, tun: None) -> None:
    with own.open(CONFIGURED) as stays, bound(stays) as sock:
        goes = own.open(CONFIGURED)
        with bound(goes) as left:
            goes.close()
            until(lambda: held(stays.pid) == keeps(1, 1), "everything of the closed one gone")
            # A socket keeps its namespace, but the tap of that is gone.
            exchange(left)
            with pytest.raises(OSError, match="unreachable"):
                left.connect(("10.1.2.99", 9))
        exchange(sock)
        bound(stays).close()
        assert {link["name"] for link in facts_inside(stays)["links"]} == {"lo", "eth7"}


def test_nothing_piles_up(own: Helper, tun: None) -> None:
    def turn(count: int) -> None:
        for _ in range(count):
            with own.open(CONFIGURED) as namespace:
                os.close(namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)[0])
            own.facts()

    with own.open(BARE) as stays:
        pids = (own.pid, stays.pid)
        empty = [(5, 1), keeps(1, 0)]
        turn(100)
        until(lambda: [held(pid) for pid in pids] == empty, "everything of the closed ones gone")
        memory = [resident(pid) for pid in pids]
        turn(200)
        until(lambda: [held(pid) for pid in pids] == empty, "everything of the closed ones gone")
        grown = [resident(pid) - at_first for pid, at_first in zip(pids, memory, strict=True)]
        assert max(grown) < GROWTH, grown


def test_an_open_that_nobody_awaits_leaves_nothing(own: Helper, tun: None) -> None:
    class GaveUp(Exception):
        pass

    def give_up(descriptor: int) -> None:
        raise GaveUp

    with own.open(BARE) as stays:
        os.kill(own.pid, signal.SIGSTOP)
        for _ in range(5):
            with pytest.raises(GaveUp):
                own.open(CONFIGURED, give_up)
        os.kill(own.pid, signal.SIGCONT)
        own.open(CONFIGURED).close()
        until(lambda: held(stays.pid) == keeps(1, 0), "everything of the others gone")


def test_threads_use_one_helper_at_once(own: Helper, tun: None) -> None:
    results: list[Any] = []

    def work() -> None:
        for _ in range(4):
            own.facts()
            with own.open(CONFIGURED) as namespace, bound(namespace) as sock:
                exchange(sock)
                results.append((namespace.pid, namespace.mac))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(results) == 24
    assert len(set(results)) == 1


def test_a_request_that_hangs_delays_no_other(own: Helper, tmp_path: Path) -> None:
    fifo = tmp_path / "namespace"
    os.mkfifo(fifo)
    outcome: list[Any] = []
    ended = threading.Event()

    def hang() -> None:
        try:
            own.open(OpenRequest(netns=str(fifo), tap=False))
        except ConfigurationError as error:
            outcome.append(str(error))
        ended.set()

    _thread.start_new_thread(hang, ())
    with own.open(BARE) as namespace:
        bound(namespace).close()
    assert own.facts()["links"]
    assert not ended.is_set()
    with fifo.open("wb"):  # returns when the other end is open
        assert ended.wait(PATIENCE)
    (message,) = outcome
    assert message.startswith(f"{fifo} is not a network namespace; ")


def test_a_killed_keeper_is_replaced(own: Helper, tun: None) -> None:
    with own.open(CONFIGURED) as namespace, bound(namespace) as sock, udp(namespace) as sender:
        pidfd = os.pidfd_open(namespace.pid)
        os.kill(namespace.pid, signal.SIGKILL)
        assert_ends(pidfd)
        exchange(sock)
        sender.sendto(b"?", ("10.1.2.99", 9))
        while socket.inet_aton("10.1.2.99") not in next_frame(namespace):
            pass
        with pytest.raises(PlatformError) as caught:
            udp(namespace)
        assert str(caught.value) == (
            "the process that holds the namespace ended unexpectedly; look for its last words on standard error"
        )
        assert inside(namespace, "true").returncode == 0
        with own.open(CONFIGURED) as another, bound(another) as fresh:
            assert another.pid != namespace.pid
            exchange(fresh)


def test_namespaces_outlive_a_killed_helper(own: Helper) -> None:
    with own.open(BARE) as one, own.open(BARE) as other:
        pidfd = os.pidfd_open(own.pid)
        os.kill(own.pid, signal.SIGKILL)
        assert_ends(pidfd)
        assert not own.alive
        for namespace in (one, other):
            with bound(namespace) as sock:
                exchange(sock)
        with pytest.raises(PlatformError, match="the helper process ended unexpectedly"):
            own.open(BARE)


def test_the_only_namespace_left_takes_little_memory() -> None:
    helper = Helper.start()
    with helper.open(BARE) as namespace, bound(namespace) as before:
        pid = namespace.pid
        assert not small(pid)
        helper.close()
        assert not helper.alive
        with bound(namespace) as after:
            exchange(before)
            exchange(after)
        until(lambda: small(pid), "the process small")
        assert resident(pid) in SMALL
        with bound(namespace) as late:
            exchange(late)
        pidfd = os.pidfd_open(pid)
    assert_ends(pidfd)


def test_the_tap_outlives_the_shrinking(tun: None) -> None:
    helper = Helper.start()
    with helper.open(CONFIGURED) as namespace:
        helper.close()
        until(lambda: small(namespace.pid), "the process small")
        assert taps(namespace.pid) == 1, "closing it must not block the caller"
        assert {link["name"] for link in facts_inside(namespace)["links"]} == {"lo", "eth7"}


def test_several_namespaces_stay_with_their_process() -> None:
    helper = Helper.start()
    with helper.open(BARE) as one:
        with helper.open(BARE) as other:
            helper.close()
            for namespace in (one, other):
                with bound(namespace) as sock:
                    exchange(sock)
        with bound(one) as sock:
            exchange(sock)
        pidfd = os.pidfd_open(one.pid)
    assert_ends(pidfd)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_other_identities_have_other_processes(own: Helper) -> None:
    without = OpenRequest(tap=False, netns_only=True)
    with own.open(BARE) as usual, own.open(without) as one, own.open(without) as other:
        assert one.pid == other.pid != usual.pid
        assert one.userns is None
        assert inode(one.netns) != inode(other.netns)
        with own.open(OpenRequest(tap=False, runas=(NOBODY, NOBODY))) as foreign:
            assert foreign.pid not in (usual.pid, one.pid, own.pid)
            assert os.stat(f"/proc/{foreign.pid}").st_uid == NOBODY
            for namespace in (usual, one, other, foreign):
                with bound(namespace) as sock:
                    exchange(sock)


USERS_NAMESPACES = """
import json, socket
from gpasst.helper.client import *
with Helper.start() as helper:
    request = OpenRequest(ifname="eth7", configure=True, addresses=(("10.1.2.3", 24),))
    namespaces = [helper.open(request) for _ in range(5)]
    socks = [socket.socket(fileno=namespace.sockets(2, 2)[0]) for namespace in namespaces]
    for sock in socks:
        sock.bind(("10.1.2.3", 53))
    names = [namespace.name for namespace in namespaces]
    pids = {namespace.pid for namespace in namespaces}
    for namespace in namespaces:
        namespace.close()
print(json.dumps([names, len(pids)]))
"""


def test_an_ordinary_users_namespaces(as_nobody: Callable[[str], Any], tun_mode: Callable[[int], None]) -> None:
    tun_mode(0o666)
    assert as_nobody(USERS_NAMESPACES) == [["eth7"] * 5, 1]
