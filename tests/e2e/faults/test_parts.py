"""What remains when a part of gpasst, or something around it, goes away: the rows of docs/faults.md."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import gpasst
from gpasst.api import connection
from gpasst.counters import Drop
from tests.support import machines
from tests.support.fault_pages import table
from tests.support.guests import scan
from tests.support.lab import FAR, HOST, Remote, bound
from tests.support.ready import stopped, until
from tests.support.streams import accepted, carried, listening, noise, patient

pytestmark = pytest.mark.usefixtures("tun", "remote")

PORT = 5000
Event = Callable[[Remote, pytest.MonkeyPatch, Path], None]


@contextmanager
def flows(net: Any, remote: Remote) -> Iterator[Callable[[], bool]]:
    """A connection and a flow of datagrams; yields what tries both and returns whether they go on."""
    with ExitStack() as stack:
        far = stack.enter_context(bound(remote.socket(), FAR[4]))
        guest = stack.enter_context(bound(net.socket(), "0.0.0.0"))
        streams = remote.socket(socket.AF_INET, socket.SOCK_STREAM)
        server, address = stack.enter_context(listening(streams, FAR[4]))
        client = stack.enter_context(patient(net.socket(socket.AF_INET, socket.SOCK_STREAM)))
        client.connect(address)
        other = stack.enter_context(accepted(server))

        def tried() -> bool:
            guest.sendto(b"question", far.getsockname())
            question, sender = far.recvfrom(100)
            far.sendto(b"answer", sender)
            answered = (question, guest.recv(100)) == (b"question", b"answer")
            return answered and carried(client, other, noise(50_000)) and carried(other, client, noise(50_000))

        assert tried()
        yield tried


def killed(pid: int) -> None:
    """Kill a process, and return when it has ended."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), f"the end of process {pid}")


def gone(pid: int) -> bool:
    """Whether a process has ended, maybe unknown to its parent."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True


def the_helper_is_killed(remote: Remote, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with gpasst.Pasta(config_net=True) as net, flows(net, remote) as go_on:
        runtime = net._runtime  # noqa: SLF001
        assert runtime is not None
        killed(runtime.helper().pid)
        assert go_on()
        with gpasst.Pasta(config_net=True) as another, flows(another, remote) as others_go_on:
            assert others_go_on()
            assert go_on()


def the_keeper_is_killed(remote: Remote, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with gpasst.Pasta(config_net=True, udp_ports=f"{PORT}") as net, flows(net, remote) as go_on:
        killed(net._namespace.pid)  # type: ignore[union-attr]  # noqa: SLF001
        assert go_on()
        scan(net)
        with pytest.raises(gpasst.GpasstError, match="the process that holds the namespace ended"):
            net.socket()
        assert net.run(["true"]).returncode == 0
        with gpasst.Pasta(config_net=True) as another, flows(another, remote) as others_go_on:
            assert others_go_on()


def the_tap_is_deleted(remote: Remote, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with gpasst.Pasta(config_net=True) as net, gpasst.Pasta(config_net=True) as other, flows(other, remote) as go_on:
        net.run(["ip", "link", "delete", net.interface], check=True)
        assert net.wait(10)
        assert go_on()
        assert Drop.INTERNAL.value not in net.statistics().drops


def the_tap_is_down(remote: Remote, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with gpasst.Pasta(config_net=True, udp_ports=f"{PORT}") as net, flows(net, remote) as go_on:
        net.run(["ip", "link", "set", net.interface, "down"], check=True)
        with bound(remote.socket(), FAR[4]) as far:
            far.sendto(b"?", (HOST[4], PORT))
            until(lambda: net.statistics().drops.get(Drop.TAP_FAILED.value), "counted")
        net.run(["ip", "link", "set", net.interface, "up"], check=True)
        net.run(["ip", "route", "add", "default", "via", net.gateway4], check=True)
        assert go_on()


def the_guest_is_stopped(remote: Remote, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with machines.stream(udp_ports=f"{PORT}") as machine, bound(remote.socket(), FAR[4]) as far:
        with bound(machine.socket(4, socket.SOCK_DGRAM), "0.0.0.0", PORT) as guest:
            with stopped(machine._program.pid):  # noqa: SLF001
                while not machine.net.statistics().drops.get(Drop.STREAM_FULL.value):
                    for _ in range(20):
                        far.sendto(bytes(50_000), (HOST[4], PORT))
            until(lambda: asked(far, guest), "it reads again")
        assert Drop.INTERNAL.value not in machine.net.statistics().drops


def asked(far: socket.socket, guest: socket.socket) -> bool:
    """Whether a question arrives, behind what has waited."""
    far.sendto(b"question", (HOST[4], PORT))
    guest.settimeout(0.1)
    try:
        while guest.recv(1 << 16) != b"question":
            pass
    except TimeoutError:
        return False
    return True


def the_guest_is_killed(remote: Remote, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with machines.stream() as machine:
        program = machine._program  # noqa: SLF001
        program.kill()
        program.wait(10)
        machine._control.close()  # noqa: SLF001
        machine.plug()
        with flows(Sockets(machine), remote) as go_on:
            assert go_on()


class Sockets:
    """A machine's sockets, asked for as those of a namespace."""

    def __init__(self, machine: machines.Stream) -> None:
        self._machine = machine

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        return self._machine.socket(4, kind)


def the_resolver_file_is_gone(remote: Remote, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(connection, "RESOLVER_FILE", str(folder / "nosuch"))
    with gpasst.Pasta(config_net=True) as net, flows(net, remote) as go_on:
        assert go_on()


def the_clock_jumps(remote: Remote, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    with gpasst.Pasta(config_net=True, pcap=str(folder / "frames.pcap")) as net, flows(net, remote) as go_on:
        now, before = time.time(), net.statistics()
        for jump in (-400 * 86400, 400 * 86400, -now):
            monkeypatch.setattr(time, "time", lambda at=now + jump: at)
            scan(net)
            assert go_on()
        after = net.statistics()
        assert (after.mappings, after.expired, after.drops) == (before.mappings, 0, before.drops)


EVENTS: dict[str, Event] = {
    "the helper is killed": the_helper_is_killed,
    "the process that keeps the namespace is killed": the_keeper_is_killed,
    "the tap is deleted": the_tap_is_deleted,
    "the tap is down": the_tap_is_down,
    "the process of a virtual machine is stopped": the_guest_is_stopped,
    "the process of a virtual machine is killed": the_guest_is_killed,
    "the host's /etc/resolv.conf is gone": the_resolver_file_is_gone,
    "the host's clock jumps": the_clock_jumps,
}


@pytest.mark.parametrize("event", [row[0] for row in table("Parts and surroundings") if row[2] == "here"])
def test_what_remains(event: str, remote: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    EVENTS[event](remote, monkeypatch, tmp_path)


def test_every_other_row_names_its_test() -> None:
    assert EVENTS.keys() == {row[0] for row in table("Parts and surroundings") if row[2] == "here"}
    tests = Path(__file__).parents[2]
    for _, _, where in table("Parts and surroundings"):
        if where != "here":
            file, _, name = where.partition("::")
            assert f"def {name}(" in (tests / file).read_text(encoding="utf-8")
