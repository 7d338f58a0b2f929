"""Tests in several processes, on one network with one server.

    pip install gpasst pytest pytest-xdist
    pytest -n 2 workers

The server hands out numbers. It is opened once, for all tests, whichever worker runs them; see `conftest.py`.
"""

import sys

import pytest

ASK = """
import socket, sys
with socket.create_connection(("office", 7000), 5) as sock, sock.makefile("rw") as lines:
    lines.write(sys.argv[1] + "\\n")
    lines.flush()
    print(lines.readline(), end="")
"""


@pytest.mark.parametrize("number", range(4))
def test_a_number_of_ones_own(lan, number):
    with lan.host(f"visitor{number}") as visitor:
        found = set()
        for _ in range(5):
            done = visitor.run([sys.executable, "-c", ASK, visitor.name], capture_output=True, text=True, check=True)
            name, _, ticket = done.stdout.strip().partition(" has number ")
            assert name == visitor.name
            found.add(int(ticket))
    # All tests ask for 20 together, in whatever process they run.
    assert len(found) == 5
    assert max(found) <= 20
