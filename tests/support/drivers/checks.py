"""Running tables of checks, one for each driver: each passes with figures, or fails with a reason.

Theory of operation: the process builds the tree, then becomes the host of `tests.support.lab`, whose network ends at a
remote machine, and enters the tree there, once for each driver. After each check the driver is made to forget its
containers or machines, and the check has failed if a program is left in the tree that was not there before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tests.support import lab, ready
from tests.support.drivers import tree
from tests.support.families import FAMILY, LOOPBACK

FOLDER = "GPASST_DRIVERS_TREE"  # environment variable: where trees are kept
DEFAULT_FOLDER = "/var/tmp/gpasst-drivers"
ANSWER_SECONDS = 0.1  # until a datagram counts as lost
ATTEMPTS = 50
END_SECONDS = 5.0  # until a program that should have ended counts as left behind

KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
ANSWER = "QUESTION\n"
VERSION = re.compile(r"\d+(?:\.\d+)+|\d+")

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a check runs.

    :ivar tree: the system that the driver runs in.
    :ivar remote: the machine at the other end of the host's network.
    """

    tree: tree.Tree
    remote: lab.Remote

    def run(self, *argv: str, root: bool = False) -> str:
        """Return what a program of the tree prints; fail with its messages if its status is not 0.

        :param root: run it as root, not as the ordinary user.
        """
        done = self.tree.run(*argv, root=root)
        assert done.returncode == 0, f"status {done.returncode} of {' '.join(argv)}: {done.stderr.strip()}"
        return done.stdout

    def refused(self, *argv: str, root: bool = False) -> str:
        """Return the messages of a program that has to fail."""
        done = self.tree.run(*argv, root=root)
        assert done.returncode != 0, f"no failure of {' '.join(argv)}"
        return done.stderr

    @contextmanager
    def running(self, *argv: str, root: bool = False) -> Iterator[str]:
        """Run a program of the tree that ends with its standard input; yield its first line."""
        with self.tree.popen(*argv, root=root) as program:
            assert program.stdin is not None and program.stdout is not None
            try:
                line = program.stdout.readline().strip()
                assert line, f"{' '.join(argv)} ended with {program.wait()}"
                yield line
            finally:
                program.stdin.close()
                program.wait(tree.PATIENCE)


Check = Callable[[Bench], Figures]


