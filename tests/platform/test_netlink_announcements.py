"""The kernel announces an address when it is put to use, to a session that asked for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.need import need

PROGRAM = """
import _socket
from gpasst.helper.netlink import await_addresses
from gpasst.helper.rtnetlink import LINK, Session
from gpasst.linux import IFF_UP, RTM_NEWLINK, RTNLGRP_IPV6_IFADDR

index = _socket.if_nametoindex("lo")
with Session() as session, Session(RTNLGRP_IPV6_IFADDR) as changes:
    session.request(RTM_NEWLINK, LINK.pack(0, 0, index, IFF_UP, IFF_UP))
    assert changes.await_change(10)
    await_addresses(session, changes, index)
"""


@pytest.mark.usefixtures("tun")
def test_a_session_hears_of_a_new_address() -> None:
    command = [need("unshare"), "--map-root-user", "--net", sys.executable, "-W", "error", "-c", PROGRAM]
    subprocess.run(command, check=True, timeout=60)
