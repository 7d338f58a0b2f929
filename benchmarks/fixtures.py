"""What namespaces cost a test suite: the plugin, the first fixture, later ones, their end, and what stays behind.

Each figure comes from interpreters of its own, and byte code is compiled before, as pip does when it installs. The
columns are what was measured and what was demanded; a figure that misses its demand makes the exit status 1.

    python benchmarks/fixtures.py [--rounds N]
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUITE_TESTS = 200
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

LOAD = """
import time, pytest, json
begin = time.perf_counter()
import gpasst.pytest_plugin
print(json.dumps((time.perf_counter() - begin) * 1000))
"""

FIRST = """
import time, json
begin = time.perf_counter()
import gpasst
net = gpasst.Pasta(config_net=True)
net.open()
print(json.dumps((time.perf_counter() - begin) * 1000))
net.close()
"""

LATER = """
import time, json, statistics
import gpasst
opens, closes = [], []
for number in range(121):
    net = gpasst.Pasta(config_net=True, udp_ports="0:53", tcp_ports="0:80")
    begin = time.perf_counter()
    net.open()
    opened = time.perf_counter()
    net.close()
    opens.append(opened - begin)
    closes.append(time.perf_counter() - opened)
print(json.dumps([statistics.median(opens[1:]) * 1000, statistics.median(closes[1:]) * 1000]))
"""

# The longest time between two turns of a greenlet that wants to run again at once, while others close namespaces.
BLOCKED = """
import gevent.monkey; gevent.monkey.patch_all()
import time, json, gevent, gpasst
gaps = []
def turn():
    last = time.perf_counter()
    while True:
        gevent.sleep(0)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
ticker = gevent.spawn(turn)
longest = []
for _ in range(30):
    net = gpasst.Pasta(config_net=True, udp_ports="0:53", tcp_ports="0:80")
    net.open()
    gevent.sleep(0.02)
    gaps.clear()
    net.close()
    gevent.sleep(0.05)
    longest.append(max(gaps))
ticker.kill()
print(json.dumps(sorted(longest)[len(longest) // 2] * 1000))
"""

# The longest time between two turns of a loop of asyncio: alone, and while namespaces open and close.
ASYNCIO = """
import asyncio, json, time
from gpasst import Pasta
gaps = []
async def turn():
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
async def visit():
    async with Pasta(config_net=True, udp_ports="0:53", tcp_ports="0:80"):
        await asyncio.sleep(0.02)
async def longest(work):
    found = []
    for _ in range(30):
        gaps.clear()
        await work()
        found.append(max(gaps))
    return sorted(found)[len(found) // 2] * 1000
async def main():
    ticker = asyncio.ensure_future(turn())
    await visit()
    alone = await longest(lambda: asyncio.sleep(0.05))
    return [alone, await longest(visit)]
print(json.dumps(asyncio.run(main())))
"""

FLAT = """
import json, gpasst
from gpasst.records import asdict
from gpasst.testing.flat import usage
import gc, time
def settled():
    gc.collect()
    time.sleep(0.3)
    return asdict(usage())
for number in range(1, 501):
    with gpasst.Pasta(config_net=True, udp_ports="0:53", tcp_ports="0:80") as net:
        net.statistics()
    if number == 20:
        before = settled()
print(json.dumps([before, settled()]))
"""

SUITE = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_one(gpasst_pasta, number):
    with gpasst_pasta.socket() as sock:
        sock.sendto(b"x", (gpasst_pasta.gateway4, 9))
"""


def run(program: str) -> Any:
    """Run a program that prints one JSON value."""
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def median(program: str, rounds: int) -> float:
    return statistics.median(run(program) for _ in range(rounds))


def suite_milliseconds(*options: str) -> float:
    """Return the wall time of each test of a suite, in ms."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_suite.py").write_text(SUITE.format(tests=SUITE_TESTS), encoding="ascii")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "gpasst.pytest_plugin", "-p", "no:cacheprovider"]
        begin = time.perf_counter()
        subprocess.run([*command, *options], cwd=folder, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
        return (time.perf_counter() - begin) * 1000 / SUITE_TESTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interpreters for each of the first two figures")
    rounds = parser.parse_args().rounds
    compileall.compile_dir(ROOT / "gpasst", quiet=2)
    later, close = run(LATER)
    before, after = run(FLAT)
    alone, visited = run(ASYNCIO)
    figures: list[tuple[str, float, float]] = [
        ("load of the plugin, ms", median(LOAD, rounds), 2),
        ("import and first open, ms", median(FIRST, rounds), 300),
        ("later open, ms", later, 30),
        ("close, ms", close, 15),
        ("longest wait of another greenlet for a close, ms", run(BLOCKED), 5),
        ("longest wait of a loop of asyncio for an open or a close, ms", visited, 5),
        ("the same while nothing happens, ms", alone, 5),
        *(
            (f"500 opens and closes: {name} beyond those after 20", after[name] - before[name], allowed)
            for name, allowed in (("processes", 0), ("threads", 0), ("descriptors", 0), ("memory", 2048))
        ),
        (f"suite of {SUITE_TESTS} tests, ms a test", suite_milliseconds(), 60),
        ("the same with captures, ms a test", suite_milliseconds("--gpasst-pcap=captures"), 60),
    ]
    for name, value, allowed in figures:
        print(f"{name:<60} {value:>8.1f}  at most {allowed:g}{'' if value <= allowed else '  MISSED'}")
    return int(any(value > allowed for _, value, allowed in figures))


if __name__ == "__main__":
    sys.exit(main())
