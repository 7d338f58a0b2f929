"""What a closed `Pasta` or `Passt` leaves behind: nothing, in a program with gevent and in one without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lab import Remote

OPENS = 500
WARM = 50  # opens after which everything that is kept for good has been loaded
GROWTH_BYTES = 3 << 20  # that the allocator may need for itself; a proxy alone has 9 MB of buffers
SECONDS = 240

PROGRAM = """
import json, os, sys, weakref
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
import gpasst

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def use(number):
    if number % 2:
        connection = gpasst.Pasta(config_net=True, udp_ports="5000", udp_ns="5001")
    else:
        connection = gpasst.Passt(socket=sys.argv[2], udp_ports="5002")
    with connection as opened:
        opened.statistics()
        return weakref.ref(opened._proxy)

opens, warm = int(sys.argv[3]), int(sys.argv[4])
proxies = [use(number) for number in range(warm)]
before = resident(), descriptors()
proxies += [use(number) for number in range(warm, opens)]
after = resident(), descriptors()
print(json.dumps({
    "opened": len(proxies),
    "alive": sum(proxy() is not None for proxy in proxies),
    "grown": after[0] - before[0],
    "descriptors": after[1] - before[1],
}))
"""


@pytest.mark.parametrize("mode", ["thread", "gevent"])
def test_five_hundred_opens_and_closes_leave_nothing(mode: str, tun: None, remote: Remote, tmp_path: Path) -> None:
    """Nor does it wait for the garbage collector: no circle keeps a closed proxy."""
    del tun, remote
    command = [sys.executable, "-c", PROGRAM, mode, str(tmp_path / "socket"), str(OPENS), str(WARM)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["opened"] == OPENS
    assert found["alive"] == 0
    assert found["descriptors"] == 0
    assert found["grown"] < GROWTH_BYTES
