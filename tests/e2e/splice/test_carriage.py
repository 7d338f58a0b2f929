"""What splice pairs carry, and what closed ports do to them."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpasst
from gpasst.linux import UDP_SEGMENT
from gpasst.path import udp_splice
from tests.support.engines import datagrams, receive_all, send_all
from tests.support.ready import until
from tests.support.ways import OTHER_SERVICE, PRIVILEGED, Way, drops, exchange, serve, superframes_only

pytestmark = pytest.mark.usefixtures("tun", "remote")


@pytest.mark.parametrize("size", [0, 1, 2, 1472, 1473, 8000, 65479, 65480, 65487, 65507, 65527])
def test_sizes(way: Way, size: int) -> None:
    if size > 65507 and way.family == 4:
        size = 65507
    payload = bytes(i * 7 & 0xFF for i in range(size))
    with way.service() as service, way.client() as client:
        exchange(way, client, service, payload)


@pytest.mark.parametrize("segment", [1, 500, 1000, 1472, 8000])
def test_superframes_of_applications_both_ways(way: Way, segment: int) -> None:
    payload = bytes(i * 11 & 0xFF for i in range(min(64 * segment - 1, 60_000)))
    expected = datagrams(payload, segment)
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", segment))]
    with way.service() as service, way.client() as client:
        client.sendmsg([payload], control, 0, (way.address, way.port))
        got = [service.recvfrom(65535) for _ in expected]
        assert [data for data, _ in got] == expected
        service.sendmsg([payload], control, 0, got[0][1])
        assert [client.recv(65535) for _ in expected] == expected


@st.composite
def bursts(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Sends as (sender, payload bytes, segment bytes) that fit the receive buffer of an ordinary user."""
    burst: list[tuple[int, int, int]] = []
    room = 90_000
    for _ in range(draw(st.integers(1, 10))):
        sender = draw(st.integers(0, 2))
        size = draw(st.sampled_from([0, 1, 64, 1400, 1472, 1473, 8000]) | st.integers(0, 3000))
        kind = draw(st.sampled_from(["train", "single", "superframe"]))
        if kind == "train":
            sends = [(sender, size, size)] * draw(st.integers(2, 8))
        elif kind == "single" or not size:
            sends = [(sender, size, size)]
        else:
            segment = min(size, 1400)
            sends = [(sender, draw(st.integers(segment, segment * 12)), segment)]
        room -= sum(payload for _, payload, _ in sends)
        if room < 0:
            break
        burst += sends
    return burst


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(burst=bursts())
def test_random_bursts(way: Way, burst: list[tuple[int, int, int]]) -> None:
    """Nothing is lost, changed or reordered within a flow, in either direction."""
    with way.service() as service, ExitStack() as stack:
        clients = [stack.enter_context(way.client()) for _ in range(3)]
        shown = [exchange(way, client, service) for client in clients]
        sent = send_all(clients, burst, (way.address, way.port))
        got = receive_all(service, sum(map(len, sent)))
        assert got == {sender: data for sender, data in zip(shown, sent, strict=True) if data}
        for number, size, segment in burst:
            payload = bytes((number * 37 + i) & 0xFF for i in range(size))
            control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", segment))] if segment < size else []
            service.sendmsg([payload], control, 0, shown[number])
            expected = datagrams(payload, segment)
            assert [clients[number].recv(65535) for _ in expected] == expected


@superframes_only
@pytest.mark.parametrize("strays", [3, 100])
def test_what_strangers_send_before_a_pair_is_connected_is_dropped(
    way: Way, strays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches nobody, and harms nothing of the burst that the pair was made for."""
    bind = udp_splice._bind  # noqa: SLF001  # nothing public happens between bind and connect

    def bind_slowly(sock: Any, family: int, *rest: Any) -> None:
        bind(sock, family, *rest)
        for _ in range(strays):
            stranger.sendto(b"stray" * 280, (way.address, sock.getsockname()[1]))

    port, reason = way.free_port(), gpasst.Drop.SPLICE_STRAY.value
    monkeypatch.setattr(udp_splice, "_bind", bind_slowly)
    before = way.net.statistics().drops.get(reason, 0)
    expected = [b"%d" % number * 1400 for number in range(5)]
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1400))]
    with way.service() as service, way.service(port=0) as stranger, way.client(port=port) as client:
        client.sendmsg([b"".join(expected)], control, 0, (way.address, way.port))
        got = [service.recvfrom(65535) for _ in expected]
        assert [data for data, _ in got] == expected
        service.sendto(b"answer", got[0][1])
        assert client.recv(9) == b"answer"
    assert way.net.statistics().drops[reason] == before + strays


def test_a_closed_port_is_reported_and_opens_later(way: Way) -> None:
    """The error ends with the service's start, and takes nothing with it."""
    with way.client() as client:
        client.connect((way.address, way.port))
        before = way.net.statistics()
        for turn in range(1, 3):
            client.send(b"too early")
            if way.outward or PRIVILEGED:
                with pytest.raises(ConnectionRefusedError):
                    client.recv(9)
            expected = before.socket_errors + turn
            until(lambda minimum=expected: way.net.statistics().socket_errors >= minimum, "refused")
        refusals = 2 if way.outward or PRIVILEGED else 0
        assert way.net.statistics().refusals == before.refusals + refusals
        with way.service() as service:
            for data in (b"first", b"second"):
                client.send(data)
                assert [heard for heard, _ in serve(service)] == [data]
                assert client.recv(9) == data
        assert drops(way.net.statistics()) == drops(before)


@superframes_only
def test_a_burst_to_a_closed_port_ends_with_an_open_one(way: Way) -> None:
    """Unconnected senders are not told, and go on; what they send after the service's start arrives."""
    with way.client() as client, way.client() as marker:
        before = way.net.statistics().socket_errors
        for _ in range(20):
            client.sendto(b"too early", (way.address, way.port))
        until(lambda: way.net.statistics().socket_errors > before, "refused")
        with way.service(OTHER_SERVICE) as other:
            # Ahead of what follows here is all that was sent before.
            marker.sendto(b"mark", (way.address, way.other_port))
            serve(other)
        with way.service() as service:
            client.sendto(b"in time", (way.address, way.port))
            until(lambda: service.recv(99) == b"in time", "the datagram after the service's start")
