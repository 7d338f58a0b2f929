"""Services of the test itself: functions that answer the guest for addresses which exist nowhere. Takes 9 seconds."""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import gevent.event
import pytest

import gpasst
from gpasst.errors import ConfigurationError
from gpasst.linux import UDP_SEGMENT
from tests.support import machines
from tests.support.families import FAMILY
from tests.support.guests import call, expire, proxy_of
from tests.support.lab import FAR, HOST4, Remote, bound
from tests.support.machines import Machine
from tests.support.ready import until
from tests.support.streams import noise
from tests.support.suites import run_suite

pytestmark = pytest.mark.usefixtures("tun", "remote")

ADDRESS = {4: "203.0.113.77", 6: "2001:db8:2::77"}
PORT = 5353
MACHINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tap-1500": (machines.tap, {"mtu": 1500}),
    "tap-65520-no-offload": (machines.tap, {"mtu": 65520, "no_offload": True}),
    "stream-1500": (machines.stream, {"mtu": 1500}),
}


@pytest.fixture(scope="module", params=MACHINES)
def machine(request: pytest.FixtureRequest, tun: None, remote: Remote) -> Iterator[Machine]:
    del tun, remote
    make, options = MACHINES[request.param]
    with make(**options) as opened:
        yield opened


@pytest.fixture(scope="module")
def net(tun: None, remote: Remote) -> Iterator[gpasst.Pasta]:
    del tun, remote
    with gpasst.Pasta(config_net=True) as opened:
        yield opened


def echo(data: bytes, peer: tuple[str, int]) -> bytes:
    del peer
    return data


def reflect(stream: Any, peer: tuple[str, int]) -> None:
    """Send back what comes, until its end."""
    del peer
    while data := stream.recv(1 << 16):
        stream.sendall(data)


