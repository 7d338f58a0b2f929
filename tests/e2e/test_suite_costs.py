"""A suite of many tests with a namespace each: it leaves nothing, and one helper serves it. Takes 5 seconds.

`benchmarks/fixtures.py` measures how long it takes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.suites import run_suite

pytestmark = pytest.mark.usefixtures("tun", "remote")

MANY = """
import pytest
from gpasst.testing.flat import usage

MANY = 200
held, helpers = {}, set()

@pytest.mark.parametrize("number", range(MANY))
def test_one(gpasst_pasta, number):
    helpers.add(gpasst_pasta._runtime.helper().pid)
    with gpasst_pasta.socket() as sock:
        sock.sendto(b"x", (gpasst_pasta.gateway4, 9))
    gpasst_pasta.assert_no_drops()

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


def test_two_hundred_namespaces_leave_nothing(tmp_path: Path) -> None:
    done = run_suite(tmp_path, MANY)
    assert (done.returncode, "201 passed" in done.stdout) == (0, True), done.stdout
