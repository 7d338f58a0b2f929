"""Networks whose parts are joined by trunks, in one process and in two. Takes 3 seconds."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import gpasst
from gpasst.testing import assert_flat
from tests.support.hosts import DEADLINE, address, await_loss, carried, connected
from tests.support.need import need
from tests.support.ready import until

pytestmark = pytest.mark.usefixtures("tun", "remote")

SECRET = "of both"
OTHER_PROCESS = """
import sys, gpasst
with gpasst.Network("lan", part=int(sys.argv[2])) as lan:
    host = lan.host("b")
    lan.trunk(connect=sys.argv[1])
    with host.socket() as sock:
        sock.bind((host.ip4, 7))
        print(host.ip4, host.ip6, flush=True)
        data, peer = sock.recvfrom(1 << 16)
        sock.sendto(data.upper(), peer)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trunk"


@pytest.fixture
def pair(path: Path) -> Iterator[tuple[gpasst.Host, gpasst.Host]]:
    """Two hosts of different parts, with a trunk between these."""
    with gpasst.Network("lan", part=0) as one, gpasst.Network("lan", part=1) as two:
        hosts = one.host("a"), two.host("b")
        one.trunk(listen=path)
        two.trunk(connect=path)
        yield hosts


def test_parts_have_addresses_of_their_own(pair: tuple[gpasst.Host, gpasst.Host]) -> None:
    a, b = pair
    assert (a.ip4, a.ip6) == ("10.78.0.2", "fd78::2")
    assert (b.ip4, b.ip6) == ("10.78.1.2", "fd78::102")


