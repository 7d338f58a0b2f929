"""The port of a virtual machine in a network, which a test takes the machine's place at. Takes 2 seconds."""

from __future__ import annotations

import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpasst
from gpasst.testing import assert_flat
from tests.support.hosts import DEADLINE, await_loss
from tests.support.scripted import Datagram, parse_udp, udp_packets

pytestmark = pytest.mark.usefixtures("tun", "remote")

PORT = 7
ARP = bytes.fromhex("0806 0001 0800 06 04")


@pytest.fixture(scope="module")
def lan() -> Iterator[gpasst.Network]:
    with gpasst.Network("lan", mtu=1500) as lan:
        lan.host("a")
        yield lan


class Machine:
    """What qemu is: one end of a stream of frames, with an address."""

    def __init__(self, port: gpasst.Guest) -> None:
        self.port = port
        self.mac = bytes.fromhex(port.mac.replace(":", ""))
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(port.path)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))

    def receive(self) -> bytes:
        size = int.from_bytes(self.socket.recv(4, socket.MSG_WAITALL), "big")
        return self.socket.recv(size, socket.MSG_WAITALL)

    def resolve(self, address: str) -> bytes:
        """Ask for the MAC address of a host."""
        own, wanted = socket.inet_aton(self.port.ip4), socket.inet_aton(address)
        self.send(b"\xff" * 6 + self.mac + ARP + b"\0\x01" + self.mac + own + bytes(6) + wanted)
        while (answer := self.receive())[12:22] != ARP + b"\0\x02":
            pass
        return answer[22:28]

    def datagram(self) -> Datagram:
        """Receive up to a datagram."""
        while (found := parse_udp(self.receive())) is None:
            pass
        return found


def test_a_machine_is_a_host_among_others(lan: gpasst.Network) -> None:
    a = lan["a"]
    with lan.guest("vm") as port, Machine(port) as machine, a.socket() as sock:
        port.wait(DEADLINE)
        sock.settimeout(DEADLINE)
        sock.bind((a.ip4, PORT))
        mac = machine.resolve(a.ip4)
        for frame in udp_packets(port.ip4, PORT, a.ip4, PORT, b"x" * 1400):
            machine.send(mac + machine.mac + frame)
        data, sender = sock.recvfrom(2000)
        assert (data, sender) == (b"x" * 1400, (port.ip4, PORT))
        sock.sendto(b"y" * 1472, sender)
        assert machine.datagram() == Datagram(b"y" * 1472, (a.ip4, PORT), PORT)


def test_hosts_find_it_by_its_name(lan: gpasst.Network) -> None:
    with lan.guest("vm") as port:
        found = lan["a"].run(["cat", "/etc/hosts"], capture_output=True, text=True, check=True).stdout
        assert {tuple(line.split()) for line in found.splitlines()} >= {(port.ip4, "vm"), (port.ip6, "vm")}
    found = lan["a"].run(["cat", "/etc/hosts"], capture_output=True, text=True, check=True).stdout
    assert "vm" not in found


def test_superframes_are_cut_for_it(lan: gpasst.Network) -> None:
    """Of UDP here, whose segments the kernel sends as one where it may."""
    a = lan["a"]
    with lan.guest("vm") as port, Machine(port) as machine, a.socket() as sock:
        port.wait(DEADLINE)
        mac = machine.resolve(a.ip4)
        # The host's kernel learns where the machine is from what comes first.
        sock.settimeout(DEADLINE)
        sock.bind((a.ip4, PORT))
        for frame in udp_packets(port.ip4, PORT, a.ip4, PORT, b""):
            machine.send(mac + machine.mac + frame)
        sock.recv(1)
        sock.setsockopt(17, 103, 1000)  # UDP_SEGMENT
        sock.sendto(b"z" * 9500, (port.ip4, PORT))
        payloads = [machine.datagram().payload for _ in range(10)]
    assert [len(payload) for payload in payloads] == [1000] * 9 + [500]


