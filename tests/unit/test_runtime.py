"""Which hub and which helper process a caller gets, in programs of every kind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.namespaces import PATIENCE, ROOT

pytestmark = pytest.mark.usefixtures("tun")

PRELUDE = f'''
import sys; sys.path.insert(0, {str(ROOT)!r})
import os, signal, socket
import gevent.monkey, gevent.socket
from gpasst import runtime
from gpasst.helper.client import OpenRequest

start_new_thread = gevent.monkey.get_original("_thread", "start_new_thread")
get_native_id = gevent.monkey.get_original("_thread", "get_native_id")

def in_thread(function):
    """Run a function in a greenlet of a thread of its own, and return when that has ended."""
    gevent.get_hub()  # two threads of a patched program must not make hubs at once
    begun, failed = [], []
    def run():
        begun.append(get_native_id())
        greenlet = gevent.spawn(function)
        greenlet.join()
        failed.append(not greenlet.successful())
    start_new_thread(run, ())
    while not begun or os.path.exists(f"/proc/self/task/{{begun[0]}}"):
        gevent.sleep(0.001)
    assert failed == [False]

def fork():
    """Fork; the child goes on when the parent watches it: gevent misses the end of one that ends before."""
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.write(writes, b".")
    else:
        os.read(reads, 1)
    return child

def open_and_close():
    here = runtime.current()
    helper = here.call(here.helper)
    with helper.open(OpenRequest(tap=False)) as namespace:
        socket.socket(fileno=namespace.sockets(2, 2)[0]).close()
    return helper
'''

SHARED = """
# The background hub, a greenlet on the main thread's own hub, and one on another thread's.
helpers = [open_and_close()]
gevent.spawn(lambda: helpers.append(open_and_close())).join()
in_thread(lambda: helpers.append(open_and_close()))
assert len(helpers) == 3 and len(set(helpers)) == 1, helpers
"""

GONE_HUBS = """
import gc, weakref
seen, ended = [], {}
def work():
    here, helper = runtime.current(), open_and_close()
    seen.append(weakref.ref(here))
    ended[helper.pid] = os.pidfd_open(helper.pid)
for _ in range(3):
    in_thread(work)
gc.collect()
assert len(seen) == 3 and not any(reference() for reference in seen)
# With the last runtime its helper ended, and the next start awaits it.
assert len(ended) == 3 and not runtime._helpers
for pidfd in ended.values():
    gevent.socket.wait_read(pidfd)
open_and_close()
for pid in ended:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        continue
    raise AssertionError(f"{pid} was not awaited")
"""

REPLACED = """
first = open_and_close()
pidfd = os.pidfd_open(first.pid)
os.kill(first.pid, signal.SIGKILL)
gevent.socket.wait_read(pidfd)
second = open_and_close()
assert second.pid != first.pid
assert open_and_close() is second
"""

MOVED = """
import ctypes
first = []
def work():
    first.append(open_and_close())
    assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0
    other = open_and_close()
    assert other is not first[0] and other.facts()["links"] != first[0].facts()["links"]
in_thread(work)
assert open_and_close() is first[0]
"""

FORKED = """
first = open_and_close()
child = fork()
if child == 0:
    second = open_and_close()
    assert second.pid != first.pid
    # The copies of the parent's.
    first.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert first.alive and open_and_close() is first
"""

FORKED_SINCE = """
from gpasst import ConfigurationError
here = runtime.current()
first = open_and_close()
child = fork()
if child == 0:
    try:
        here.call(here.close_helper)
    except ConfigurationError as error:
        assert "forked" in error.message
        os._exit(0)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
assert first.alive
"""

CLOSED = """
here = runtime.current()
first = open_and_close()
here.call(here.close_helper)
assert not first.alive
assert open_and_close() is not first
"""

FAILED = """
import gc, weakref
gc.disable()
seen = []
class Thing:
    pass
def fail():
    thing = Thing()
    seen.append(weakref.ref(thing))
    raise LookupError
try:
    runtime.current().call(fail)
except LookupError:
    # As long as the error is there, so is what its frames refer to.
    assert seen[0]() is not None
assert seen[0]() is None
"""


CROSSED = """
def fail():
    raise LookupError("on the hub")

def here_and_elsewhere():
    here, home = runtime.current(), runtime.current().call(get_native_id)
    # On the hub itself, where nobody else would run it.
    assert here.call(lambda: here.call(get_native_id)) == home
    def elsewhere():
        assert get_native_id() != home
        assert here.call(get_native_id) == home
        try:
            here.call(fail)
        except LookupError as error:
            assert str(error) == "on the hub"
        else:
            raise AssertionError("nothing was raised")
    in_thread(elsewhere)

# The background hub or that of the patched program, and one that a greenlet has in use.
here_and_elsewhere()
gevent.spawn(here_and_elsewhere).get()
"""


@pytest.mark.parametrize("program", [SHARED, GONE_HUBS, REPLACED, MOVED, FORKED, FORKED_SINCE, CLOSED, FAILED, CROSSED])
@pytest.mark.parametrize("patched", ["", "from gevent import monkey; monkey.patch_all()"])
def test_programs(program: str, patched: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join((patched, PRELUDE, program))],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
