"""unshare(1), whose namespace gpasst joins by the number of a process.

The script is that of docs/drivers.md.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence

from tests.support.drivers.checks import (
    ANSWER,
    KINDS,
    Bench,
    Driver,
    Figures,
    answering,
    ask,
    nobody_at,
    program,
    reach,
)
from tests.support.drivers.recipes import recipe
from tests.support.lab import FAR4, HOST, bound

SHOW = "ip address show"
PORT = 5000


def prepare(bench: Bench) -> None:
    """Nothing: the script does it all."""


def reset(bench: Bench) -> None:
    """The script ends what it starts."""


def script(command: Sequence[str]) -> list[str]:
    """Return the recipe with another command in the namespace."""
    text = recipe("unshare", "sh")
    assert SHOW in text
    return ["sh", "-ec", text.replace(SHOW, shlex.join(command))]


def join(bench: Bench) -> Figures:
    """The recipe: a namespace with the host's addresses."""
    printed = bench.run("sh", "-ec", recipe("unshare", "sh"))
    for expected in (f"inet {HOST[4]}/24", f"inet6 {HOST[6]}/64"):
        assert expected in printed, printed
    return {}


def outside(bench: Bench) -> Figures:
    """From the namespace to the remote machine, by both protocols."""
    for kind in KINDS:
        with bound(bench.remote.socket(socket.AF_INET, kind), FAR4) as server, answering(server) as port:
            assert bench.run(*script(ask(kind, FAR4, port))) == ANSWER
    return {}


def auto(bench: Bench) -> Figures:
    """Ports that are bound in the namespace are the host's, by default, until the namespace ends."""
    with bench.running(*script(["python3", "-c", program("echo"), str(PORT), "attended"])):
        figures = reach(bench, PORT)
    for kind in KINDS:
        nobody_at(kind, HOST[4], PORT)
    return figures


DRIVER = Driver(
    versions={"util-linux": ("unshare", "--version"), "Python": ("python3", "--version")},
    prepare=prepare,
    reset=reset,
    checks={"join": join, "outside": outside, "auto": auto},
)
