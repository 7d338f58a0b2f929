"""What a mapping with one peer takes of memory, as a scan makes them by the thousand."""

from __future__ import annotations

import gc
import tracemalloc

from gpasst.flow.activity import COLD_SECONDS
from gpasst.flow.guest import Guest
from gpasst.host.receive import sender_key
from gpasst.host.send import sender_to
from gpasst.udp.mapping import UdpSocket
from gpasst.udp.nat import UdpNat
from gpasst.wire import HOP_LIMIT
from tests.support.addresses import GUEST4, GUEST6, GUEST_MAC, SERVER4, SERVER6, ip
from tests.support.families import FAMILIES
from tests.support.networks import guest_network

MAPPINGS = 5000  # each to a remote end of its own
FIRST_PORT = 20000
PREFIX = {4: 2, 6: 14}  # bytes that the remote ends have in common
# Bytes of a kB that are left for what is counted here: an interpreter's socket and what watches it take 150.
SENT = 870
ANSWERED = 1140  # with the headers of its answers
IDLE = 690


class Socket:
    """In the place of a host's socket, of which there may not be as many."""

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


class Opener:
    """Opens what has no socket of the kernel's."""

    def __init__(self) -> None:
        self._socket = Socket()

    def open(self, family: int, port: int) -> UdpSocket:
        return UdpSocket(family, int(str(port)), self._socket)  # type: ignore[arg-type]  # it sends nothing

    def close(self, udp_socket: UdpSocket) -> None: ...


@FAMILIES
def test_mappings_take_less_than_a_kilobyte_each(family: int) -> None:
    nat = UdpNat(Guest(guest_network(), GUEST_MAC), Opener(), sender_key, now=1000)
    guest, server = ip({4: GUEST4, 6: GUEST6}[family]), ip({4: SERVER4, 6: SERVER6}[family])
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        peers = []
        for number in range(MAPPINGS):
            remote = server[: PREFIX[family]] + number.to_bytes(2, "big")
            # Each packet brings addresses and ports of its own.
            peers.append(nat.outbound(family, bytes(bytearray(guest)), remote, FIRST_PORT + number, 1000 + 53))
            sender_to(peers[-1])
        del peers
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        assert (held - before) / MAPPINGS < SENT
        for peer in nat.tables[family]:
            nat.header(peer, HOP_LIMIT).fill(1200, 1200)
        held, _ = tracemalloc.get_traced_memory()
        assert (held - before) / MAPPINGS < ANSWERED
        for _ in nat.scan(1001 + COLD_SECONDS, 180):
            pass
        held, _ = tracemalloc.get_traced_memory()
        assert (held - before) / MAPPINGS < IDLE
    finally:
        tracemalloc.stop()
    nat.close()
