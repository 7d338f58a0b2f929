"""The places of a benchmark: network namespaces, what connects them, and programs that load them.

Theory of operation: the process enters the network namespace of a host with an upstream interface. Each contender has a
guest namespace of its own, or a guest program on a UNIX socket. So that a machine's settings do not decide who wins,
all namespaces have the same congestion control (cubic where that may be chosen, reno elsewhere) and the kernel's
ordinary limits of receive buffers.

`PASTA` and `PASST` in the environment name the peer's binaries, and `GPASST` the checkout of another version of gpasst.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CLONE_NEWNET = 0x40000000
HOST, GATEWAY = "192.0.2.2", "192.0.2.1"
HOST6, GATEWAY6 = "2001:db8::2", "2001:db8::1"
VETH_HOST, VETH_GUEST = "198.51.100.1", "198.51.100.2"
VETH_HOST6, VETH_GUEST6 = "2001:db8:1::1", "2001:db8:1::2"
PORT_OUT, PORT_IN = 7001, 5001
TCP_PORTS = 4  # from PORT_IN and PORT_OUT on, one for each program of a load
LOOPBACK, PORT_SPLICED = "127.0.0.1", 7101
CONTENDERS = ("gpasst", "pasta", "veth", "plain")  # plain: gpasst moving one datagram at a time
BEFORE = "before"  # another version of gpasst, or the same one with other options
GPASST = os.path.abspath(os.environ["GPASST"]) if os.environ.get("GPASST") else ""
PASTA, PASST = os.environ.get("PASTA") or "pasta", os.environ.get("PASST") or "passt"
START_SECONDS = 10  # at most
LISTEN_SECONDS = 5  # at most
RECEIVE_BUFFER = "4096 131072 6291456"  # bytes; net.ipv4.tcp_rmem of an ordinary machine

libc = ctypes.CDLL(None, use_errno=True)


class Failed(SystemExit):
    """A contender or a load generator did not do its work."""


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def usable_congestion_control() -> str:
    """Return cubic if a socket in this network namespace may have it, else reno, which every socket may have."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        except OSError:
            return "reno"
    return "cubic"


class Lab:
    """The host's namespace, which this process enters, and those of guests.

    :param ipv6: whether the host has IPv6 as well.
    :ivar names: namespace of the host and of each contender.
    :ivar addresses: those of the host.
    :ivar congestion: the congestion control that programs in them may ask for.
    """

    def __init__(self, ipv6: bool = False) -> None:
        self.names = {name: f"gpasst-bench-{os.getpid()}-{name}" for name in ("host", *CONTENDERS, BEFORE)}
        self.addresses = [HOST]
        for name in self.names.values():
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        with open(f"/run/netns/{self.names['host']}", "rb") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        for device in ("up0", "up1"):
            run("ip", "link", "set", device, "up", "mtu", "65520")
        run("ip", "address", "add", f"{HOST}/24", "dev", "up0")
        run("ip", "route", "add", "default", "via", GATEWAY)
        run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", self.names["veth"])
        self.set_veth_mtu(65520)
        run("ip", "address", "add", f"{VETH_HOST}/24", "dev", "v0")
        run("ip", "-n", self.names["veth"], "address", "add", f"{VETH_GUEST}/24", "dev", "v1")
        if ipv6:
            self._add_ipv6()
        self.congestion = usable_congestion_control()
        settings = {"ip_local_port_range": "10000 65000", "tcp_rmem": RECEIVE_BUFFER}  # ports for 10000 sockets
        words = [f"net.ipv4.{name}={value}" for name, value in settings.items()]
        for name in self.names.values():
            run("ip", "netns", "exec", name, "sysctl", "-q", "-w", *words)
            # Where cubic may not be the default of a namespace it is left to programs that ask for it by name.
            for default in ("cubic", "reno"):
                setting = ("sysctl", "-q", "-w", f"net.ipv4.tcp_congestion_control={default}")
                if not subprocess.run(["ip", "netns", "exec", name, *setting], stderr=subprocess.DEVNULL).returncode:
                    break

    def _add_ipv6(self) -> None:
        self.addresses.append(HOST6)
        run("ip", "address", "add", f"{HOST6}/64", "dev", "up0", "nodad")
        run("ip", "route", "add", "default", "via", GATEWAY6, "dev", "up0")
        run("ip", "address", "add", f"{VETH_HOST6}/64", "dev", "v0", "nodad")
        run("ip", "-n", self.names["veth"], "address", "add", f"{VETH_GUEST6}/64", "dev", "v1", "nodad")

    def set_veth_mtu(self, mtu: int) -> None:
        """Set the MTU of the plain veth pair, in bytes."""
        run("ip", "link", "set", "v0", "up", "mtu", str(mtu))
        run("ip", "-n", self.names["veth"], "link", "set", "v1", "up", "mtu", str(mtu))

    def close(self) -> None:
        for name in self.names.values():
            run("ip", "netns", "del", name)


