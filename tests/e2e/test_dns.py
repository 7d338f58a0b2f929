"""A stub resolver of the test, asked by real clients. Takes 4 seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gpasst
from gpasst.dns import Query
from gpasst.errors import ConfigurationError
from tests.support import machines
from tests.support.lab import HOST4, Remote
from tests.support.need import ROOT_ONLY, need

pytestmark = pytest.mark.usefixtures("tun", "remote")

LATE = 0.2  # seconds


@pytest.fixture(scope="module")
def net(tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    del tun, remote
    with gpasst.Pasta(config_net=True) as opened:
        yield opened


def shown(net: gpasst.Pasta, *command: str, **options: Any) -> str:
    """Return what a program in the namespace prints."""
    done = net.run(command, stdout=subprocess.PIPE, text=True, timeout=20, **options)
    assert isinstance(done.stdout, str)
    return done.stdout


def dig(net: gpasst.Pasta, *arguments: str) -> list[str]:
    return shown(net, need("dig"), "+short", "+time=5", "+tries=1", *arguments).split()


def test_programs_ask_the_resolver(net: gpasst.Pasta) -> None:
    before = shown(net, "cat", "/etc/resolv.conf")
    with net.dns({"example.org": ["192.0.2.80", "2001:db8::80"], "*": "NXDOMAIN"}) as resolver:
        assert shown(net, "cat", "/etc/resolv.conf") == f"nameserver {resolver.address}\n"
        lines = shown(net, "getent", "ahosts", "example.org").splitlines()
        assert {line.split()[0] for line in lines} == {"192.0.2.80", "2001:db8::80"}
        assert net.run(["getent", "hosts", "nothing.test"]).returncode == 2
        first, second, *others = resolver.queries
        assert (first.number, first.name, first.transport) == (1, "example.org", "udp")
        assert {first.type, second.type} == {"A", "AAAA"}
        assert {query.name for query in others} == {"nothing.test"}
        assert first.peer[0] == HOST4
        assert resolver.errors == ()
    resolver.close()
    assert shown(net, "cat", "/etc/resolv.conf") == before


def test_the_host_and_programs_that_run_keep_their_file(net: gpasst.Pasta) -> None:
    before = Path("/etc/resolv.conf").read_text(encoding="utf-8")
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    script = "echo; read line; cat /etc/resolv.conf"
    with net.popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        program.stdout.readline()
        with net.dns({}):
            assert shown(net, "cat", "/etc/resolv.conf") != before
            assert program.communicate("\n", timeout=5)[0] == before
    assert Path("/etc/resolv.conf").read_text(encoding="utf-8") == before
    assert Path("/proc/self/mounts").read_text(encoding="utf-8") == mounts


def test_a_program_finds_the_rest_of_the_files_as_they_are(net: gpasst.Pasta, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here", encoding="utf-8")
    with net.dns({}):
        assert shown(net, "cat", str(tmp_path / "file")) == "here"
        assert shown(net, "cat", "file", cwd=tmp_path) == "here"
        assert sorted(shown(net, "ls", "-A", "/tmp").split()) == sorted(os.listdir("/tmp"))
        with net.popen(["cat", "/etc/resolv.conf"], init=True, stdout=subprocess.PIPE, text=True) as program:
            assert program.communicate(timeout=5)[0].startswith("nameserver ")


@pytest.mark.parametrize("options", [{"netns_only": True}, {}], ids=["without", "with"])
def test_another_user_asks_it_with_or_without_a_user_namespace(options: dict[str, Any]) -> None:
    if os.geteuid():
        pytest.skip(ROOT_ONLY)
    with gpasst.Pasta(config_net=True, runas=(65534, 65534), **options) as net, net.dns({"a.test": "192.0.2.80"}):
        assert shown(net, "getent", "ahostsv4", "a.test").split()[0] == "192.0.2.80"


def test_an_answer_comes_late(net: gpasst.Pasta) -> None:
    """Each waits for itself alone."""

    def delay(query: Query) -> float:
        return LATE if query.name.startswith("late") else 0.0

    with net.dns({"*": "192.0.2.80"}, delay=delay) as resolver:
        began = time.monotonic()
        ask = f"{need('dig')} @{resolver.address} +short"
        assert shown(net, "sh", "-c", f"{ask} late.test & {ask} now.test; wait").split() == ["192.0.2.80"] * 2
        assert time.monotonic() - began >= LATE
        assert [query.number for query in resolver.queries] == [1, 2]
    with pytest.raises(ConfigurationError, match="delay soon: a time is 0 to 3600 s"):
        net.dns({}, delay="soon")
    with net.dns({"*": "192.0.2.80"}, delay=f"{LATE}s") as resolver:
        began = time.monotonic()
        assert dig(net, f"@{resolver.address}", "a.test") == ["192.0.2.80"]
        assert time.monotonic() - began >= LATE


def test_a_truncated_answer_is_asked_for_again_by_tcp(net: gpasst.Pasta) -> None:
    with net.dns({"*": "192.0.2.80"}, truncate=lambda query: query.number == 1) as resolver:
        for _ in range(2):
            assert dig(net, f"@{resolver.address}", "a.test") == ["192.0.2.80"]
        assert [query.transport for query in resolver.queries] == ["udp", "tcp", "udp"]
    with net.dns({"*": "192.0.2.80"}, truncate=True) as resolver:
        assert dig(net, f"@{resolver.address}", "+ignore", "a.test") == []
        assert dig(net, f"@{resolver.address}", "+keepopen", "+tcp", "a.test", "b.test") == ["192.0.2.80"] * 2


def test_silence_lets_a_client_ask_again(net: gpasst.Pasta) -> None:
    with net.dns({"a.test": "SILENCE"}) as resolver:
        done = net.run(
            [need("dig"), f"@{resolver.address}", "+time=1", "+tries=2", "a.test"], stdout=subprocess.DEVNULL
        )
        assert done.returncode == 9
        assert len(resolver.queries) == 2


def test_an_address_of_the_tests_choice(net: gpasst.Pasta) -> None:
    with net.dns({"a.test": "192.0.2.80"}, address="2001:db8:2::53") as resolver:
        assert resolver.address == "2001:db8:2::53"
        assert shown(net, "getent", "ahostsv4", "a.test").split()[0] == "192.0.2.80"
        with pytest.raises(ConfigurationError, match="udp 2001:db8:2::53 port 53 is served already"):
            net.dns({}, address="2001:db8:2::53")
        with net.dns({"a.test": "192.0.2.81"}):
            assert shown(net, "getent", "ahostsv4", "a.test").split()[0] == "192.0.2.81", "the newest counts"
        assert shown(net, "getent", "ahostsv4", "a.test").split()[0] == "192.0.2.80"
    with net.dns({"a.test": "192.0.2.80"}, address="2001:db8:2::53"):
        assert shown(net, "getent", "ahostsv4", "a.test").split()[0] == "192.0.2.80"


def test_an_error_of_a_function_is_kept(net: gpasst.Pasta) -> None:
    def delay(query: Query) -> float:
        raise LookupError(query.name)

    with net.dns({"*": "192.0.2.80"}, delay=delay) as resolver:
        assert dig(net, f"@{resolver.address}", "a.test", "+time=1")[-1:] != ["192.0.2.80"]
        assert resolver.errors[0].endswith("LookupError: a.test")
        assert net.handler_errors[-1] == resolver.errors[0]


@pytest.mark.parametrize(
    "fields",
    [{"ipv6_only": True}, {"no_tcp": True}, {"address": "192.0.2.53"}, {"address": "10.1.2.3", "gateway": "10.1.2.1"}],
    ids=["ipv6", "without-tcp", "its-own-address", "elsewhere"],
)
def test_it_is_reached_in_every_network(fields: dict[str, Any]) -> None:
    with gpasst.Pasta(config_net=True, **fields) as net, net.dns({"a.test": "192.0.2.80"}) as resolver:
        assert dig(net, "a.test") == ["192.0.2.80"]
        assert len(resolver.queries) == 1


def test_a_virtual_machine_asks_it(remote: Remote) -> None:
    del remote
    with machines.stream() as machine, machine.net.dns({"a.test": "192.0.2.80"}, address="203.0.113.53"):
        answer = machine.run([need("dig"), "@203.0.113.53", "+short", "a.test"])
        assert answer.split() == ["192.0.2.80"]


def test_what_is_no_query_costs_one_answer(net: gpasst.Pasta) -> None:
    with net.dns({}) as resolver, net.socket() as sock:
        sock.settimeout(5)
        sock.connect((resolver.address, 53))
        sock.send(b"\x12\x34" + bytes(20))
        assert sock.recv(99)[:4] == b"\x12\x34\x80\x01"
        assert resolver.queries == ()
        with net.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
            stream.settimeout(5)
            assert stream.connect_ex((resolver.address, 53)) == 0
            stream.sendall(b"\0\5ab")
            stream.shutdown(socket.SHUT_WR)
            assert stream.recv(9) == b""
        assert resolver.errors == ()