def test_hosts_find_those_of_other_parts_by_name(path: Path) -> None:
    need("getent")
    with gpasst.Network("lan", part=0) as one, gpasst.Network("lan", part=1) as two:
        a = one.host("a")
        ask = a.popen(["sh", "-c", "read go; exec getent hosts b"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        one.trunk(listen=path)
        two.trunk(connect=path)
        assert two.wait_host("a") == (a.ip4, a.ip6)
        b = two.host("b")
        assert one.wait_host("b") == (b.ip4, b.ip6)
        until(lambda: b"b\n" in a.run(["cat", "/etc/hosts"], capture_output=True).stdout, "the name")
        found, _ = ask.communicate(b"\n", timeout=DEADLINE)
        assert found.split() == [b.ip6.encode(), b"b"], "a program that ran before"
        b.close()
        until(lambda: b"b\n" not in a.run(["cat", "/etc/hosts"], capture_output=True).stdout, "no name")
        with pytest.raises(gpasst.PlatformError, match="network lan has no host b; open it within"):
            one.wait_host("b", timeout=0.01)


def test_parts_without_numbers_are_refused(path: Path) -> None:
    """They are in two processes usually, where both choose the same addresses."""
    lan = partial(gpasst.Network, subnet4="10.9.0.0/24", subnet6="fd09::/64")
    with lan() as one, lan() as two:
        for part in (one, two):
            part.host("a")
        one.trunk(listen=path)
        with pytest.raises(gpasst.ConfigurationError, match="the same addresses; give each part a number of its own"):
            two.trunk(connect=path)


def test_parts_of_two_networks_are_refused(path: Path) -> None:
    with gpasst.Network("lan", part=0) as one, gpasst.Network("lan") as two:
        one.trunk(listen=path)
        with pytest.raises(gpasst.ConfigurationError, match="other prefixes; give all parts the same subnet4"):
            two.trunk(connect=path)


def test_hosts_of_two_parts_ping_each_other(pair: tuple[gpasst.Host, gpasst.Host], family: int) -> None:
    need("ping")
    for host, other in (pair, pair[::-1]):
        host.run(
            ["ping", "-c1", "-W5", "-s", "4000", address(other, family)],
            check=True,
            capture_output=True,
            timeout=DEADLINE,
        )


def test_a_stream_crosses_a_trunk_whole(pair: tuple[gpasst.Host, gpasst.Host], family: int) -> None:
    a, b = pair
    sent = bytes(range(256)) * 8192
    with connected(b, a, family) as (client, accepted):
        assert carried(sent, client, accepted) == sent


def test_a_trunk_over_tcp_listens_on_loopback() -> None:
    with gpasst.Network("lan", part=0) as one, gpasst.Network("lan", part=1) as two:
        trunk = one.trunk(listen="0", secret=SECRET)
        assert re.fullmatch(r"127\.0\.0\.1:\d+", trunk.address)
        other = two.trunk(connect=trunk.address, secret=SECRET.encode())
        trunk.wait(DEADLINE)
        assert (trunk.peers, other.peers) == (1, 1)
        sixth = one.trunk(listen="[::1]:0", secret=SECRET)
        assert re.fullmatch(r"\[::1\]:\d+", sixth.address)


def test_a_trunk_has_weather_like_a_link(path: Path) -> None:
    with gpasst.Network("lan", part=0) as one, gpasst.Network("lan", part=1) as two:
        a, b = one.host("a"), two.host("b")
        one.trunk(listen=path)
        trunk = two.trunk(connect=path)
        with (
            a.socket() as server,
            b.socket() as client,
            one.capture(filter="udp") as behind,
            two.capture(filter="udp") as capture,
        ):
            server.settimeout(DEADLINE)
            server.bind((a.ip4, 7))
            client.connect((a.ip4, 7))
            with two.link(trunk).impair(loss=1.0):
                client.send(b"lost")
                await_loss(capture, b"lost")
            with one.partition([a], ["trunk#1-1"]):
                client.send(b"cut off")
                await_loss(behind, b"cut off")
            client.send(b"there")
            assert server.recv(100) == b"there"
        shown = [(frame.link, frame.payload, bool(frame.fate)) for frame in capture.frames]
        assert shown == [
            ("b", b"lost", False),
            ("trunk#1", b"lost", True),
            ("b", b"cut off", False),
            ("trunk#1", b"cut off", False),
            ("b", b"there", False),
            ("trunk#1", b"there", False),
        ]


def test_parts_in_two_processes(path: Path) -> None:
    with gpasst.Network("lan", part=0) as lan, lan.host("a").socket() as sock:
        trunk = lan.trunk(listen=path)
        sock.settimeout(DEADLINE)
        for part in (1, 2):
            command = [sys.executable, "-c", OTHER_PROCESS, str(path), str(part)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
                try:
                    assert other.stdout is not None
                    ip4, ip6 = other.stdout.readline().split()
                    assert (ip4, ip6) == (f"10.78.{part}.2", f"fd78::{part}02")
                    sock.sendto(b"hello", (ip4, 7))
                    assert sock.recvfrom(100) == (b"HELLO", (ip4, 7))
                finally:
                    other.kill()
            until(lambda: not trunk.peers, "the end of the trunk")


def test_a_side_that_comes_first_waits_for_the_other(path: Path) -> None:
    with gpasst.Network("lan", part=0) as one, gpasst.Network("lan", part=1) as two:
        early = two.trunk(connect=path, timeout=0)
        assert not early.peers
        with pytest.raises(gpasst.PlatformError, match=r"No such file or directory; begin"):
            early.wait(0.01)
        late = one.trunk(listen=path)
        early.wait(DEADLINE)
        late.close()
        with pytest.raises(gpasst.PlatformError, match="closed"):
            late.wait(DEADLINE)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with gpasst.Network("lan") as lan:
        trunk = lan.trunk(listen="0", secret=SECRET)
        for options, text in (
            ({}, "a trunk listens or connects; give listen or connect, and not both"),
            ({"listen": "1", "connect": "2"}, "a trunk listens or connects"),
            ({"listen": "127.0.0.1:0"}, "listen 127.0.0.1:0: a trunk over TCP needs a secret"),
            ({"connect": "4000"}, "connect 127.0.0.1:4000: a trunk over TCP needs a secret"),
            ({"listen": "here", "secret": SECRET}, "listen here is no address; write it like 127.0.0.1:4000"),
            ({"listen": "::1:40", "secret": SECRET}, "listen ::1:40 is no address"),
            ({"listen": "127.0.0.1:65536", "secret": SECRET}, "listen 127.0.0.1:65536 is no address"),
            ({"listen": "9" * 5000, "secret": SECRET}, " is no address"),
            ({"listen": "300.1.2.3:40", "secret": SECRET}, "listen 300.1.2.3:40: "),
            ({"listen": 4000, "secret": SECRET}, "listen 4000 is no address"),
            ({"listen": "0", "secret": 7}, "secret of the type int; give text or bytes"),
            ({"listen": tmp_path}, f"listen {tmp_path} exists and is no socket"),
            ({"connect": "/" + "x" * 200}, "is longer than 107 bytes"),
            ({"connect": trunk.address, "secret": "another"}, "the other end has another secret; give both ends"),
            ({"connect": trunk.address, "secret": SECRET}, "it would close a loop"),
        ):
            with pytest.raises(gpasst.ConfigurationError) as caught:
                lan.trunk(**options)
            assert text in str(caught.value)
            assert caught.value.remedy
        with pytest.raises(gpasst.PlatformError, match="Connection refused"):
            lan.trunk(connect="1", secret=SECRET, timeout=0.01)
        with pytest.raises(gpasst.PlatformError, match=r"listen 192\.0\.2\.77 port 1: "):
            lan.trunk(listen="192.0.2.77:1", secret=SECRET)
        assert lan.call(lambda parts: parts.switch.ports) == []


def test_all_is_returned_at_close(path: Path) -> None:
    with gpasst.Network("lan", part=0) as one, gpasst.Network("lan", part=1) as two:

        def once() -> None:
            with one.trunk(listen=path) as listener, two.trunk(connect=path) as side:
                assert (listener.peers, side.peers) == (1, 1)

        assert_flat(once, repeats=10)