def client(machine: Machine, family: int, kind: int = socket.SOCK_DGRAM, port: int = PORT) -> socket.socket:
    sock = machine.socket(family, kind)
    sock.connect((ADDRESS[family], port))
    return sock


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def datagrams(net: gpasst.Pasta, family: int = 4) -> socket.socket:
    """A connected UDP socket in the namespace."""
    sock = net.socket(FAMILY[family], socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((ADDRESS[family], PORT))
    return sock


def streams(net: gpasst.Pasta) -> socket.socket:
    """A connected TCP socket in the namespace."""
    sock = net.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(5)
    try:
        sock.connect((ADDRESS[4], PORT))
    except OSError:
        sock.close()
        raise
    return sock


def test_a_function_answers_datagrams(machine: Machine, family: int) -> None:
    seen = []

    def handler(data: bytes, peer: tuple[str, int]) -> bytes | None:
        seen.append((data, peer))
        return data.upper() if data != b"silence" else None

    with machine.net.serve_udp(ADDRESS[family], PORT, handler) as service, client(machine, family) as sock:
        for data in (b"silence", b"question", b""):
            sock.send(data)
        assert [sock.recvfrom(99) for _ in range(2)] == [
            (b"QUESTION", sock.getpeername()),
            (b"", sock.getpeername()),
        ]
        own = sock.getsockname()[:2]
        assert seen == [(b"silence", own), (b"question", own), (b"", own)]
        assert (service.protocol, service.address, service.port, service.calls) == ("udp", ADDRESS[family], PORT, 3)
        assert service.errors == machine.net.handler_errors == ()


def test_datagrams_of_every_size_come_back_whole(machine: Machine, family: int) -> None:
    """Those above the MTU arrive in fragments; those that stand in one superframe are answered one by one."""
    with machine.net.serve_udp(ADDRESS[family], PORT, echo), client(machine, family) as sock:
        for size in (1, 17, 18, 1452, 1472):
            sock.send(noise(size))
            assert sock.recv(65535) == noise(size)
        sock.send(noise(9000))
        assert len(sock.recv(65535)) == 9000
        payload = noise(12_500)
        sock.sendmsg([payload], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", 1000))])
        assert [sock.recv(9999) for _ in range(13)] == [payload[at : at + 1000] for at in range(0, 12_500, 1000)]
        assert sum(machine.net.statistics().drops.values()) == 0


def test_each_end_of_the_guest_is_a_flow_of_its_own(net: gpasst.Pasta, family: int) -> None:
    with net.serve_udp(ADDRESS[family], PORT, lambda data, peer: str(peer[1]).encode()):
        with datagrams(net, family) as one, datagrams(net, family) as other:
            for sock in (one, other, one):
                sock.send(b"?")
                assert int(sock.recv(9)) == sock.getsockname()[1]
            flows = [flow for flow in net.flows() if flow.protocol == "udp"]
            assert {(flow.guest[1], flow.shown, flow.remote) for flow in flows} == {
                (sock.getsockname()[1], (ADDRESS[family], PORT), (ADDRESS[family], PORT)) for sock in (one, other)
            }
            expire(net)
            assert net.flows() == ()
            one.send(b"again")
            assert int(one.recv(9)) == one.getsockname()[1]


def test_a_service_takes_over_a_flow_and_leaves_it(net: gpasst.Pasta, remote: Remote, family: int) -> None:
    """What a socket of the guest sends goes where it would go if the flow were new."""
    far = FAR[family]
    with bound(remote.socket(FAMILY[family]), far) as server:
        port = server.getsockname()[1]
        with net.socket(FAMILY[family], socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((far, port))
            sock.send(b"one")
            server.sendto(b"remote", server.recvfrom(9)[1])
            assert sock.recv(9) == b"remote"
            with net.serve_udp(far, port, lambda data, peer: b"served") as service:
                sock.send(b"two")
                assert sock.recv(9) == b"served"
            service.close()
            sock.send(b"three")
            server.sendto(b"remote", server.recvfrom(9)[1])
            assert sock.recv(9) == b"remote"


def test_an_answer_to_a_flow_that_has_ended_is_counted(net: gpasst.Pasta) -> None:
    late = gevent.event.Event()

    def wait(data: bytes, peer: tuple[str, int]) -> bytes:
        del peer
        late.wait()
        return data

    with net.serve_udp(ADDRESS[4], PORT, wait) as service, datagrams(net) as sock:
        sock.send(b"question")
        until(lambda: service.calls == 1, "the call of the handler")
        expire(net)
        call(net, late.set)
        until(lambda: net.statistics().drops.get(gpasst.Drop.ANSWER_LATE.value) == 1, "the drop of the answer")


def test_handlers_that_wait_do_not_wait_for_each_other(net: gpasst.Pasta) -> None:
    here, together = [], gevent.event.Event()

    def meet(data: bytes, peer: tuple[str, int]) -> bytes:
        del peer
        here.append(data)
        if len(here) == 20:
            together.set()
        together.wait()
        return data

    with net.serve_udp(ADDRESS[4], PORT, meet), datagrams(net) as sock:
        sent = [bytes([number]) for number in range(20)]
        for data in sent:
            sock.send(data)
        assert sorted(sock.recv(9) for _ in sent) == sent


def test_errors_of_a_handler_are_kept_and_stop_nothing(net: gpasst.Pasta, caplog: pytest.LogCaptureFixture) -> None:
    def fails(data: bytes, peer: tuple[str, int]) -> Any:
        del peer
        if data == b"raise":
            raise ValueError("a fault of the test")
        return {b"type": 7, b"fail": pytest.fail, b"size": bytes(65508)}.get(data, data)

    before = len(net.handler_errors)
    with net.serve_udp(ADDRESS[4], PORT, fails) as service, datagrams(net) as sock:
        for data in (b"raise", b"type", b"size", b"good"):
            sock.send(data)
        assert sock.recv(9) == b"good"
        raised, typed, sized = service.errors
        assert raised.startswith(f"error of the handler of udp {ADDRESS[4]} port {PORT}\nTraceback")
        assert raised.endswith("ValueError: a fault of the test")
        assert "in fails" in raised
        assert "handlers.py" not in raised
        assert typed.endswith("TypeError: the handler returned int; return bytes, or None for no answer")
        assert sized.endswith("ValueError: the handler returned 65508 bytes; a datagram has 65507 at most")
    assert net.handler_errors[before:] == (raised, typed, sized)
    assert raised in caplog.text
    assert net.statistics().drops.get(gpasst.Drop.INTERNAL.value) is None


def test_what_pytest_raises_in_a_handler_is_kept_too(net: gpasst.Pasta) -> None:
    with net.serve_udp(ADDRESS[4], PORT, lambda data, peer: pytest.fail("as a test fails")) as service:
        with datagrams(net) as sock:
            sock.send(b"?")
            until(lambda: bool(service.errors), "the error of the handler")
    assert service.errors[0].endswith("Failed: as a test fails")


def test_a_handler_may_use_the_namespace() -> None:
    with gpasst.Pasta(config_net=True, record=True) as net:

        def handler(data: bytes, peer: tuple[str, int]) -> bytes:
            with net.impair(loss=0) as rule, net.capture():
                net.remove_forward(net.add_forward("udp", "0:77"))
                assert net.run(["true"]).returncode == 0
                assert net.statistics().drops == {}
            assert rule.hits == 0
            return net.expect("udp", dport=PORT, payload=data).payload[::-1]

        with net.serve_udp(ADDRESS[4], PORT, handler) as service:
            with datagrams(net) as sock:
                sock.send(b"abc")
                assert sock.recv(99) == b"cba"
            assert service.errors == ()


def test_an_error_that_the_guest_sends_back_stays_here(net: gpasst.Pasta, family: int) -> None:
    """Its socket is gone when the answer comes; nobody but the service could hear of that."""
    gone = gevent.event.Event()

    def wait(data: bytes, peer: tuple[str, int]) -> bytes:
        del peer
        gone.wait()
        return data

    def refused() -> int:
        return net.statistics().drops.get(gpasst.Drop.GUEST_ERROR.value, 0)

    before = refused()
    with net.serve_udp(ADDRESS[family], PORT, wait) as service:
        with datagrams(net, family) as sock:
            sock.send(b"question")
            until(lambda: service.calls == 1, "the call of the handler")
        call(net, gone.set)
        until(lambda: refused() == before + 1, "the error of the guest")
    assert net.statistics().errors_down == 0


def test_a_function_has_a_conversation(machine: Machine, family: int) -> None:
    seen = []

    def shout(stream: Any, peer: tuple[str, int]) -> None:
        seen.append(peer)
        with stream.makefile("rb") as lines:
            for line in lines:
                stream.sendall(line.upper())
        stream.sendall(b"bye")

    with machine.net.serve_tcp(ADDRESS[family], PORT, shout) as service:
        with client(machine, family, socket.SOCK_STREAM) as sock:
            sock.sendall(b"hello\n")
            assert sock.recv(99) == b"HELLO\n"
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(99) == b"bye"
            assert sock.recv(99) == b""
            assert seen == [sock.getsockname()[:2]]
        assert (service.protocol, service.calls, service.errors) == ("tcp", 1, ())


def test_a_stream_arrives_whole_both_ways(machine: Machine, family: int) -> None:
    sent = noise(3 << 20)
    with machine.net.serve_tcp(ADDRESS[family], PORT, reflect), client(machine, family, socket.SOCK_STREAM) as sock:
        sender = Thread(target=send_all, args=(sock, sent))
        sender.start()
        received = bytearray()
        while data := sock.recv(1 << 18):
            received += data
        sender.join()
        assert received == sent


def test_a_reset_crosses_both_ways(net: gpasst.Pasta) -> None:
    ended = []

    def until_reset(stream: Any, peer: tuple[str, int]) -> None:
        del peer
        try:
            stream.recv(9)
        except ConnectionResetError:
            ended.append("reset")
            raise

    with net.serve_tcp(ADDRESS[4], PORT, until_reset) as service:
        with streams(net) as sock:
            until(lambda: service.calls == 1, "the call of the handler")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        until(lambda: bool(ended and service.errors), "the reset")

    def crash(stream: Any, peer: tuple[str, int]) -> None:
        raise RuntimeError("crashed")

    with net.serve_tcp(ADDRESS[4], PORT, crash) as service:
        # It may be reset while the call that connects it is still about to return.
        with pytest.raises(ConnectionResetError), streams(net) as sock:
            sock.recv(9)
        assert service.errors[0].endswith("RuntimeError: crashed")


def test_closing_a_service_resets_its_streams(net: gpasst.Pasta) -> None:
    with net.serve_tcp(ADDRESS[4], PORT, reflect) as service, streams(net) as sock:
        sock.sendall(b"x")
        assert sock.recv(9) == b"x"
        for _ in range(2):
            service.close()
        with pytest.raises(ConnectionResetError):
            sock.recv(9)


def test_the_host_has_no_socket_of_a_service(net: gpasst.Pasta) -> None:
    def listed() -> set[str]:
        found = set()
        for name in ("tcp", "tcp6", "udp", "udp6"):
            lines = Path(f"/proc/thread-self/net/{name}").read_text(encoding="ascii").splitlines()[1:]
            found |= {f"{name} {line.split()[9]}" for line in lines}
        return found

    before = listed()
    with net.serve_udp(ADDRESS[4], PORT, echo), net.serve_tcp(ADDRESS[4], PORT, reflect):
        with datagrams(net) as one, streams(net) as other:
            for sock in (one, other):
                sock.send(b"x")
                assert sock.recv(9) == b"x"
            assert listed() == before


def test_many_connections_at_once(net: gpasst.Pasta) -> None:
    with net.serve_tcp(ADDRESS[4], PORT, reflect) as service:
        socks = [streams(net) for _ in range(100)]
        for number, sock in enumerate(socks):
            sock.sendall(bytes([number]))
        assert [sock.recv(9)[0] for sock in socks] == list(range(100))
        assert service.calls == 100
        for sock in socks:
            sock.close()


def test_nothing_is_left_of_services() -> None:
    def use() -> list[weakref.ref[Any]]:
        with gpasst.Pasta(config_net=True) as other:
            with other.serve_udp(ADDRESS[4], PORT, echo), other.serve_tcp(ADDRESS[4], PORT, reflect):
                for sock in (datagrams(other), streams(other)):
                    with sock:
                        sock.send(b"x")
                        assert sock.recv(9) == b"x"
            other.serve_tcp(ADDRESS[4], PORT, reflect)
            other.dns({"*": "192.0.2.80"})
            proxy = proxy_of(other)
            assert proxy.tcp
            return [weakref.ref(part) for part in (proxy, proxy.served, proxy.udp, proxy.tcp.opener)]

    use()
    before = len(os.listdir("/proc/self/fd"))
    gc.collect()
    gc.disable()
    try:
        parts = [part for _ in range(3) for part in use()]
        until(lambda: not any(part() for part in parts), "freed without the garbage collector")
    finally:
        gc.enable()
    assert len(os.listdir("/proc/self/fd")) == before


def test_weather_acts_on_datagrams_of_services(machine: Machine, family: int) -> None:
    net = machine.net
    with net.serve_udp(ADDRESS[family], PORT, echo) as service, client(machine, family) as sock:
        with net.impair(f"to host udp dport {PORT} nth 1: loss 100%") as lost:
            for data in (b"one", b"two"):
                sock.send(data)
            assert sock.recv(99) == b"two"
            assert (lost.hits, service.calls) == (1, 1)
        with net.impair(f"to guest udp sport {PORT}: duplicate 100%"):
            sock.send(b"twice")
            assert [sock.recv(99) for _ in range(2)] == [b"twice"] * 2
        with net.impair(f"to host udp dport {PORT} nth 1: rebind") as rebound:
            sock.send(b"after a rebinding")
            assert sock.recv(99) == b"after a rebinding"
            assert rebound.hits == 1
        with net.impair(f"to host udp dport {PORT}: unreachable port"):
            sock.send(b"refused")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(99)
        errors = net.statistics().errors_down
        with net.impair(f"to guest udp sport {PORT}: unreachable port") as refused:
            sock.send(b"whose answer is refused")
            until(lambda: refused.hits == 1, "the answer")
        assert net.statistics().errors_down == errors, "the network hears nothing of services"


def test_weather_acts_on_streams_of_services(machine: Machine, family: int) -> None:
    net = machine.net
    sent = noise(200_000)
    with net.serve_tcp(ADDRESS[family], PORT, reflect) as service:
        with net.impair("tcp: loss 5% delay 1ms seed 1"), client(machine, family, socket.SOCK_STREAM) as sock:
            sender = Thread(target=send_all, args=(sock, sent))
            sender.start()
            received = bytearray()
            while data := sock.recv(1 << 18):
                received += data
            sender.join()
            assert received == sent
        with client(machine, family, socket.SOCK_STREAM) as sock:
            sock.sendall(b"x")
            assert sock.recv(9) == b"x"
            with net.impair(f"to host tcp dport {PORT}: reset"):
                # Its acknowledgement of what came back may be the first segment that meets the rule.
                with pytest.raises(ConnectionResetError):
                    sock.sendall(b"x")
                    sock.recv(9)
            until(lambda: any("ConnectionResetError" in error for error in service.errors), "the end of the stream")


def test_an_error_of_a_handler_is_in_the_report_of_a_failed_test(tmp_path: Path) -> None:
    suite = """
def test_fails(gpasst_pasta):
    def handler(data, peer):
        raise LookupError("what the handler says")

    with gpasst_pasta.serve_udp("203.0.113.77", 53, handler), gpasst_pasta.socket() as sock:
        sock.settimeout(0.2)
        sock.sendto(b"?", ("203.0.113.77", 53))
        sock.recv(9)
"""
    done = run_suite(tmp_path, suite)
    section = done.stdout.partition("-- gpasst --")[2]
    assert "  error of the handler of udp 203.0.113.77 port 53\n" in section
    assert "  LookupError: what the handler says\n" in section


@pytest.mark.parametrize(
    ("fields", "protocol", "address", "port", "message"),
    [
        ({}, "udp", "nowhere", 53, "nowhere is no IP address; name one, such as 192.0.2.53"),
        ({}, "udp", "127.0.0.1", 53, "udp 127.0.0.1 port 53 cannot be served; "),
        ({}, "udp", "224.0.0.1", 53, "udp 224.0.0.1 port 53 cannot be served; "),
        ({}, "udp", "255.255.255.255", 53, "udp 255.255.255.255 port 53 cannot be served; "),
        ({}, "tcp", "::", 53, "tcp :: port 53 cannot be served; "),
        ({}, "tcp", HOST4, 53, f"tcp {HOST4} port 53 is the guest's own address; "),
        ({}, "tcp", "192.0.2.9", 0, "tcp 192.0.2.9 port 0: no such port; choose one of 1 to 65535"),
        ({}, "udp", "192.0.2.9", 67, "udp 192.0.2.9 port 67: gpasst's own DHCP answers there; "),
        ({"no_udp": True}, "udp", "192.0.2.9", 53, "udp 192.0.2.9 port 53: the protocol is switched off; "),
        ({"no_tcp": True}, "tcp", "192.0.2.9", 53, "tcp 192.0.2.9 port 53: the protocol is switched off; "),
        ({"ipv4_only": True}, "udp", "2001:db8::9", 53, "udp 2001:db8::9 port 53: the guest has no IPv6; "),
        ({"splice_only": True, "config_net": False}, "udp", "192.0.2.9", 53, "udp 192.0.2.9 port 53 needs a tap; "),
    ],
)
def test_what_cannot_be_served_is_refused(
    fields: dict[str, Any], protocol: str, address: str, port: int, message: str
) -> None:
    with gpasst.Pasta(**{"config_net": True, **fields}) as net:
        serve: Any = net.serve_udp if protocol == "udp" else net.serve_tcp
        with pytest.raises(ConfigurationError) as caught:
            serve(address, port, echo)
        assert str(caught.value).startswith(message)


def test_an_address_is_served_once(net: gpasst.Pasta) -> None:
    for serve in (net.serve_udp, net.serve_tcp):
        with serve(ADDRESS[4], PORT, reflect) as service:
            with pytest.raises(ConfigurationError, match=f"{service.protocol} {ADDRESS[4]} port {PORT} is served"):
                serve(ADDRESS[4], PORT, reflect)
    with pytest.raises(ConfigurationError, match="cannot be called"):
        net.serve_udp(ADDRESS[4], PORT, b"answer")  # type: ignore[arg-type]
    with net.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        assert sock.connect_ex((ADDRESS[4], PORT)) in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT)


def test_a_link_local_gateway_can_be_served(net: gpasst.Pasta) -> None:
    with net.serve_udp(net.gateway6, 53, echo), net.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        address = socket.getaddrinfo(net.gateway6.partition("%")[0], 53, socket.AF_INET6)[0][4]
        sock.sendto(b"x", address)
        assert sock.recv(9) == b"x"


def test_a_closed_connection_serves_nothing() -> None:
    with gpasst.Pasta(config_net=True) as other:
        service = other.serve_udp(ADDRESS[4], PORT, echo)
    service.close()
    with pytest.raises(ConfigurationError, match="is not open"):
        other.serve_udp(ADDRESS[4], PORT, echo)