@dataclass(frozen=True, slots=True)
class Driver:
    """What is to be checked.

    :ivar versions: the command that prints the version, by the name of each program.
    :ivar prepare: called once, before all checks.
    :ivar reset: called after each check; ends all containers or machines.
    :ivar checks: the table, by name.
    :ivar init: the first process of the tree.
    """

    versions: Mapping[str, Sequence[str]]
    prepare: Callable[[Bench], None]
    reset: Callable[[Bench], None]
    checks: Mapping[str, Check]
    init: Sequence[str] = tree.REAPER


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check ended.

    :ivar figures: what it measured, by name with unit.
    :ivar problem: why it failed; empty if it passed.
    """

    name: str
    seconds: float
    figures: Figures = field(default_factory=dict)
    problem: str = ""

    def line(self) -> str:
        rest = self.problem or ", ".join(f"{name} {value:g}" for name, value in self.figures.items())
        return f"{'FAIL' if self.problem else 'pass'}  {self.name:<10} {self.seconds:6.1f} s  {rest}"


@dataclass(frozen=True, slots=True)
class Report:
    """How the checks of a driver ended.

    :ivar versions: what each program calls its version, by its name.
    """

    versions: Mapping[str, str]
    checks: Sequence[Outcome]


def exchange(sock: socket.socket, target: str, port: int, text: bytes, attempts: int = ATTEMPTS) -> int:
    """Send a datagram until its echo arrives.

    :return: the number of datagrams before that were lost.
    :raises AssertionError: if none arrives.
    """
    sock.settimeout(ANSWER_SECONDS)
    for lost in range(attempts):
        payload = b"%b %d" % (text, lost)
        sock.sendto(payload, (target, port))
        try:
            while True:
                answer, sender = sock.recvfrom(len(payload) + 1)
                if answer == payload:
                    assert sender[:2] == (target, port), f"the answer of {target} came from {sender[:2]}"
                    return lost
        except TimeoutError:
            continue
    raise AssertionError(f"no answer from {target} port {port} to {attempts} datagrams")


def connect(sock: socket.socket, target: str, port: int, text: bytes) -> bool:
    """Connect a TCP socket, and return whether the text comes back whole; close the socket."""
    with sock:
        sock.settimeout(lab.PATIENCE)
        try:
            sock.connect((target, port))
            sock.sendall(text)
            sock.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        except ConnectionError:
            return False
        except TimeoutError as error:
            raise AssertionError(f"no answer from {target} port {port} by TCP") from error
    assert answer in (b"", text), f"{answer!r} for {text!r}"
    return answer == text


def connected(make: Callable[[], socket.socket], target: str, port: int, text: bytes) -> int:
    """Connect until the text comes back.

    :param make: makes a TCP socket.
    :return: the number of connections before that were refused, reset or closed.
    :raises AssertionError: if all were.
    """
    for refused in range(ATTEMPTS):
        if connect(make(), target, port, text):
            return refused
        time.sleep(ANSWER_SECONDS)
    raise AssertionError(f"no connection to {target} port {port} in {ATTEMPTS} attempts")


def reach(
    bench: Bench, port: int, kinds: Sequence[socket.SocketKind] = KINDS, families: Sequence[int] = (4, 6)
) -> Figures:
    """Reach an echo server by a port of the host: by loopback and by its own address, and from the remote machine.

    :return: the datagrams and connections that were lost while the server was not there yet.
    """
    counts = {socket.SOCK_DGRAM: 0, socket.SOCK_STREAM: 0}
    for family in families:
        for kind in kinds:
            for target, make in (
                (LOOPBACK[family], socket.socket),
                (lab.HOST[family], socket.socket),
                (lab.HOST[family], bench.remote.socket),
            ):
                made = partial(make, FAMILY[family], kind)
                if kind == socket.SOCK_STREAM:
                    counts[kind] += connected(made, target, port, b"a stream to %d" % port)
                else:
                    with made() as client:
                        counts[kind] += exchange(client, target, port, b"to port %d" % port)
    names = {socket.SOCK_DGRAM: "lost", socket.SOCK_STREAM: "refused"}
    return {names[kind]: counts[kind] for kind in kinds}


def nobody_at(kind: socket.SocketKind, address: str, port: int) -> None:
    """Return when no socket of the host is bound to an address and port."""

    def free() -> bool:
        with socket.socket(FAMILY[6 if ":" in address else 4], kind) as sock:
            # For TCP, beside connections of before.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
            try:
                sock.bind((address, port))
            except OSError:
                return False
        return True

    ready.until(free, f"nobody at {address} port {port}")


@contextmanager
def answering(sock: socket.socket) -> Iterator[int]:
    """Answer one question, by a bound UDP or TCP socket, with its own text in capitals; yield the port."""

    def answer() -> None:
        if sock.type == socket.SOCK_STREAM:
            with sock.accept()[0] as client:
                client.settimeout(lab.PATIENCE)
                client.sendall(client.recv(100).upper())
        else:
            data, sender = sock.recvfrom(100)
            sock.sendto(data.upper(), sender)

    sock.settimeout(tree.PATIENCE)
    if sock.type == socket.SOCK_STREAM:
        sock.listen()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(answer)
        yield sock.getsockname()[1]
        done.result()


def ask(kind: socket.SocketKind, host: str, port: int) -> list[str]:
    """Return the command of a client whose server is `answering`; it prints `ANSWER`."""
    return ["python3", "-c", program("ask"), "tcp" if kind == socket.SOCK_STREAM else "udp", host, str(port)]


def program(name: str) -> str:
    """Return the text of a program that the tree's Python runs."""
    return Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")


def milliseconds(bench: Bench, *argv: str) -> float:
    """Return how long a program takes."""
    start = time.perf_counter()
    bench.run(*argv)
    return 1e3 * (time.perf_counter() - start)