def test_weather_captures_and_partitions_take_it_for_a_host(lan: gpasst.Network) -> None:
    a = lan["a"]
    with lan.guest("vm") as port, Machine(port) as machine, a.socket() as sock, lan.capture(filter="udp") as capture:
        port.wait(DEADLINE)
        sock.settimeout(DEADLINE)
        sock.bind((a.ip4, PORT))
        mac = machine.resolve(a.ip4)

        def say(payload: bytes) -> None:
            for frame in udp_packets(port.ip4, PORT, a.ip4, PORT, payload):
                machine.send(mac + machine.mac + frame)

        with lan.link(port).impair(loss=1.0, to="host"):
            say(b"one")
            await_loss(capture, b"one")
        with lan.between("vm", a).impair(loss=1.0):
            say(b"two")
            await_loss(capture, b"two")
        with lan.partition([port], [a]):
            say(b"three")
            await_loss(capture, b"three")
        say(b"four")
        data, sender = sock.recvfrom(100)
        assert data == b"four"
        sock.sendto(b"five", sender)
        assert machine.datagram().payload == b"five"
    assert [(frame.link, frame.payload, bool(frame.fate)) for frame in capture.frames] == [
        ("vm", b"one", True),
        ("vm", b"two", False),
        ("a", b"two", True),
        ("vm", b"three", False),
        ("a", b"three", True),
        ("vm", b"four", False),
        ("a", b"four", False),
        ("a", b"five", False),
        ("vm", b"five", False),
    ]


def test_one_machine_after_another(lan: gpasst.Network) -> None:
    with lan.guest("vm") as port:
        assert not port.connected
        for _ in range(2):
            with Machine(port) as machine:
                port.wait(DEADLINE)
                assert machine.resolve(lan["a"].ip4)
                with Machine(port) as second:
                    assert second.socket.recv(1) == b"", "one at a time"


def test_what_is_sent_to_a_machine_that_is_not_there_is_counted(lan: gpasst.Network) -> None:
    a = lan["a"]
    with lan.guest("vm"), a.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        before = lan.call(lambda parts: parts.counters.drops[gpasst.Drop.NO_GUEST])
        sock.sendto(b"", (lan.subnet4.replace(".0/24", ".255"), PORT))
        with lan.guest("second") as port, Machine(port) as machine:
            port.wait(DEADLINE)
            # Frames of one host stay in order.
            machine.resolve(a.ip4)
        assert lan.call(lambda parts: parts.counters.drops[gpasst.Drop.NO_GUEST]) > before


def test_options_of_qemu(lan: gpasst.Network, tmp_path: Path) -> None:
    path = tmp_path / "a,b"
    with lan.guest("vm", path) as port:
        device, netdev = port.qemu_options[1], port.qemu_options[3]
        assert device == f"virtio-net-pci,netdev=gpasst-vm,mac={port.mac}"
        assert netdev == f"stream,id=gpasst-vm,server=off,addr.type=unix,addr.path={tmp_path}/a,,b"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    with gpasst.Network("big", mtu=9000) as big:
        assert big.guest("vm").qemu_options[1].endswith(",host_mtu=9000")


def test_a_path_of_its_own_is_for_its_owner_alone(lan: gpasst.Network) -> None:
    with lan.guest("vm") as port:
        assert stat.S_IMODE(Path(port.path).parent.stat().st_mode) == 0o700
    assert not Path(port.path).parent.exists()


def test_what_makes_no_sense_is_refused(lan: gpasst.Network, tmp_path: Path) -> None:
    closed = lan.guest("closed")
    closed.close()
    closed.close()
    for make, text in (
        (lambda: lan.guest("a"), "the name a is taken in network lan"),
        (lambda: lan.guest("vm", "x" * 200), f"path {'x' * 200} is longer"),
        (lambda: lan.guest("vm", str(tmp_path)), f"path {tmp_path} exists and is no socket"),
        (lambda: closed.wait(), "guest closed is not open"),
    ):
        with pytest.raises(gpasst.ConfigurationError, match=re.escape(text)):
            make()
    with lan.guest("vm") as port, pytest.raises(gpasst.PlatformError, match="guest vm: nobody connects to"):
        port.wait(0.01)


def test_all_is_returned(lan: gpasst.Network) -> None:
    def once() -> None:
        with lan.guest("vm") as port, Machine(port):
            port.wait(DEADLINE)

    assert_flat(once, repeats=10)