class Contender:
    """One way between the host and its guest namespace.

    :param name: one of `CONTENDERS`, or `BEFORE`.
    :param guest: whether it serves a program on a UNIX socket.
    :param tcp_mtu: 0: it forwards UDP, and its MTU is its own choice; else it forwards TCP, with that MTU in bytes.
    :param spliced: whether it forwards TCP between the two loopbacks, both ways, on ports that the kernel chose.
    :param options: more words for its command line.
    :raises Failed: if it does not start.
    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        guest: bool = False,
        tcp_mtu: int = 0,
        spliced: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._addresses = lab.addresses
        self.netns = lab.names[name]
        self.program: subprocess.Popen[bytes] | None = None
        self.extra: list[int] = []
        self.path = f"/tmp/gpasst-bench-{os.getpid()}-{name}.socket"
        self.tcp = tcp_mtu > 0 or spliced
        ports = free_ports(2 * TCP_PORTS) if spliced else range(PORT_IN, PORT_IN + TCP_PORTS)
        self._inward, self._outward = list(ports[:TCP_PORTS]), list(ports[TCP_PORTS:])
        if name == "veth":
            lab.set_veth_mtu(tcp_mtu or 65520)
            return
        ours = [sys.executable, "-m", "gpasst"]
        if self.tcp:
            forwards = ["-t", comma_list(self._inward), "-u", "none"]
            forwards += ["-m", str(tcp_mtu)] if tcp_mtu else []
        else:
            forwards = ["-t", "none", "-u", str(PORT_IN)]
        try:
            if guest:
                command = [PASST, "--runas", "0"] if name == "pasta" else [*ours, "passt", "--runas", "root"]
                self._start(*command, "-q", "-f", "-s", self.path, *forwards, *options)
                self._await(lambda: self.path in Path("/proc/net/unix").read_text(encoding="utf-8"))
                return
            forwards += ["-T", comma_list(self._outward) or "none", "-U", "none" if self.tcp else str(PORT_SPLICED)]
            command = [PASTA, "--runas", "0"] if name == "pasta" else [*ours, "pasta", "--runas", "root"]
            command += ["--no-offload", *options] if name == "plain" else options
            before = set(os.listdir("/proc"))
            self._start(*command, "-q", "-f", *forwards, "--config-net", "--netns", f"/run/netns/{self.netns}")
            self._await(self._configured)
            # The helper is no child of the proxy; it is what else started meanwhile and holds the namespace.
            mine = os.stat(f"/run/netns/{self.netns}").st_ino
            for entry in set(os.listdir("/proc")) - before - {str(self.program.pid if self.program else 0)}:
                try:
                    if entry.isdecimal() and os.stat(f"/proc/{entry}/ns/net").st_ino == mine:
                        self.extra.append(int(entry))
                except OSError:
                    continue
        except Failed:
            self.close()
            raise

    def _start(self, *command: str) -> None:
        if self.name == BEFORE and GPASST:
            environment = {**os.environ, "PYTHONPATH": GPASST}
            self.program = subprocess.Popen(command, cwd=GPASST, env=environment)  # where -m looks first
        else:
            self.program = subprocess.Popen(command)

    def _await(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > deadline or (self.program and self.program.poll() is not None):
                raise Failed(f"{self.name} does not start")
            time.sleep(0.02)

    def _configured(self) -> bool:
        """Whether the namespace is configured and a listener open, the last things that happen at the start."""
        show = ("sh", "-c", "ip address; cat /proc/net/udp /proc/net/udp6")
        text = subprocess.run(
            ["ip", "netns", "exec", self.netns, *show], capture_output=True, text=True, check=True
        ).stdout
        if self.tcp:
            open_now = listening() >= set(self._inward) and listening(self.netns) >= set(self._outward)
        else:
            open_now = f":{PORT_SPLICED:04X} " in text
        return all(f"{address}/" in text for address in self._addresses) and open_now

    def targets(
        self, outward: bool, spliced: bool = False, guest: bool = False, ipv6: bool = False
    ) -> tuple[str, str, int]:
        """Return the address at which the receiver binds, that to which the sender sends, and the first port."""
        if ipv6:
            veth, tap = (VETH_HOST6, VETH_GUEST6), (GATEWAY6, HOST6)
            return "::", (veth if self.name == "veth" else tap)[not outward], PORT_OUT if outward else PORT_IN
        if self.name == "veth":
            return "0.0.0.0", VETH_HOST if outward else VETH_GUEST, PORT_OUT
        if guest:
            return LOOPBACK, LOOPBACK, PORT_OUT if outward else PORT_IN
        if spliced:
            return "0.0.0.0", LOOPBACK, PORT_SPLICED if outward else PORT_IN
        return "0.0.0.0", GATEWAY if outward else HOST, PORT_OUT if outward else PORT_IN

    def loopback(self, outward: bool) -> tuple[str, list[int]]:
        """Return the address that a client addresses, and the ports of a spliced forward, the same on both sides.

        A plain veth pair has no loopback in common, so its own address takes the place of it.
        """
        address = LOOPBACK if self.name != "veth" else VETH_HOST if outward else VETH_GUEST
        return address, self._outward if outward else self._inward

    def processes(self) -> list[int]:
        """Return the processes of the proxy, its helper and children included."""
        found = [self.program.pid, *self.extra] if self.program else []
        for pid in found:  # which grows meanwhile
            for text in texts(pid, "task/*/children"):
                found += [child for child in map(int, text.split()) if child not in found]
        return found

    def _texts(self, pattern: str) -> Iterator[str]:
        for pid in self.processes():
            yield from texts(pid, pattern)

    def processor_seconds(self) -> float:
        return sum(int(text.split()[0]) for text in self._texts("task/*/schedstat")) / 1e9

    def memory_kb(self) -> int:
        lines = (line for text in self._texts("status") for line in text.splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    def private_kb(self) -> int:
        """Return the memory that would be free without the proxy, in kB."""
        lines = (line for text in self._texts("smaps_rollup") for line in text.splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes())

    def pipes(self) -> int:
        """Return the number of descriptors that are an end of a pipe."""
        total = 0
        for pid in self.processes():
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    total += os.readlink(entry).startswith("pipe:")
        return total

    def holds(self) -> dict[str, int]:
        """Return what the proxy holds now: descriptors, ends of pipes, kB of private memory."""
        return {"descriptors": self.descriptors(), "pipes": self.pipes(), "private_kb": self.private_kb()}

    def close(self) -> None:
        if self.program is not None:
            self.program.terminate()
            self.program.wait(10)


def texts(pid: int, pattern: str) -> Iterator[str]:
    """Yield what the files of a process in /proc say; those of one that has ended say nothing."""
    for path in Path(f"/proc/{pid}").glob(pattern):
        try:
            text = path.read_text(encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield text


def comma_list(ports: Iterable[int]) -> str:
    return ",".join(map(str, ports))


def free_ports(count: int) -> list[int]:
    """Return distinct TCP ports that the kernel chose, free on this side."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("", 0))
        return [sock.getsockname()[1] for sock in sockets]


