"""The pytest plugin, in suites of users. Takes 12 seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpasst.testing import needs
from tests.support.cli import ended
from tests.support.need import need
from tests.support.ready import until
from tests.support.suites import PATIENCE, run_suite, started_suite

pytestmark = pytest.mark.usefixtures("tun", "remote")

PASSING = """
import socket

def test_a_namespace_is_ready(gpasst_pasta):
    assert gpasst_pasta.network.addresses
    with gpasst_pasta.socket() as sock:
        sock.connect((gpasst_pasta.gateway4, 9))

def test_several(gpasst_factory):
    nets = [gpasst_factory(udp_ports="0:53") for _ in range(2)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for number, net in enumerate(nets):
            with net.socket() as server:
                server.bind(("0.0.0.0", 53))
                server.settimeout(10)
                client.sendto(bytes([number]), ("127.0.0.1", net.port("udp", 53)))
                assert server.recv(10) == bytes([number])

def test_a_network(gpasst_network):
    a, b = gpasst_network.hosts("a", "b")
    with a.socket() as server, b.socket() as client:
        server.bind((a.ip4, 53))
        server.settimeout(10)
        client.sendto(b"data", (a.ip4, 53))
        assert server.recv(10) == b"data"

def test_networks(gpasst_network_factory):
    lan, net = gpasst_network_factory("home", uplink=True), gpasst_network_factory("net", mtu=9000)
    assert (lan.name, lan.subnet4, net.subnet4, net.mtu) == ("home", "10.77.0.0/24", "10.77.1.0/24", 9000)
    assert lan.gateway4

def test_a_virtual_machine(gpasst_passt):
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(gpasst_passt.path)
"""

FAILING = """
import socket

def test_fails(gpasst_factory):
    net = gpasst_factory(udp_ports="0:53")
    with net.socket() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 53))
        server.settimeout(10)
        client.sendto(b"data", ("127.0.0.1", net.port("udp", 53)))
        server.recv(10)
    assert False, net.port("udp", 53)

def test_a_network_fails(gpasst_network):
    a, b = gpasst_network.hosts("a", "b")
    with b.socket() as client, gpasst_network.between(a, b).impair("udp: loss 100%"):
        client.sendto(b"data", (a.ip4, 53))
        gpasst_network.link(b).expect("udp", dport=53, to="host")
    assert False

def test_passes(gpasst_pasta):
    pass

def test_needs_no_fixture():
    assert False
"""


def test_fixtures(tmp_path: Path) -> None:
    done = run_suite(tmp_path, PASSING)
    assert (done.returncode, "5 passed" in done.stdout) == (0, True), done.stdout


def test_the_report_of_a_failed_test(tmp_path: Path) -> None:
    done = run_suite(tmp_path, FAILING, "--gpasst-seed=77", "--gpasst-pcap-on-failure=captures")
    assert "3 failed, 1 passed" in done.stdout
    _, section, of_network = done.stdout.split("-- gpasst --")
    of_network, after = of_network.split("test_needs_no_fixture", 1)
    assert "--gpasst-seed=77" in section
    assert "forward udp host 0.0.0.0 port" in section
    assert "datagrams_spliced 1\n" in section
    assert "flow udp" in section
    capture, of_hosts = sorted((tmp_path / "captures").iterdir(), key=lambda path: "network" in path.name)
    assert f"capture: {capture}\n" in section
    assert "network lan, 10.77.0.0/24 fd77::/64:\n" in of_network
    assert re.search(r"^  b: \d+ frames from it, \d+ to it$", of_network, re.MULTILINE)
    assert "  drops 1 lost by an impairment rule\n" in of_network
    assert "fate udp: loss 100% seed 77 [from b to a on lan]: 1 lost: udp 10.77.0.3:" in of_network
    assert f"capture: {of_hosts}\n" in of_network
    # The hosts were opened when the capture had begun.
    command = [need("tshark"), "-r", str(of_hosts), "-Y", "udp", "-T", "fields", "-e", "frame.interface_name"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE).stdout.split() == ["b", "a"]
    assert "-- gpasst --" not in after


@pytest.mark.parametrize("option", ["--gpasst-pcap", "--gpasst-pcap-on-failure"])
def test_captures(tmp_path: Path, option: str) -> None:
    done = run_suite(tmp_path, PASSING, f"{option}=captures")
    assert done.returncode == 0, done.stdout
    assert len(list((tmp_path / "captures").iterdir())) == (7 if option == "--gpasst-pcap" else 0)


REFUSED = """
import gpasst

