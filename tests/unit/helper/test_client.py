"""Sockets of a namespace, and the ends of processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess

import pytest

from gpasst.errors import PlatformError
from gpasst.helper.client import Helper, Namespace
from tests.support.namespaces import (
    BARE,
    assert_ends,
    inside,
    open_descriptors,
    run_script,
    script,
)
from tests.support.need import need
from tests.support.ready import stopped


def test_sockets_live_in_the_namespace(configured: Namespace) -> None:
    (descriptor,) = configured.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(fileno=descriptor) as sock, socket.socket(type=socket.SOCK_DGRAM) as outside:
        assert not os.get_inheritable(descriptor)
        sock.bind(("10.1.2.3", 53))
        with pytest.raises(OSError, match="Cannot assign requested address"):
            outside.bind(("10.1.2.3", 0))


def test_only_sockets_of_the_namespace_are_bound(configured: Namespace) -> None:
    """As root, the process may bind to low ports of the host, and its caller in a sandbox may not."""
    (descriptor,) = configured.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(fileno=descriptor) as sock, socket.socket(type=socket.SOCK_DGRAM) as outside:
        configured.bind(sock.fileno(), ("127.0.0.1", 77))
        assert sock.getsockname() == ("127.0.0.1", 77)
        with pytest.raises(PermissionError):
            configured.bind(outside.fileno(), ("127.0.0.1", 0))
        assert outside.getsockname() == ("0.0.0.0", 0)


def test_more_sockets_than_fit_in_a_message(bare: Namespace) -> None:
    made = bare.sockets(socket.AF_INET6, socket.SOCK_DGRAM, 0, 150)
    assert len(set(made)) == 150
    for descriptor in made:
        os.close(descriptor)


def test_socket_errors(bare: Namespace) -> None:
    with pytest.raises(PlatformError) as caught:
        bare.sockets(99, socket.SOCK_DGRAM)
    assert str(caught.value) == ("cannot make a socket in the namespace: Address family not supported by protocol")


def test_interrupted_calls_leave_no_trace(helper: Helper) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(descriptor: int) -> None:
        raise Interrupted

    before = open_descriptors()
    with stopped(helper.pid), pytest.raises(Interrupted):
        helper.open(BARE, wait=interrupt)
    with helper.open(BARE) as namespace:
        with stopped(namespace.pid), pytest.raises(Interrupted):
            namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 5, wait=interrupt)
        made = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 2)
        assert len(made) == 2
        for descriptor in made:
            os.close(descriptor)
    assert open_descriptors() == before


def test_close_ends_the_processes() -> None:
    before = open_descriptors()
    started = Helper.start()
    namespace = started.open(BARE)
    pool, zygote = os.pidfd_open(namespace.pid), os.pidfd_open(started.pid)
    started.close()
    assert_ends(zygote)
    made = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    os.close(made[0])
    namespace.close()
    namespace.close()
    assert_ends(pool)
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(started.pid, os.WNOHANG)


def test_death_of_the_caller_ends_the_processes() -> None:
    body = """
import json, sys
from gpasst.helper.client import *
helper = Helper.start()
namespaces = [helper.open(OpenRequest(tap=False)) for _ in range(2)]
print(json.dumps([helper.pid, *(namespace.pid for namespace in namespaces)]), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(script(body), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        watched = [os.pidfd_open(pid) for pid in json.loads(process.stdout.readline())]
        process.kill()
    assert len(watched) == 3
    assert_ends(*watched)


def test_signals_to_a_process_group_are_ignored() -> None:
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
    with Helper.start() as started:
        for number in numbers:
            os.kill(started.pid, number)
        with started.open(BARE) as namespace:
            for number in numbers:
                os.kill(namespace.pid, number)
                os.kill(started.pid, number)
            assert len(namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)) == 1
            assert started.facts()["links"]


def test_client_imports_little() -> None:
    body = """
import json
import gpasst.helper.client
print(json.dumps([name for name in ("gevent", "pyroute2", "asyncio", "subprocess") if name in sys.modules]))
"""
    assert run_script(body) == []


@pytest.mark.parametrize("wait", ["None", "gevent.socket.wait_read"])
def test_under_gevent(wait: str) -> None:
    body = f"""
import gevent.monkey
gevent.monkey.patch_all()
import gevent, gevent.socket, json, os, subprocess
from gpasst.helper.client import *
wait = {wait}
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.001)
        ticks += 1
gevent.spawn(tick)
helper = Helper.start()
links = len(helper.facts(wait)["links"])
ticked = ticks > 0
namespace = helper.open(OpenRequest(tap=False), wait)
count = len(namespace.sockets(2, 2, 0, 5, wait))
argv, inherited = enter_command(namespace, ["sh", "-c", "exit 9"])
status = subprocess.run(argv, pass_fds=inherited).returncode
helper.close(wait)
namespace.close()
print(json.dumps([links > 0, ticked, count, status, os.path.exists(f"/proc/{{helper.pid}}")]))
"""
    assert run_script(body) == [True, wait != "None", 5, 9, False]


def test_the_name_of_a_link_is_not_always_utf_8(bare: Namespace) -> None:
    """The kernel takes almost any byte, and one such link on the host must not stop a proxy from starting."""
    ip = need("ip")
    body = f"""
import json, subprocess
from gpasst.helper.client import Helper
subprocess.run([{ip!r}, b"link", b"add", b"x\\xff", b"type", b"veth", b"peer", b"name", b"peer"], check=True)
try:
    with Helper.start() as helper:
        print(json.dumps([link["name"] for link in helper.facts()["links"]]))
finally:
    subprocess.run([{ip!r}, b"link", b"delete", b"peer"], check=True)
"""
    done = inside(bare, *script(body))
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == ["lo", "peer", "x\udcff"]
