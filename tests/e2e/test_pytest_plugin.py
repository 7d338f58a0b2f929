"""The pytest plugin, in suites of users. Takes 10 seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpasst.testing import needs
from tests.support.suites import run_suite

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

def test_passes(gpasst_pasta):
    pass

def test_needs_no_fixture():
    assert False
"""


def test_fixtures(tmp_path: Path) -> None:
    done = run_suite(tmp_path, PASSING)
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout


def test_the_report_of_a_failed_test(tmp_path: Path) -> None:
    done = run_suite(tmp_path, FAILING, "--gpasst-seed=77", "--gpasst-pcap-on-failure=captures")
    assert "2 failed, 1 passed" in done.stdout
    section, after = done.stdout.partition("-- gpasst --")[2].split("test_needs_no_fixture", 1)
    assert "--gpasst-seed=77" in section
    assert "forward udp host 0.0.0.0 port" in section
    assert "datagrams_spliced 1\n" in section
    assert "flow udp" in section
    (capture,) = (tmp_path / "captures").iterdir()
    assert f"capture: {capture}\n" in section
    assert "-- gpasst --" not in after


@pytest.mark.parametrize("option", ["--gpasst-pcap", "--gpasst-pcap-on-failure"])
def test_captures(tmp_path: Path, option: str) -> None:
    done = run_suite(tmp_path, PASSING, f"{option}=captures")
    assert done.returncode == 0, done.stdout
    assert len(list((tmp_path / "captures").iterdir())) == (4 if option == "--gpasst-pcap" else 0)


UNPERMITTED = """
import pytest
import gpasst
from gpasst.testing import needs, require

@pytest.fixture(autouse=True)
def _no_namespaces(monkeypatch):
    monkeypatch.setattr(gpasst.Pasta, "open", refuse)

def refuse(net):
    raise gpasst.PlatformError("no namespaces here", "buy another machine")

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