def refuse(net):
    raise gpasst.PlatformError("no namespaces here", "buy another machine")

gpasst.Pasta.open = refuse
"""

UNPERMITTED = f"""{REFUSED}
from gpasst.testing import require

def test_a_fixture(gpasst_pasta):
    pass

def test_a_call():
    require()
"""


def test_a_missing_permission_is_a_skip_by_its_name(tmp_path: Path) -> None:
    done = run_suite(tmp_path, UNPERMITTED, "-rs")
    assert "2 skipped" in done.stdout, done.stdout
    assert "needs a namespace: no namespaces here; buy another machine" in done.stdout


def test_a_missing_permission_can_be_an_error(tmp_path: Path) -> None:
    done = run_suite(tmp_path, UNPERMITTED, "--gpasst-require")
    assert "1 failed, 1 error" in done.stdout, done.stdout
    assert "no namespaces here; buy another machine" in done.stdout


def test_another_obstacle_is_no_skip(tmp_path: Path) -> None:
    suite = "def test_a(gpasst_factory):\n    gpasst_factory(interface='nosuch0')\n"
    done = run_suite(tmp_path, suite)
    assert "1 failed" in done.stdout, done.stdout


def test_the_machine_allows_namespaces() -> None:
    assert needs.obstacle() is None


SHARED_OUT = """
import os
import pytest

@pytest.mark.parametrize("number", range(6))
def test_one_of_many(gpasst_factory, number):
    nets = [gpasst_factory(tcp_ports="0:80", udp_ports="0:53") for _ in range(2)]
    helpers = {net._runtime.helper().pid for net in nets}
    assert len(helpers) == 1
    with open("helpers", "a") as file:
        print(os.environ.get("PYTEST_XDIST_WORKER"), *helpers, file=file)
"""


def test_each_worker_of_xdist_has_a_helper_of_its_own(tmp_path: Path) -> None:
    done = run_suite(tmp_path, SHARED_OUT, "-p", "xdist", "-n", "2", "--dist", "each", "--gpasst-pcap=captures")
    assert (done.returncode, "12 passed" in done.stdout) == (0, True), done.stdout
    used = {tuple(line.split()) for line in (tmp_path / "helpers").read_text(encoding="ascii").splitlines()}
    assert {worker for worker, _ in used} == {"gw0", "gw1"}
    assert len({helper for _, helper in used}) == len(used) == 2
    assert len(list((tmp_path / "captures").iterdir())) == 24


ENDLESS = """
import sys

def test_that_is_killed(gpasst_pasta, capsys):
    programs = [gpasst_pasta.popen(["sleep", "1000"], init=init) for init in (False, True)]
    with capsys.disabled():
        print("pids", *(program.pid for program in programs), flush=True)
    sys.stdin.read()
"""


def test_programs_end_when_pytest_is_killed(tmp_path: Path) -> None:
    with started_suite(tmp_path, ENDLESS, "-s") as suite:
        assert suite.stdout is not None
        line = next(line for line in iter(suite.stdout.readline, "") if "pids" in line)
        handles = [os.pidfd_open(int(pid)) for pid in line.partition("pids ")[2].split()]
        assert [ended(handle) for handle in handles] == [False, False]
        suite.kill()
        for handle in handles:
            until(lambda handle=handle: ended(handle), "program ended")
            os.close(handle)


IN_UNITTEST = """
import unittest
import gpasst
from gpasst.testing import require

class Tests(unittest.TestCase):
    def test_a_namespace(self):
        require()
        with gpasst.Pasta(config_net=True) as net:
            self.assertEqual(net.run(["true"]).returncode, 0)
            net.assert_no_drops()

if __name__ == "__main__":
    unittest.main()
"""


@pytest.mark.parametrize("demanded", ["", "1"])
def test_unittest_needs_no_plugin(tmp_path: Path, demanded: str) -> None:
    file = tmp_path / "tests.py"
    for obstacle, outcome in (("", "OK\n"), (REFUSED, "FAILED (errors=1)\n" if demanded else "OK (skipped=1)\n")):
        file.write_text(obstacle + IN_UNITTEST, encoding="utf-8")
        command = [sys.executable, "-W", "error", str(file)]
        environment = {**os.environ, needs.DEMANDED: demanded}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.stderr.endswith(outcome), done.stderr