def summary(name: str, times: list[float]) -> Figures:
    """Return the median and the extremes; the least is what other load of the machine changes least."""
    least, median, most = (round(pick(times)) for pick in (min, statistics.median, max))
    return {name: median, f"{name} at least": least, f"{name} at most": most}


def _await_ends(bench: Bench, before: Counter[str]) -> None:
    """Return when no program is left that was not there before."""
    deadline = time.monotonic() + END_SECONDS
    while left := Counter(bench.tree.commands()) - before:
        assert time.monotonic() < deadline, f"still running: {', '.join(left)}"
        time.sleep(ready.STEP)


def _outcome(name: str, check: Check, driver: Driver, bench: Bench, before: Counter[str]) -> Outcome:
    start = time.monotonic()
    figures: Figures = {}
    problem = ""
    # TimeoutExpired and whatever else a check ends with is a result, and the checks after it count too.
    try:
        try:
            figures = check(bench)
        finally:
            driver.reset(bench)
        _await_ends(bench, before)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".replace("\n", " ")
    return Outcome(name, round(time.monotonic() - start, 1), figures, problem)


def _chosen(drivers: Mapping[str, Driver], words: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of checks to run, by driver.

    :param words: drivers, and checks as DRIVER.CHECK; all drivers if there is none.
    :raises KeyError: for one that there is not.
    """
    chosen: dict[str, list[str]] = {}
    for word in words or drivers:
        driver, _, check = word.partition(".")
        if driver not in drivers or (check and check not in drivers[driver].checks):
            raise KeyError(word)
        chosen.setdefault(driver, []).extend([check] if check else drivers[driver].checks)
    return chosen


def _run(driver: Driver, names: Sequence[str], entered: tree.Tree, remote: lab.Remote, show: bool) -> Report:
    bench = Bench(entered, remote)
    versions = {name: VERSION.findall(bench.run(*command))[0] for name, command in driver.versions.items()}
    if show:
        print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    driver.prepare(bench)
    before = Counter(entered.commands())
    outcomes = []
    for name in names:
        outcomes.append(_outcome(name, driver.checks[name], driver, bench, before))
        if show:
            print(outcomes[-1].line(), flush=True)
    return Report(versions, outcomes)


def main(drivers: Mapping[str, Driver]) -> int:
    """Run the checks that the command line names, all if it names none.

    :param drivers: by name.
    :return: the exit status: 0 if all passed, else 1.
    """
    everything = [f"{name}.{check}" for name, driver in drivers.items() for check in driver.checks]
    parser = argparse.ArgumentParser(prog="tests.drivers", description="Checks with real drivers; see docs/drivers.md.")
    words = f"a driver or one of its checks: {', '.join(everything)}; default all"
    parser.add_argument("checks", nargs="*", metavar="DRIVER[.CHECK]", help=words)
    parser.add_argument(
        "--tree", type=Path, default=Path(os.environ.get(FOLDER, DEFAULT_FOLDER)), help="where trees are"
    )
    programs = (tree.GPASST, tree.ORIGINAL)
    parser.add_argument("--program", choices=programs, default=tree.GPASST, help="started as pasta and passt")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    try:
        chosen = _chosen(drivers, arguments.checks)
    except KeyError as error:
        parser.error(f"no check {error.args[0]}")
    if os.geteuid():
        parser.error("only root may make the system tree and the network")
    if shutil.which("debootstrap") is None:
        parser.error("needs the program debootstrap, from the package of that name")
    root = tree.build(arguments.tree.resolve(), arguments.program)
    remote = lab.become_host()
    if not arguments.json:
        print(f"{arguments.program} in pasta's and passt's place, Linux {platform.release()}", flush=True)
    reports = {}
    for name, checks in chosen.items():
        with tree.enter(root, drivers[name].init) as entered:
            reports[name] = _run(drivers[name], checks, entered, remote, show=not arguments.json)
    if arguments.json:
        shown = {name: asdict(report) for name, report in reports.items()}
        report = {"program": arguments.program, "Linux": platform.release(), "drivers": shown}
        json.dump(report, sys.stdout, indent=2)
        print()
    return int(any(outcome.problem for report in reports.values() for outcome in report.checks))