def listening(netns: str = "") -> set[int]:
    """Return the TCP ports of either family that a program listens on, in a namespace or here."""
    within = ["ip", "netns", "exec", netns] if netns else []
    text = subprocess.run(
        [*within, "cat", "/proc/net/tcp", "/proc/net/tcp6"], stdout=subprocess.PIPE, text=True, check=False
    ).stdout
    rows = (line.split() for line in text.splitlines())
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}  # TCP_LISTEN


def await_listener(port: int, netns: str) -> None:
    deadline = time.monotonic() + LISTEN_SECONDS
    while port not in listening(netns):
        if time.monotonic() > deadline:
            raise Failed(f"nothing listens on port {port}")
        time.sleep(0.02)


def compiled(folder: Path, *names: str) -> dict[str, Path]:
    """Compile programs of this folder into another one; return where each is."""
    paths = {name: folder / name for name in names}
    for name, path in paths.items():
        run("gcc", "-O2", "-pthread", "-o", str(path), str(HERE / f"{name}.c"))
    return paths


def start(*command: object, netns: str = "") -> subprocess.Popen[str]:
    """Start a program on the host or in a namespace, with its input and output at hand."""
    within = ["ip", "netns", "exec", netns] if netns else []
    return subprocess.Popen([*within, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def generator(*arguments: object, netns: str = "", program: str = "load.py") -> subprocess.Popen[str]:
    """Start a load generator on the host or in a namespace."""
    return start(sys.executable, "-I", "-S", HERE / program, *arguments, netns=netns)


def finish(program: subprocess.Popen[str]) -> dict[str, Any]:
    """End a generator's input; return what it printed last."""
    try:
        output, _ = program.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        program.kill()
        program.communicate()
    if program.returncode:
        raise Failed("a load generator failed; see the message above")
    lines = output.strip().splitlines()
    figures: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return figures


@contextmanager
def ended(program: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a program with the block, if it has not ended by itself."""
    try:
        yield program
    finally:
        if program.poll() is None:
            program.kill()
        program.communicate()


def say(progress: str) -> None:
    print(progress, end="\r\x1b[K", file=sys.stderr)


def line(program: subprocess.Popen[str], expected: str) -> None:
    assert program.stdout is not None
    if program.stdout.readline().strip() != expected:
        raise Failed(f"a load generator did not say {expected}")


def tell(program: subprocess.Popen[str], word: str) -> None:
    assert program.stdin is not None
    program.stdin.write(word + "\n")
    program.stdin.flush()
