"""``gpasst demo``: a namespace, services on either side, datagrams both ways on every path, and streams of TCP.

Everything that it prints was measured while it ran; a datagram that was lost or changed, or a stream that did not
arrive whole, makes the exit status 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gpasst.api.pasta import Pasta
from gpasst.commands.process import say
from gpasst.errors import PlatformError
from gpasst.host.sockets import text
from gpasst.packet.address import ANY, is_link_local
from gpasst.records import asdict, dataclass
from gpasst.testing.ports import free_ports

PEER = os.path.join(os.path.dirname(__file__), "demo_peer.py")
INSIDE_PORT = 7000
STREAMS_PORT = 7002  # of the namespace
LOOPBACK_PORT = 7100  # of the namespace; leads to the host's loopback
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ROW_SECONDS = 10  # for one path; it takes a fraction of one

COLUMNS = (
    f"{'path':<52} {'sent':>7} {'received':>9}  {'payload':<8} {'round trip':>10} {'datagrams/s':>12} {'Mbit/s':>8}"
)


STREAM_COLUMNS = (
    f"{'path':<30} {'TCP':<8} {'Mbit/s to it':>14} {'Mbit/s from it':>16} {'connections/s':>15} {'round trip':>12}"
)


@dataclass(frozen=True, slots=True)
class Streams:
    """What TCP moved on one path; a figure is None where the client did not get that far.

    :ivar path: client and service.
    :ivar intact: whether all that was sent arrived, unchanged, and nothing else.
    :ivar megabits_per_second_out: of one stream to the service.
    :ivar megabits_per_second_in: of one stream from the service.
    :ivar connections_per_second: connections, with one exchange each, one after the other.
    :ivar round_trip_us: median of exchanges on one connection, in microseconds.
    """

    path: str
    intact: bool
    megabits_per_second_out: float | None = None
    megabits_per_second_in: float | None = None
    connections_per_second: int | None = None
    round_trip_us: float | None = None

    def __str__(self) -> str:
        cells = [
            "-" if value is None else f"{value:,.0f}"
            for value in (
                self.megabits_per_second_out,
                self.megabits_per_second_in,
                self.connections_per_second,
                self.round_trip_us,
            )
        ]
        verdict = "intact" if self.intact else "FAILED"
        return f"{self.path:<30} {verdict:<8} {cells[0]:>14} {cells[1]:>16} {cells[2]:>15} {cells[3]:>9} us"


@dataclass(frozen=True, slots=True)
class Row:
    """The results of one path.

    :ivar path: sender, receiver, and how datagrams are sent.
    :ivar sent: datagrams sent.
    :ivar received: echoes received.
    :ivar wrong: echoes that differ from what was sent.
    :ivar round_trip_us: median of single round trips, in microseconds.
    :ivar datagrams_per_second: datagrams echoed per second with a window under way.
    :ivar megabits_per_second: their payload.
    """

    path: str
    sent: int
    received: int
    wrong: int
    round_trip_us: float
    datagrams_per_second: int
    megabits_per_second: float

    @property
    def good(self) -> bool:
        """Whether all datagrams came back, unchanged."""
        return self.sent == self.received > 0 and not self.wrong


def run(as_json: bool = False) -> int:
    """Run the demo; return the exit status.

    :param as_json: print the figures as one line of JSON instead of a table.
    :raises GpasstError: if a namespace, the service or the client cannot be started, or standard output is in the way.
    """
    began = time.perf_counter()
    forwarded, remapped, outside = free_ports(3, "udp")
    forwarded_tcp, outside_tcp = free_ports(2, "tcp")
    show: Callable[[str], None] = (lambda line: None) if as_json else say
    rows: list[Row] = []
    ports = f"{forwarded}:{INSIDE_PORT},{remapped}:{INSIDE_PORT + 1}"
    streams: list[Streams] = []
    with Pasta(
        config_net=True,
        udp_ports=ports,
        udp_ns=f"{LOOPBACK_PORT}:{outside}",
        tcp_ports=f"{forwarded_tcp}:{STREAMS_PORT}",
    ) as net:
        opened = time.perf_counter() - began
        families = [network.family for network in (net.network.ip4, net.network.ip6) if network]
        show(f"A namespace with the network of this machine, ready in {opened * 1000:.0f} ms.\n")
        show(COLUMNS)
        show("-" * len(COLUMNS))
        for row in _rows(net, families, forwarded, remapped, outside):
            rows.append(row)
            verdict = "intact" if row.good else "WRONG" if row.wrong else "LOST"
            show(
                f"{row.path:<52} {row.sent:>7} {row.received:>9}  {verdict:<8} {row.round_trip_us:>7.0f} us "
                f"{row.datagrams_per_second:>12,} {row.megabits_per_second:>8,.0f}"
            )
        statistics = net.statistics()
        show(f"\n{STREAM_COLUMNS}\n{'-' * len(STREAM_COLUMNS)}")
        for result in _streams(net, families, forwarded_tcp, outside_tcp):
            streams.append(result)
            show(str(result))
    good = bool(rows) and all(row.good for row in rows) and all(result.intact for result in streams)
    seconds = time.perf_counter() - began
    if as_json:
        lists = {"rows": [asdict(row) for row in rows], "streams": [asdict(result) for result in streams]}
        say(json.dumps({"good": good, "seconds": round(seconds, 3), **lists}))
        return 0 if good else 1
    show(
        f"\nThe proxy moved {statistics.datagrams_up + statistics.datagrams_down:,} datagrams through the tap and "
        f"{statistics.datagrams_spliced:,} past it, "
        f"{statistics.superframes_up + statistics.superframes_down + statistics.superframes_spliced:,} times several "
        "in one system call."
    )
    show(f"{'All arrived, unchanged.' if good else 'Something was lost or changed.'} It took {seconds:.1f} s.")
    return 0 if good else 1


def _rows(net: Pasta, families: list[int], forwarded: int, remapped: int, outside: int) -> Iterator[Row]:
    """Try every path."""
    gateways = {4: net.gateway4, 6: net.gateway6}
    own = {network.family: network.host_addresses for network in (net.network.ip4, net.network.ip6) if network}
    with ExitStack() as stack:
        for family in families:
            stack.enter_context(_service(ANY[family], outside, None))
            stack.enter_context(_service(ANY[family], INSIDE_PORT, net))
            moved = stack.enter_context(_service(ANY[family], INSIDE_PORT + 1, net))
            paths: list[tuple[str, str, int, Pasta | None]] = [
                ("namespace -> host", gateways[family], outside, net),
                ("namespace -> host's loopback", LOOPBACK[family], LOOPBACK_PORT, net),
                ("host's loopback -> namespace", LOOPBACK[family], forwarded, None),
            ]
            # From loopback a datagram would go past the tap.
            paths += [("host -> namespace", text(address), forwarded, None) for address in _global(own[family])[:1]]
            for words, address, port, place in paths:
                for mode, how in (("single", "one by one"), ("gso", "GSO, 31 a call")):
                    yield _row(f"IPv{family}  {words:<30}{how}", address, port, mode, place)
            path = f"IPv{family}  {f'host -> port {remapped}:{moved}':<30}one by one"
            yield _row(path, LOOPBACK[family], remapped, "single", None)


def _global(addresses: Iterable[bytes]) -> list[bytes]:
    """Return those of the host's addresses that are not link-local."""
    return sorted(address for address in addresses if not is_link_local(address))


