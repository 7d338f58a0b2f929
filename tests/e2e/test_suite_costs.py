"""Suites of many tests with namespaces of their own: they leave nothing, and one helper serves them. Takes 7 seconds.

`benchmarks/fixtures.py` measures how long it takes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.suites import run_suite

pytestmark = pytest.mark.usefixtures("tun", "remote")

NAMESPACE = """
def use(net):
    helpers.add(net._runtime.helper().pid)
    with net.socket() as sock:
        sock.sendto(b"x", (net.gateway4, 9))
    net.assert_no_drops()
"""

NETWORK = """
def use(lan):
    helpers.add(lan._runtime.helper().pid)
    a, b = lan.hosts("a", "b")
    with a.socket() as client, b.socket() as server, lan.partition([a], [b]):
        client.sendto(b"x", (b.ip4, 9))
        lan.link(a).expect("arp", to="host")
"""

MANY = """
import pytest
from gpasst.testing.flat import usage

MANY = {many}
held, helpers = {{}}, set()
{use}

@pytest.mark.parametrize("number", range(MANY))
def test_one({fixture}, number):
    use({fixture})

@pytest.fixture(autouse=True)
def _measure(request):
    # Of a fixture that the others do not know of, the end comes first or last; so it looks before the others begin.
    number = getattr(request.node, "callspec", None)
    if number and number.params["number"] in (20, MANY - 1):
        held[number.params["number"]] = usage()
    yield

def test_nothing_is_left():
    assert len(helpers) == 1
    # The kernel takes a tap back up to 40 ms after the namespace was closed: two of them may still be there.
    before, after = held[20], held[MANY - 1]
    assert after.processes <= before.processes
    assert after.threads <= before.threads + 3
    assert after.descriptors <= before.descriptors + 12
    assert after.memory <= before.memory + 4096
"""


@pytest.mark.parametrize(
    ("fixture", "use", "many"),
    [("gpasst_pasta", NAMESPACE, 200), ("gpasst_network", NETWORK, 100)],
    ids=["namespaces", "networks"],
)
def test_many_tests_leave_nothing(tmp_path: Path, fixture: str, use: str, many: int) -> None:
    done = run_suite(tmp_path, MANY.format(fixture=fixture, use=use, many=many))
    assert (done.returncode, f"{many + 1} passed" in done.stdout) == (0, True), done.stdout
