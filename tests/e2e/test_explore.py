"""Exploring seeds, and shrinking the weather of a test that fails. Takes 20 seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.suites import run_suite

pytestmark = pytest.mark.usefixtures("tun", "remote")

# A client that asks twice, and repeats only its first query.
CLIENT = """
import pytest

SERVER = "192.0.2.53", 53

def ask(sock, question, tries):
    for _ in range(tries):
        sock.send(question)
        try:
            return sock.recv(100)
        except TimeoutError:
            pass
    raise TimeoutError(f"no answer to {question}")

def look_up(net):
    with net.socket() as sock:
        sock.settimeout(0.3)
        sock.connect(SERVER)
        return ask(sock, b"A", tries=5), ask(sock, b"AAAA", tries=1)

@pytest.fixture
def net(gpasst_pasta):
    gpasst_pasta.serve_udp(*SERVER, lambda data, peer: data.lower())
    return gpasst_pasta
"""

PLANTED = f"""{CLIENT}
def test_look_up(net):
    with net.impair(to="host", protocol="udp", dport=53, loss=0.3):
        assert look_up(net) == (b"a", b"aaaa")
"""


PASTED = f"""{CLIENT}
def test_look_up(net):
    with RULE:
        assert look_up(net) == (b"a", b"aaaa")
"""


def test_exploring_finds_the_seeds_and_shrinking_the_datagram(tmp_path: Path) -> None:
    """With the first seed that fails, the first query is lost as well: two frames become one."""
    explored = run_suite(tmp_path, PLANTED, "--gpasst-explore=12", "--gpasst-seed=100")
    assert "4 failed, 8 passed" in explored.stdout, explored.stdout
    assert "test_suite.py::test_look_up: 4 of 12 seeds: 100, 102, 109, 110\n" in explored.stdout

    none = run_suite(tmp_path, PLANTED, "--gpasst-explore=0")
    assert "gpasst-explore: 0 seeds run no test; give 1 or more" in none.stdout

    shrunk = run_suite(tmp_path, PLANTED, "--gpasst-explore=1", "--gpasst-seed=100", "--gpasst-shrink")
    found = shrunk.stdout.partition("- gpasst shrink -")[2]
    assert "fails when the 2nd datagram to port 53 is lost\n" in found, shrunk.stdout
    assert "\n1 of 2 disturbed frames; " in found
    (rule,) = [line for line in found.splitlines() if line.startswith("net.impair(")]
    assert rule == "net.impair('to host udp dport 53 nth 2: loss 100%')"

    pasted = run_suite(tmp_path, PASTED.replace("RULE", rule))
    assert "no answer to b'AAAA'" in pasted.stdout, pasted.stdout
    assert "1 failed" in pasted.stdout


OTHERS = f"""{CLIENT}
@pytest.mark.gpasst_explore(seeds=3)
@pytest.mark.parametrize("loss", [0, 0.1])
def test_explored(net, loss):
    with net.impair(to="host", loss=loss) as rule:
        assert rule.seed in (5, 6, 7)

def test_passes(net):
    with net.impair("to host udp: delay 1ms"):
        assert look_up(net) == (b"a", b"aaaa")

def test_has_no_weather(net):
    assert not look_up(net), "calm"

def test_fails_anyway(net):
    with net.impair("to host udp: delay 1ms"):
        assert not look_up(net), "anyway"

def test_uses_no_fixture():
    assert False, "plain"
"""


def test_what_there_is_nothing_to_shrink_of_says_so(tmp_path: Path) -> None:
    done = run_suite(tmp_path, OTHERS, "--gpasst-shrink", "--gpasst-seed=5")
    assert "3 failed, 7 passed" in done.stdout, done.stdout
    sections = dict.fromkeys(("calm", "anyway", "plain"), "")
    failures = done.stdout.partition("= FAILURES =")[2].partition("= short test summary")[0]
    for failure in failures.split("\n____"):
        for name in sections:
            if f"AssertionError: {name}" in failure:
                sections[name] = failure.partition("- gpasst shrink -")[2]
    assert "weather has disturbed no frame of this test" in sections["calm"]
    assert "fails without weather, too" in sections["anyway"]
    assert not sections["plain"]


NETWORK = """
import sys

SERVER = '''
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("0.0.0.0", 53))
    while True:
        data, client = sock.recvfrom(100)
        sock.sendto(data.lower(), client)
'''

def ask(sock, question, tries):
    for _ in range(tries):
        sock.send(question)
        try:
            return sock.recv(100)
        except TimeoutError:
            pass
    raise TimeoutError(f"no answer to {question}")

def test_look_up(gpasst_network):
    lan = gpasst_network
    client, server = lan.hosts("client", "server")
    server.popen([sys.executable, "-c", SERVER])
    server.wait_bound("udp", 53)
    with client.socket() as sock, lan.between(client, server).impair("udp dport 53: loss 30%"):
        sock.settimeout(0.3)
        sock.connect((server.ip4, 53))
        assert (ask(sock, b"A", tries=5), ask(sock, b"AAAA", tries=1)) == (b"a", b"aaaa")
"""


def test_the_weather_of_a_network_is_explored_and_shrunk(tmp_path: Path) -> None:
    """A failed test's report has the last fates, and the rules that are found name the two hosts."""
    explored = run_suite(tmp_path, NETWORK, "--gpasst-explore=4", "--gpasst-seed=100")
    assert "test_suite.py::test_look_up: 1 of 4 seeds: 101\n" in explored.stdout, explored.stdout
    assert "\n  fate udp dport 53: loss 30% seed 101 [from client to server on lan]: " in explored.stdout

    shrunk = run_suite(tmp_path, NETWORK, "--gpasst-explore=1", "--gpasst-seed=101", "--gpasst-shrink")
    found = shrunk.stdout.partition("- gpasst shrink -")[2]
    sentence = "fails when the 2nd datagram to port 53 from client to server on lan is lost\n"
    assert sentence in found, shrunk.stdout
    (rule,) = [line for line in found.splitlines() if line.startswith("lan.between(")]
    assert rule == "lan.between('client', 'server').impair('to host udp dport 53 nth 2: loss 100%')"

    text = NETWORK.replace('lan.between(client, server).impair("udp dport 53: loss 30%")', rule)
    pasted = run_suite(tmp_path, text)
    assert "no answer to b'AAAA'" in pasted.stdout, pasted.stdout
    assert "1 failed" in pasted.stdout
