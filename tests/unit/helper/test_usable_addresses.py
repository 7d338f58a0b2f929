"""An address that the kernel has not put to use yet is waited for."""

from __future__ import annotations

from typing import cast

import pytest

from gpasst.helper import netlink
from gpasst.helper.rtnetlink import ADDRESS, Session, attributes
from gpasst.linux import AF_INET6, IFA_ADDRESS, IFA_F_NODAD, IFA_F_TENTATIVE, RTM_GETADDR, RTM_NEWLINK

INDEX, OTHER = 2, 3


class Kernel:
    """Shows an address as tentative so many times; announces each change."""

    def __init__(self, times: int, index: int = INDEX, announces: bool = True) -> None:
        self.times, self.index, self.announces = times, index, announces
        self.calls: list[object] = []

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        assert kind == RTM_GETADDR and body[0] == AF_INET6
        flags = IFA_F_NODAD | (IFA_F_TENTATIVE if self.times > 0 else 0)
        self.calls.append("list")
        head = ADDRESS.pack(AF_INET6, 64, flags, 0, self.index)
        return [head + attributes([(IFA_ADDRESS, bytes(15) + b"\x01")])]

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[bytes]:
        del body, flags
        self.calls.append(kind)
        return []

    def await_change(self, seconds: float) -> bool:
        assert seconds > 0
        self.calls.append("wait")
        self.times -= 1
        return self.announces


@pytest.mark.parametrize(
    ("kernel", "calls"),
    [
        (Kernel(0), ["list", RTM_NEWLINK]),
        (Kernel(2), ["list", "wait", "list", "wait", "list", RTM_NEWLINK]),
        (Kernel(2, OTHER), ["list", RTM_NEWLINK]),
        (Kernel(2, announces=False), ["list", "wait"]),
    ],
    ids=["at once", "later", "of another link", "never"],
)
def test_addresses_are_waited_for(kernel: Kernel, calls: list[object]) -> None:
    session = cast(Session, kernel)
    netlink.await_addresses(session, session, INDEX)
    assert kernel.calls == calls
