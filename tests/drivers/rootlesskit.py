"""rootlesskit, an ordinary user's namespaces, with gpasst in pasta's place.

rootlesskit does not wait for pasta, so each check waits until the link carries something.
"""

from __future__ import annotations

import socket
import time

from tests.support.drivers.checks import (
    ANSWER,
    KINDS,
    Bench,
    Driver,
    Figures,
    answering,
    ask,
    connect,
    program,
    reach,
)
from tests.support.drivers.recipes import recipe
from tests.support.families import LOOPBACK
from tests.support.lab import FAR4, HOST4, bound

NAME, ADDRESS = "t.example", "198.51.100.7"
FORWARDER = "10.0.2.3"  # rootlesskit's resolver, its --dns-forward
GATEWAY = "10.0.2.2"
PORT = 5000
LINK = "until ip link show tap0 | grep -q LOWER_UP; do sleep 0.01; done; "
RECIPE, IMPLICIT = recipe("rootlesskit", "sh").strip().split("\n")
STATE = "/tmp/rootlesskit"


def prepare(bench: Bench) -> None:
    bench.tree.resolve(NAME, ADDRESS)


def reset(bench: Bench) -> None:
    """Nothing is left of rootlesskit when its program has ended."""


def kit(recipe: str, *command: str, options: str = "") -> list[str]:
    """Return the command that runs another one under rootlesskit, by a recipe that ends with its own."""
    words = recipe.split()
    return [*words[: words.index("sh")], *options.split(), "sh", "-c", f'{LINK} exec "$@"', "sh", *command]


def run(bench: Bench) -> Figures:
    """The exit status of a program, and the time until the link is there."""
    assert bench.tree.run(*kit(RECIPE, "sh", "-c", "exit 42")).returncode == 42
    start = time.perf_counter()
    printed = bench.run(*kit(RECIPE, "ip", "address", "show", "tap0"))
    taken = 1e3 * (time.perf_counter() - start)
    assert "inet 10.0.2.100/24" in printed, printed
    return {"ms": round(taken)}


def outside(bench: Bench) -> Figures:
    """From the namespace to the remote machine, by both protocols."""
    for kind in KINDS:
        with bound(bench.remote.socket(socket.AF_INET, kind), FAR4) as server, answering(server) as port:
            assert bench.run(*kit(RECIPE, *ask(kind, FAR4, port))) == ANSWER
    return {}


def resolve(bench: Bench) -> Figures:
    """A name, by the resolver of the host's loopback, at the address that rootlesskit writes to resolv.conf."""
    printed = bench.run(*kit(RECIPE, "busybox", "nslookup", "-type=a", NAME))
    assert FORWARDER in printed and ADDRESS in printed, printed
    return {}


def loopback(bench: Bench) -> Figures:
    """The gateway is the host, but for --disable-host-loopback."""
    open_ = RECIPE.replace("--disable-host-loopback ", "")
    for kind in KINDS:
        with bound(socket.socket(socket.AF_INET, kind), LOOPBACK[4]) as server, answering(server) as port:
            closed = bench.tree.run(*kit(RECIPE, *ask(kind, GATEWAY, port)))
            assert closed.returncode, closed.stdout
            assert bench.run(*kit(open_, *ask(kind, GATEWAY, port))) == ANSWER
    return {}


def implicit(bench: Bench) -> Figures:
    """The implicit port driver: ports that are bound inside are the host's, as long as they are bound.

    rootlesskit passes --ipv4-only.
    """
    with bench.running(*kit(IMPLICIT, "python3", "-c", program("echo"), str(PORT), "attended")):
        figures = reach(bench, PORT, families=[4])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        assert not connect(client, HOST4, PORT, b"nobody")
    return figures


def detach(bench: Bench) -> Figures:
    """A namespace that rootlesskit's program is not in, but joins by its file (--detach-netns)."""
    words = ["sh", "-c", 'cd "$0"; exec nsenter --net=netns "$@"', STATE]
    command = kit(RECIPE, options=f"--detach-netns --state-dir={STATE}")
    command = command[: command.index("sh")]
    wait = ["sh", "-c", f'{LINK} exec "$@"', "sh"]
    for kind in KINDS:
        with bound(bench.remote.socket(socket.AF_INET, kind), FAR4) as server, answering(server) as port:
            assert bench.run(*command, *words, *wait, *ask(kind, FAR4, port)) == ANSWER
    return {}


DRIVER = Driver(
    versions={"rootlesskit": ("rootlesskit", "--version"), "Python": ("python3", "--version")},
    prepare=prepare,
    reset=reset,
    checks={
        "run": run,
        "outside": outside,
        "resolve": resolve,
        "loopback": loopback,
        "implicit": implicit,
        "detach": detach,
    },
)
