"""The batch engine against one datagram at a time: same datagrams, same order, whatever the burst and the path."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import gpasst
from gpasst.linux import UDP_SEGMENT
from tests.support.engines import ENGINES, SENDERS, bursts, datagrams, receive_all, send_all
from tests.support.families import ANY, FAMILY
from tests.support.guests import resolve_gateway
from tests.support.lab import (
    FAR,
    FAR4,
    HOST,
    HOST4,
    NARROW,
    NARROW_MTU,
    Remote,
    bound,
)

pytestmark = pytest.mark.usefixtures("tun", "remote")

PORT = 5000


@pytest.fixture(params=ENGINES, scope="module")
def net(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    del tun
    with gpasst.Pasta(config_net=True, udp_ports=str(PORT), **ENGINES[request.param]) as opened:
        resolve_gateway(opened, remote)
        yield opened


def check(senders: list[socket.socket], receiver: socket.socket, burst: Any, to: Any, host: str) -> None:
    """Send a burst, and compare what arrived: by sender, in order, nothing else."""
    sent = send_all(senders, burst, to)
    got = receive_all(receiver, sum(map(len, sent)))
    assert got == {(host, sender.getsockname()[1]): data for sender, data in zip(senders, sent, strict=True) if data}


@pytest.mark.parametrize("family", [4, 6])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(burst=bursts())
def test_random_bursts(net: gpasst.Pasta, remote: Remote, family: int, burst: list[tuple[int, int, int]]) -> None:
    with ExitStack() as stack:
        far = stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family]))
        guest = stack.enter_context(bound(net.socket(FAMILY[family]), ANY[family], PORT))
        clients = [stack.enter_context(bound(remote.socket(FAMILY[family]), FAR[family])) for _ in range(SENDERS)]
        check(clients, guest, burst, (HOST[family], PORT), FAR[family])
        guests = [stack.enter_context(bound(net.socket(FAMILY[family]), HOST[family])) for _ in range(SENDERS)]
        sent = send_all(guests, burst, far.getsockname()[:2])
        got = receive_all(far, sum(map(len, sent)))
        # A port that an earlier example still holds may have been changed; the order within a flow may not.
        assert sorted(got.values()) == sorted(data for data in sent if data)


@pytest.mark.parametrize("family", [4, 6])
def test_more_segments_than_one_send_may_have(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    with (
        bound(remote.socket(FAMILY[family]), FAR[family]) as far,
        bound(net.socket(FAMILY[family]), HOST[family]) as guest,
    ):
        payload = bytes(i * 7 & 0xFF for i in range(100 * 128 - 28))
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 128))]
        guest.sendmsg([payload], control, 0, far.getsockname()[:2])
        received = [far.recvfrom(65535) for _ in range(100)]
        assert [data for data, _ in received] == datagrams(payload, 128)
        far.sendmsg([payload], control, 0, received[0][1])
        assert [guest.recv(65535) for _ in range(100)] == datagrams(payload, 128)


@pytest.mark.parametrize("family", [4, 6])
def test_a_path_narrower_than_the_segments(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    """The kernel refuses to cut such superframes; the datagrams arrive all the same, in fragments."""
    assert NARROW_MTU < 1400
    with (
        bound(remote.socket(FAMILY[family]), NARROW[family]) as far,
        bound(net.socket(FAMILY[family]), HOST[family]) as guest,
    ):
        payload = bytes(i * 5 & 0xFF for i in range(20 * 1400 + 99))
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1400))]
        guest.sendmsg([payload], control, 0, far.getsockname()[:2])
        assert [far.recv(65535) for _ in range(21)] == datagrams(payload, 1400)


def test_what_is_counted(tun: None, remote: Remote) -> None:
    with gpasst.Pasta(config_net=True) as net:
        with bound(remote.socket(socket.AF_INET), FAR4) as far, bound(net.socket(), HOST4) as guest:
            control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1000))]
            guest.sendmsg([bytes(10_500)], control, 0, far.getsockname())
            (sender,) = {far.recvfrom(65535)[1] for _ in range(11)}
            far.sendmsg([bytes(10_500)], control, 0, sender)
            assert sum(len(guest.recv(65535)) for _ in range(11)) == 10_500
        now = net.statistics()
        assert (now.datagrams_up, now.datagrams_down) == (11, 11)
        assert (now.superframes_up, now.superframes_down) == (1, 1)
        assert (now.bytes_up, now.bytes_down) == (10_500, 10_500)
