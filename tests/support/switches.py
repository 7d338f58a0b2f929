"""A switch whose ports keep what is written to them."""

from __future__ import annotations

from gpasst.counters import Counters
from gpasst.link.switch import Data, Port, Switch
from gpasst.wire import VIRTIO_NET_BLANK

BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def frame(to: bytes, sender: bytes, payload: bytes = b"payload") -> bytes:
    return VIRTIO_NET_BLANK + to + sender + b"\x08\0" + payload


class Kept(Port):
    """A port that keeps what is written to it."""

    def __init__(self, name: str, counters: Counters) -> None:
        super().__init__(name, counters)
        self.got: list[bytes] = []

    def write(self, data: Data) -> None:
        self.got.append(bytes(data))


class World:
    """A switch with three ports, whose addresses are `mac` of their numbers."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.switch = Switch(self.counters)
        self.ports = [Kept(name, self.counters) for name in "abc"]
        for number, port in enumerate(self.ports):
            self.switch.add(port, mac(number))

    def got(self) -> list[int]:
        return [len(port.got) for port in self.ports]
