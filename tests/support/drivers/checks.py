"""Running a table of checks of one driver: each passes with figures, or fails with a reason.

Theory of operation: the process builds the tree, then becomes the host of `tests.support.lab`, whose network ends at a
remote machine, and enters the tree there. After each check the driver is made to forget its containers or machines, and
the check has failed if a program is left in the tree that was not there before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.support import lab, ready
from tests.support.drivers import tree

FOLDER = "GPASST_DRIVERS_TREE"  # environment variable: where trees are kept
DEFAULT_FOLDER = "/var/tmp/gpasst-drivers"
ANSWER_SECONDS = 0.1  # until a datagram counts as lost
ATTEMPTS = 50
END_SECONDS = 5.0  # until a program that should have ended counts as left behind

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a check runs.

    :ivar tree: the system that the driver runs in.
    :ivar remote: the machine at the other end of the host's network.
    """

    tree: tree.Tree
    remote: lab.Remote

    def run(self, *argv: str) -> str:
        """Return what a program of the tree prints; fail with its messages if its status is not 0."""
        done = self.tree.run(*argv)
        assert done.returncode == 0, f"status {done.returncode} of {' '.join(argv)}: {done.stderr.strip()}"
        return done.stdout

    def refused(self, *argv: str) -> str:
        """Return the messages of a program that has to fail."""
        done = self.tree.run(*argv)
        assert done.returncode != 0, f"no failure of {' '.join(argv)}"
        return done.stderr


Check = Callable[[Bench], Figures]


@dataclass(frozen=True, slots=True)
class Driver:
    """What is to be checked.

    :ivar versions: the command that prints the version, by the name of each program.
    :ivar prepare: called once, before all checks.
    :ivar reset: called after each check; ends all containers or machines.
    :ivar checks: the table, by name.
    """

    versions: Mapping[str, Sequence[str]]
    prepare: Callable[[Bench], None]
    reset: Callable[[Bench], None]
    checks: Mapping[str, Check]


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


def exchange(sock: socket.socket, target: str, port: int, text: bytes) -> int:
    """Send a datagram until its echo arrives.

    :return: the number of datagrams before that were lost.
    :raises AssertionError: if none arrives.
    """
    sock.settimeout(ANSWER_SECONDS)
    for lost in range(ATTEMPTS):
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
    raise AssertionError(f"no answer from {target} port {port} to {ATTEMPTS} datagrams")


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


def main(driver: Driver) -> int:
    """Run the checks that the command line names, all if it names none.

    :return: the exit status: 0 if all passed, else 1.
    """
    parser = argparse.ArgumentParser(description="Checks with a real driver; see docs/drivers.md.")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(driver.checks)}; default all")
    parser.add_argument(
        "--tree", type=Path, default=Path(os.environ.get(FOLDER, DEFAULT_FOLDER)), help="where trees are"
    )
    parser.add_argument("--program", choices=sorted(tree.PROGRAMS), default="gpasst", help="started as pasta")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    names = arguments.checks or list(driver.checks)
    if unknown := [name for name in names if name not in driver.checks]:
        parser.error(f"no check {', '.join(unknown)}")
    if os.geteuid():
        parser.error("only root may make the system tree and the network")
    if shutil.which("debootstrap") is None:
        parser.error("needs the program debootstrap, from the package of that name")
    root = tree.build(arguments.tree.resolve(), arguments.program)
    remote = lab.become_host()
    with tree.enter(root) as entered:
        bench = Bench(entered, remote)
        versions = {name: bench.run(*command).strip().split("\n")[0] for name, command in driver.versions.items()}
        versions["Linux"] = platform.release()
        driver.prepare(bench)
        before = Counter(entered.commands())
        if not arguments.json:
            print(f"{arguments.program} in pasta's place; {', '.join(versions.values())}", flush=True)
        outcomes = []
        for name in names:
            outcomes.append(_outcome(name, driver.checks[name], driver, bench, before))
            if not arguments.json:
                print(outcomes[-1].line(), flush=True)
    if arguments.json:
        report = {"program": arguments.program, "versions": versions, "checks": [asdict(each) for each in outcomes]}
        json.dump(report, sys.stdout, indent=2)
        print()
    return int(any(outcome.problem for outcome in outcomes))
