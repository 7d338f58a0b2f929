"""An address of a new link is waited for until the kernel takes what is sent to it."""

from __future__ import annotations

from typing import cast

import pytest

from gpasst.helper import netlink
from gpasst.helper.rtnetlink import ADDRESS, NUMBER, ROUTE, Session, attribute, attributes
from gpasst.linux import (
    AF_INET6,
    IFA_ADDRESS,
    IFA_F_NODAD,
    RT_TABLE_LOCAL,
    RTA_DST,
    RTA_TABLE,
    RTM_GETADDR,
    RTM_GETROUTE,
    RTM_NEWLINK,
)

INDEX, OTHER = 2, 3
ADDRESSES = [bytes(15) + bytes((number,)) for number in (1, 2)]


class Kernel:
    """Lists the addresses of a link, and makes one more of their routes right after each change that it announces.

    :param routes: how many it has made at first.
    """

    def __init__(self, routes: int, index: int = INDEX, announces: bool = True) -> None:
        self.routes, self.index, self.announces = routes, index, announces
        self.waits = self.making = 0

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        assert body[0] == AF_INET6
        if kind == RTM_GETADDR:
            head = ADDRESS.pack(AF_INET6, 64, IFA_F_NODAD, 0, self.index)
            return [head + attributes([(IFA_ADDRESS, address)]) for address in ADDRESSES]
        assert kind == RTM_GETROUTE and body.endswith(attribute(RTA_TABLE, NUMBER.pack(RT_TABLE_LOCAL)))
        head = ROUTE.pack(AF_INET6, 128, 0, 0, RT_TABLE_LOCAL, 0, 0, 0, 0)
        return [head + attributes([(RTA_DST, address)]) for address in ADDRESSES[: self.routes]]

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[bytes]:
        """Take the lock, and so wait until what was announced is done."""
        del body, flags
        assert kind == RTM_NEWLINK
        self.routes, self.making = self.routes + self.making, 0
        return []

    def await_change(self, seconds: float) -> bool:
        assert seconds > 0
        self.waits += 1
        self.making += self.announces
        return self.announces


@pytest.mark.parametrize(
    ("kernel", "waits"),
    [(Kernel(2), 0), (Kernel(1), 1), (Kernel(0), 2), (Kernel(0, OTHER), 0), (Kernel(0, announces=False), 1)],
    ids=["at once", "one", "both", "of another link", "never"],
)
def test_addresses_are_waited_for(kernel: Kernel, waits: int) -> None:
    session = cast(Session, kernel)
    netlink.await_addresses(session, session, INDEX)
    assert kernel.waits == waits