def _row(path: str, address: str, port: int, mode: str, net: Pasta | None) -> Row:
    """Exchange datagrams with a service, from the host or from within `net`."""
    return Row(path, **_client(net, "exchange", address, str(port), mode))


def _streams(net: Pasta, families: list[int], forwarded: int, outside: int) -> Iterator[Streams]:
    """Move streams through the tap, both ways on each path."""
    gateways = {4: net.gateway4, 6: net.gateway6}
    own = {network.family: network.host_addresses for network in (net.network.ip4, net.network.ip6) if network}
    with ExitStack() as stack:
        for family in families:
            stack.enter_context(_service(ANY[family], outside, None, "serve-streams"))
            stack.enter_context(_service(ANY[family], STREAMS_PORT, net, "serve-streams"))
            yield Streams(f"IPv{family}  namespace -> host", **_client(net, "streams", gateways[family], str(outside)))
            for address in _global(own[family])[:1]:
                yield Streams(
                    f"IPv{family}  host -> namespace", **_client(None, "streams", text(address), str(forwarded))
                )


def _client(net: Pasta | None, *words: str) -> dict[str, Any]:
    """Run the demo's client on the host or within `net`; return its figures."""
    command = [sys.executable, "-I", "-S", PEER, *words]
    run_program = subprocess.run if net is None else net.run
    done = run_program(command, capture_output=True, text=True, timeout=ROW_SECONDS, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PlatformError(f"the demo's client failed: {last}", "please report this with the line above")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@contextmanager
def _service(address: str, port: int, net: Pasta | None, mode: str = "serve") -> Iterator[int]:
    """Run a service on the host or within `net`; yield its port."""
    command = [sys.executable, "-I", "-S", PEER, mode, address, str(port)]
    start = subprocess.Popen if net is None else net.popen
    service = start(command, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        line = service.stdout.readline()
        if not line:
            raise PlatformError("the demo's service did not start", "see the message above")
        yield int(line)
    finally:
        service.kill()
        service.wait()
        if service.stdout is not None:
            service.stdout.close()
