"""The helper process against the real kernel: namespaces, tap devices, netlink, and the ends of processes."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyroute2
import pytest

from gpasst.errors import ConfigurationError, GpasstError, PlatformError
from gpasst.helper import tap
from gpasst.helper.channel import CHUNK, Channel, pair
from gpasst.helper.client import Helper, Namespace, OpenRequest, Route, enter_command
from gpasst.helper.request import open_request, to_message

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65534
PATIENCE = 20.0  # seconds until a test fails that should have ended in milliseconds
SIOCGIFTXQLEN = 0x8942
CLONE_NEWUSER = 0x10000000
IFA_F_TENTATIVE = 0x40

CONFIGURED = OpenRequest(
    ifname="eth7",
    mac="02:00:00:00:00:07",
    mtu=9000,
    configure=True,
    addresses=(("10.1.2.3", 24), ("fd11::3", 64)),
    routes=(Route(None, 0, "10.1.2.1", metric=50), Route(None, 0, "fd11::1", family=6)),
)
BARE = OpenRequest(tap=False)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def user_namespaces() -> bool:
    probe = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({CLONE_NEWUSER}) != 0)"
    return subprocess.run([sys.executable, "-I", "-S", "-c", probe], check=False).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    if not user_namespaces():
        pytest.skip("needs user namespaces")


@pytest.fixture(scope="module", name="tun")
def _tun() -> None:
    if not os.path.exists(tap.TUN_DEVICE):
        pytest.skip(f"needs {tap.TUN_DEVICE}")
    if not os.access(tap.TUN_DEVICE, os.R_OK | os.W_OK):
        pytest.skip(f"needs {tap.TUN_DEVICE} to be accessible")


@pytest.fixture
def tun_mode(tun: None) -> Iterator[Callable[[int], None]]:
    """Change the mode of /dev/net/tun until the end of the test."""
    if os.geteuid() != 0:
        pytest.skip("needs root to change the mode of /dev/net/tun")
    before = stat.S_IMODE(os.stat(tap.TUN_DEVICE).st_mode)
    yield lambda mode: os.chmod(tap.TUN_DEVICE, mode)
    os.chmod(tap.TUN_DEVICE, before)


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    with Helper.start() as started:
        yield started


@pytest.fixture(scope="module")
def bare(helper: Helper) -> Iterator[Namespace]:
    with helper.open(BARE) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def configured(helper: Helper, tun: None) -> Iterator[Namespace]:
    with helper.open(CONFIGURED) as namespace:
        yield namespace


def inside(
    namespace: Namespace, *argv: str, init: bool = False, runas: tuple[int, int] | None = None
) -> subprocess.CompletedProcess[str]:
    command, inherited = enter_command(namespace, argv, init=init, runas=runas)
    return subprocess.run(command, pass_fds=inherited, capture_output=True, text=True, timeout=PATIENCE, check=False)


def script(body: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{body}"]


def run_script(body: str, **options: Any) -> Any:
    """Run a script that prints one JSON value."""
    done = subprocess.run(script(body), capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def as_nobody() -> Callable[[str], Any]:
    """Run a script as an ordinary user, with an interpreter and a library that user can read."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    options: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    path = [str(ROOT), str(Path(pyroute2.__file__).parent.parent)]
    probe = "import gpasst, pyroute2; assert sys.version_info >= (3, 10)"
    for interpreter in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):

        def command(body: str, interpreter: str = interpreter) -> list[str]:
            return [interpreter, "-B", "-c", f"import sys; sys.path += {path!r}\n{body}"]

        try:
            if not subprocess.run(command(probe), stderr=subprocess.DEVNULL, check=False, **options).returncode:
                break
        except OSError:
            continue
    else:
        pytest.skip(f"needs a Python and {path} to be readable by user {NOBODY}")

    def run(body: str) -> Any:
        done = subprocess.run(command(body), capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


FACTS = """
import json
from gpasst.helper.client import Helper
with Helper.start() as helper:
    print(json.dumps(helper.facts()))
"""


def facts_inside(namespace: Namespace, before: str = "") -> dict[str, Any]:
    done = inside(namespace, *script(before + FACTS))
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def assert_ends(*pidfds: int) -> None:
    for descriptor in pidfds:
        assert select.select([descriptor], [], [], PATIENCE)[0], "the process is still there"
        os.close(descriptor)


def inode(descriptor: int | None) -> int:
    assert descriptor is not None
    return os.fstat(descriptor).st_ino


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# --- messages ---------------------------------------------------------------------------------------------


def test_request_survives_the_channel() -> None:
    request = OpenRequest(runas=(1, 2), addresses=(("10.0.0.1", 8),), routes=(Route(None, 0, "10.0.0.2"),))
    assert open_request(json.loads(json.dumps(to_message(request)))) == request


def test_long_messages_are_sent_in_pieces() -> None:
    one, other = (Channel(end) for end in pair())
    text = "x" * (CHUNK * 3)
    reading, writing = os.pipe()
    one.send({"text": text}, [writing])
    os.close(writing)
    answer = other.receive()
    assert answer is not None
    assert answer[0] == {"text": text}
    os.write(answer[1][0], b"!")
    assert os.read(reading, 1) == b"!"
    for descriptor in (reading, *answer[1]):
        os.close(descriptor)
    one.close()
    assert other.receive() is None
    other.close()


# --- configuration ----------------------------------------------------------------------------------------


def test_configured_link(configured: Namespace) -> None:
    assert configured.name == "eth7"
    assert configured.mac == bytes.fromhex("020000000007")
    assert configured.link_local == "fe80::ff:fe00:7"
    assert configured.vnet
    assert "csum" in configured.offloads
    assert not os.get_blocking(configured.tap)
    facts = facts_inside(configured)
    assert facts["links"] == [
        {
            "index": 1,
            "name": "lo",
            "mac": "00:00:00:00:00:00",
            "up": True,
            "mtu": 65536,
            "loopback": True,
        },
        {
            "index": configured.index,
            "name": "eth7",
            "mac": "02:00:00:00:00:07",
            "up": True,
            "mtu": 9000,
            "loopback": False,
        },
    ]
    found = {
        (entry["family"], entry["address"], entry["prefix"])
        for entry in facts["addresses"]
        if entry["index"] == configured.index
    }
    assert found == {(4, "10.1.2.3", 24), (6, "fd11::3", 64), (6, "fe80::ff:fe00:7", 64)}
    assert not any(entry["flags"] & IFA_F_TENTATIVE for entry in facts["addresses"])
    defaults = [
        (route["family"], route["gateway"], route["metric"]) for route in facts["routes"] if not route["prefix"]
    ]
    assert defaults == [(4, "10.1.2.1", 50), (6, "fd11::1", 1024)]


def test_transmit_queue_takes_bursts(configured: Namespace) -> None:
    (descriptor,) = configured.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(fileno=descriptor) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFTXQLEN, struct.pack("16si20x", configured.name.encode(), 0))
    assert struct.unpack_from("i", answer, 16) == (10_000,)


def test_frames_come_out_of_the_tap(configured: Namespace) -> None:
    (descriptor,) = configured.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(fileno=descriptor) as sock:
        sock.sendto(b"?", ("10.1.2.99", 9))
    for _ in range(20):  # multicast listener reports may come first
        assert select.select([configured.tap], [], [], PATIENCE)[0]
        frame = os.read(configured.tap, 65536)[10:]
        if frame[12:14] == b"\x08\x06":
            break
    assert frame[6:12] == configured.mac
    assert frame[38:42] == socket.inet_aton("10.1.2.99")


def test_unconfigured_link_stays_down(helper: Helper, tun: None) -> None:
    with helper.open(OpenRequest(mac="02:00:00:00:00:08", offload=False)) as namespace:
        assert namespace.mac == bytes.fromhex("020000000008")
        assert namespace.offloads == frozenset()
        facts = facts_inside(namespace)
        link = next(entry for entry in facts["links"] if entry["index"] == namespace.index)
        assert (link["up"], link["mac"]) == (False, "02:00:00:00:00:08")
        assert all(entry["index"] == 1 for entry in facts["addresses"])


def test_link_can_be_up_without_configuration(helper: Helper, tun: None) -> None:
    with helper.open(OpenRequest(up=True)) as namespace:
        link = next(entry for entry in facts_inside(namespace)["links"] if not entry["loopback"])
        assert link["up"]


def test_gateway_outside_of_the_network_gets_a_host_route(helper: Helper, tun: None) -> None:
    request = OpenRequest(
        configure=True,
        addresses=(("10.1.2.3", 32), ("fd11::3", 128)),
        routes=(
            Route(None, 0, "172.16.0.1"),
            Route("192.0.2.0", 24, "172.16.0.1"),
            Route("198.51.100.0", 24, "172.16.0.9", onlink=True),
            Route("203.0.113.0", 24),
            Route(None, 0, "fd22::1", family=6),
            Route("fd33::", 64, "fe80::1", family=6),
        ),
        link_local="fe80::77",
    )
    with helper.open(request) as namespace:
        assert namespace.link_local == "fe80::77"
        routes = {
            (route["destination"], route["prefix"], route["gateway"]) for route in facts_inside(namespace)["routes"]
        }
    assert routes >= {
        (None, 0, "172.16.0.1"),
        ("172.16.0.1", 32, None),
        ("192.0.2.0", 24, "172.16.0.1"),
        ("198.51.100.0", 24, "172.16.0.9"),
        ("203.0.113.0", 24, None),
        (None, 0, "fd22::1"),
        ("fd22::1", 128, None),
        ("fd33::", 64, "fe80::1"),
    }
    assert ("172.16.0.9", 32, None) not in routes


def test_facts_prefer_local_addresses_first_hops_and_low_metrics(helper: Helper, tun: None) -> None:
    more = """
from pyroute2.iproute import IPRoute
with IPRoute() as ipr:
    index = ipr.link_lookup(ifname="eth7")[0]
    ipr.addr("add", index=index, local="10.7.7.1", address="10.7.7.2", prefixlen=32)
    hops = [{"gateway": "10.1.2.8", "oif": index}, {"gateway": "10.1.2.9", "oif": index}]
    ipr.route("add", family=2, dst="default", priority=10, multipath=hops)
    ipr.route("add", dst="192.0.2.0/24", oif=index, table=100)
    ipr.route("add", dst="192.0.2.0/24", type="blackhole")
"""
    with helper.open(CONFIGURED) as namespace:
        facts = facts_inside(namespace, more)
        index = namespace.index
    assert "10.7.7.1" in {entry["address"] for entry in facts["addresses"]}
    assert "10.7.7.2" not in {entry["address"] for entry in facts["addresses"]}
    first, second = [route for route in facts["routes"] if route["family"] == 4][:2]
    assert (first["gateway"], first["metric"], first["oif"]) == ("10.1.2.8", 10, index)
    assert (second["gateway"], second["metric"]) == ("10.1.2.1", 50)
    assert all(route["destination"] != "192.0.2.0" for route in facts["routes"])


# --- identities -------------------------------------------------------------------------------------------


def test_root_keeps_every_id(bare: Namespace) -> None:
    outside = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    mapped = [line.split() for line in inside(bare, "cat", "/proc/self/uid_map").stdout.splitlines()]
    if os.geteuid() == 0:
        assert [(a, b, c) for a, b, c in mapped] == [(a, a, c) for a, _, c in outside]
    else:
        assert mapped == [["0", str(os.geteuid()), "1"]]


DEFAULT_TOS_TTL = """
import json, os, subprocess
from gpasst.helper.client import *
with Helper.start() as helper:
    request = OpenRequest(configure=True, addresses=(("10.1.2.3", 24),), routes=(Route(None, 0, "10.1.2.1"),))
    with helper.open(request) as namespace:
        argv, inherited = enter_command(namespace, ["id", "-u"])
        said = subprocess.run(argv, pass_fds=inherited, capture_output=True, text=True).stdout
        argv, inherited = enter_command(namespace, ["cat", "/proc/sys/net/ipv4/ping_group_range"])
        ping = subprocess.run(argv, pass_fds=inherited, capture_output=True, text=True).stdout
        count = len(namespace.sockets(2, 2, 0, 3))
        path = f"/proc/{namespace.pid}/ns/"
        with helper.open(OpenRequest(netns=path + "net", userns=path + "user", ifname="second")) as joined:
            same = os.fstat(joined.netns).st_ino == os.fstat(namespace.netns).st_ino
print(json.dumps([os.getuid(), said.strip(), ping.split(), count, same]))
"""


def test_ordinary_user(as_nobody: Callable[[str], Any], tun_mode: Callable[[int], None]) -> None:
    tun_mode(0o666)
    assert as_nobody(DEFAULT_TOS_TTL) == [NOBODY, "0", ["0", "0"], 3, True]


def test_ordinary_user_without_access_to_tun(as_nobody: Callable[[str], Any], tun_mode: Callable[[int], None]) -> None:
    tun_mode(0o600)
    message = as_nobody(
        """
import json
from gpasst.errors import PlatformError
from gpasst.helper.client import *
with Helper.start() as helper:
    try:
        helper.open(OpenRequest())
    except PlatformError as error:
        print(json.dumps(str(error)))
"""
    )
    assert message == "/dev/net/tun cannot be opened: Permission denied; make it accessible: chmod 0666 /dev/net/tun"


def test_root_can_run_as_somebody_else(helper: Helper, tun_mode: Callable[[int], None]) -> None:
    tun_mode(0o600)
    with helper.open(OpenRequest(runas=(NOBODY, NOBODY), up=True)) as namespace:
        assert namespace.tap >= 0
        assert os.stat(f"/proc/{namespace.pid}").st_uid == NOBODY
        assert inside(namespace, "id", "-u", runas=(NOBODY, NOBODY)).stdout == "0\n"
        mapped = inside(namespace, "cat", "/proc/self/uid_map", runas=(NOBODY, NOBODY)).stdout.split()
        assert mapped == ["0", str(NOBODY), "1"]
        assert len(namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 2)) == 2


@needs_root
def test_network_namespace_alone(helper: Helper) -> None:
    request = OpenRequest(tap=False, netns_only=True, runas=(NOBODY, NOBODY))
    with helper.open(request) as namespace:
        assert namespace.userns is None
        assert inode(namespace.netns) != os.stat("/proc/self/ns/net").st_ino
        # The program of the pool runs as the new user by the time it answers.
        assert len(namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)) == 1
        assert f"Uid:\t{NOBODY}" in Path(f"/proc/{namespace.pid}/status").read_text()
        assert inside(namespace, "id", "-u", runas=(NOBODY, NOBODY)).stdout == f"{NOBODY}\n"


def test_hostname(helper: Helper) -> None:
    with helper.open(OpenRequest(tap=False, hostname="guest")) as namespace:
        assert inside(namespace, "uname", "-n").stdout == "guest\n"
    assert os.uname().nodename != "guest"


# --- joining ----------------------------------------------------------------------------------------------


def test_join_by_process(helper: Helper, configured: Namespace) -> None:
    path = f"/proc/{configured.pid}/ns"
    with helper.open(OpenRequest(netns=f"{path}/net", userns=f"{path}/user", ifname="eth8")) as joined:
        assert inode(joined.netns) == inode(configured.netns)
        assert inode(joined.userns) == inode(configured.userns)
        assert (joined.uts, joined.ipc) == (None, None)
        names = {link["name"] for link in facts_inside(joined)["links"]}
        assert names == {"lo", "eth7", "eth8"}


def test_join_by_file(helper: Helper, bare: Namespace) -> None:
    path = f"/proc/{os.getpid()}/fd"
    request = OpenRequest(netns=f"{path}/{bare.netns}", userns=f"{path}/{bare.userns}", tap=False)
    with helper.open(request) as joined:
        assert inode(joined.netns) == inode(bare.netns)


def test_own_user_namespace_is_not_entered(helper: Helper, bare: Namespace) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to join a network namespace without its user namespace")
    request = OpenRequest(netns=f"/proc/{bare.pid}/ns/net", userns="/proc/self/ns/user", tap=False)
    with helper.open(request) as joined:
        assert joined.userns is None


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (
            OpenRequest(netns="/nonexistent/net"),
            ConfigurationError,
            "no namespace at /nonexistent/net; name a running process or a file in /run/netns",
        ),
        (OpenRequest(netns="/dev/null"), ConfigurationError, "/dev/null is not a network namespace"),
        (
            OpenRequest(netns="/proc/self/ns/net", userns="/dev/null"),
            ConfigurationError,
            "/dev/null is not a user namespace",
        ),
        (
            OpenRequest(tap=False, hostname="x" * 65),
            ConfigurationError,
            f"'{'x' * 65}' cannot be a host name: Invalid argument",
        ),
    ],
)
def test_error_lines(helper: Helper, request_: OpenRequest, kind: type[GpasstError], message: str) -> None:
    before = open_descriptors()
    with pytest.raises(kind) as caught:
        helper.open(request_)
    assert str(caught.value) == message
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ifname": "a/b"},
            "'a/b' cannot name a network interface; use 1 to 15 characters without / or blank",
        ),
        (
            {"ifname": "lo"},
            "an interface named lo exists already in the namespace; choose another name: --ns-ifname",
        ),
        ({"mtu": 70_000}, "cannot set up gpasst0 with mtu 70000: Invalid argument"),
        (
            {"mac": "ff:ff:ff:ff:ff:ff"},
            "cannot set up gpasst0 with address ff:ff:ff:ff:ff:ff, mtu 65520: Cannot assign requested address",
        ),
        ({"addresses": (("10.0.0.1", 33),)}, "cannot add the address 10.0.0.1/33: Invalid argument"),
        ({"addresses": (("10.0.0.1", 8), ("10.0.0.1", 8))}, "cannot add the address 10.0.0.1/8: File exists"),
        ({"routes": (Route("10.1.0.1", 16),)}, "cannot add the route 10.1.0.1/16: Invalid argument"),
    ],
)
def test_error_lines_of_the_device(helper: Helper, tun: None, changes: dict[str, Any], message: str) -> None:
    before = open_descriptors()
    with pytest.raises(ConfigurationError) as caught:
        helper.open(OpenRequest(**{"configure": True, **changes}))
    assert str(caught.value) == message
    assert open_descriptors() == before


def test_unreadable_address_is_a_configuration_error(helper: Helper, tun: None) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot add the address 10\.0\.0/8"):
        helper.open(OpenRequest(configure=True, addresses=(("10.0.0", 8),)))


def test_missing_tun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap, "TUN_DEVICE", str(tmp_path / "tun"))
    with pytest.raises(PlatformError, match=r"tun is missing; load the tun module: modprobe tun$"):
        tap.open_tun()


def test_forbidden_user_namespaces(bare: Namespace) -> None:
    body = """
from gpasst.errors import PlatformError
from gpasst.helper.client import *
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
with Helper.start() as helper:
    try:
        helper.open(OpenRequest(tap=False))
    except PlatformError as error:
        print(error)
"""
    done = inside(bare, *script(body))
    assert done.stdout == (
        "cannot create a user namespace: No space left on device; allow them (sysctl "
        "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, "
        "user.max_user_namespaces above 0), or run as root with --netns-only\n"
    ), done.stderr


def test_an_ordinary_user_needs_a_user_namespace(as_nobody: Callable[[str], Any]) -> None:
    lines = as_nobody(
        """
import json
from gpasst.errors import PlatformError
from gpasst.helper.client import *
lines = []
with Helper.start() as helper:
    for request in (
        OpenRequest(netns_only=True, tap=False),
        OpenRequest(runas=(1, 1), tap=False),
        OpenRequest(netns="/proc/self/ns/net", tap=False),
        OpenRequest(netns="/proc/1/ns/net", tap=False),
    ):
        try:
            helper.open(request)
        except PlatformError as error:
            lines.append(str(error))
print(json.dumps(lines))
"""
    )
    assert lines == [
        "cannot create a network namespace: Operation not permitted; run as root, or leave --netns-only out",
        "cannot become user 1, group 1: Operation not permitted; run as root, or leave --runas out",
        "not permitted to join the network namespace /proc/self/ns/net; "
        "name the user namespace it belongs to with --userns, or run as its owner or as root",
        "not permitted to open /proc/1/ns/net; run as its owner or as root",
    ]


def test_too_many_open_files_is_one_line() -> None:
    body = """
import json, os, resource
from gpasst.errors import PlatformError
from gpasst.helper.client import *
with Helper.start() as helper, helper.open(OpenRequest(tap=False)) as namespace:
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, before + 8))
    try:
        namespace.sockets(2, 2, 0, 64)
    except PlatformError as error:
        line = str(error)
    print(json.dumps([line, len(namespace.sockets(2, 2, 0, 1)), len(os.listdir("/proc/self/fd")) - before]))
"""
    assert run_script(body) == ["too many open files; raise the limit: ulimit -n", 1, 1]


def test_helper_that_ended() -> None:
    started = Helper.start()
    os.kill(started.pid, signal.SIGKILL)
    with pytest.raises(PlatformError, match="the helper process ended unexpectedly"):
        started.facts()
    started.close()
    started.close()
    with pytest.raises(PlatformError, match="the helper process was closed"):
        started.facts()


# --- sockets ----------------------------------------------------------------------------------------------


def test_sockets_live_in_the_namespace(configured: Namespace) -> None:
    (descriptor,) = configured.sockets(socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(fileno=descriptor) as sock, socket.socket(type=socket.SOCK_DGRAM) as outside:
        assert not os.get_inheritable(descriptor)
        sock.bind(("10.1.2.3", 53))
        with pytest.raises(OSError, match="Cannot assign requested address"):
            outside.bind(("10.1.2.3", 0))


def test_more_sockets_than_fit_in_a_message(bare: Namespace) -> None:
    made = bare.sockets(socket.AF_INET6, socket.SOCK_DGRAM, 0, 150)
    assert len(set(made)) == 150
    for descriptor in made:
        os.close(descriptor)


def test_socket_errors(bare: Namespace) -> None:
    with pytest.raises(PlatformError) as caught:
        bare.sockets(99, socket.SOCK_DGRAM)
    assert str(caught.value) == ("cannot make a socket in the namespace: Address family not supported by protocol")


def test_two_namespaces_of_one_helper(helper: Helper) -> None:
    with helper.open(BARE) as one, helper.open(BARE) as other:
        assert len({inode(one.netns), inode(other.netns), os.stat("/proc/self/ns/net").st_ino}) == 3
        for namespace in (one, other):
            (descriptor,) = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)
            with socket.socket(fileno=descriptor) as sock:
                sock.bind(("127.0.0.1", 4000))


def test_interrupted_calls_leave_no_trace(helper: Helper) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(descriptor: int) -> None:
        raise Interrupted

    before = open_descriptors()
    with pytest.raises(Interrupted):
        helper.open(BARE, wait=interrupt)
    with helper.open(BARE) as namespace:
        with pytest.raises(Interrupted):
            namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 5, wait=interrupt)
        made = namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM, 0, 2)
        assert len(made) == 2
        for descriptor in made:
            os.close(descriptor)
    assert open_descriptors() == before


# --- entering ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", [False, True])
def test_enter_status(bare: Namespace, init: bool) -> None:
    assert inside(bare, "sh", "-c", "exit 7", init=init).returncode == 7
    assert inside(bare, "true", init=init).returncode == 0


@pytest.mark.parametrize("init", [False, True])
def test_enter_bad_commands(bare: Namespace, init: bool, tmp_path: Path) -> None:
    done = inside(bare, "no-such-command", init=init)
    assert (done.returncode, done.stderr) == (127, "gpasst: no-such-command: command not found\n")
    plain = tmp_path / "plain"
    plain.write_text("")
    done = inside(bare, str(plain), init=init)
    assert (done.returncode, done.stderr) == (126, f"gpasst: {plain}: Permission denied\n")


@pytest.mark.parametrize("init", [False, True])
def test_enter_hands_on_no_descriptors(bare: Namespace, init: bool) -> None:
    listing = "import os; print([n for n in os.listdir('/proc/self/fd') if int(n) > 3])"
    assert inside(bare, sys.executable, "-I", "-c", listing, init=init).stdout == "[]\n"


@pytest.mark.parametrize("init", [False, True])
def test_enter_restores_signals(bare: Namespace, init: bool) -> None:
    done = inside(bare, "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status", init=init)
    assert {int(line.split()[1], 16) for line in done.stdout.splitlines()} == {0}


def test_enter_keeps_the_process(bare: Namespace) -> None:
    command, inherited = enter_command(bare, ["sh", "-c", "echo $$; readlink /proc/self/ns/net"])
    with subprocess.Popen(command, pass_fds=inherited, stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=PATIENCE)
    assert said.split() == [str(process.pid), f"net:[{inode(bare.netns)}]"]


def test_enter_joins_all_namespaces(bare: Namespace) -> None:
    names = ("user", "net", "uts", "ipc")
    said = inside(bare, "readlink", *(f"/proc/self/ns/{name}" for name in names)).stdout.split()
    descriptors = (bare.userns, bare.netns, bare.uts, bare.ipc)
    assert said == [f"{name}:[{inode(fd)}]" for name, fd in zip(names, descriptors, strict=True)]


def test_init_is_process_one(bare: Namespace) -> None:
    assert inside(bare, "sh", "-c", "echo $$", init=True).stdout == "1\n"


class Running:
    """A command run with --init that has said "ready"."""

    def __init__(self, namespace: Namespace, *argv: str) -> None:
        command, inherited = enter_command(namespace, argv, init=True)
        self.process = subprocess.Popen(
            command, pass_fds=inherited, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_init_forwards_signals(bare: Namespace, number: signal.Signals) -> None:
    body = (
        "import os, signal\n"
        f"signal.signal({number:d}, lambda *_: os._exit(5))\n"
        "os.write(1, b'ready\\n')\n"
        "signal.pause()"
    )
    with Running(bare, sys.executable, "-I", "-c", body) as running:
        running.process.send_signal(number)
        assert running.process.wait(PATIENCE) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_init_ends_commands_without_handler(bare: Namespace, number: signal.Signals) -> None:
    body = "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.write(1, b'ready\\n')\nsignal.pause()"
    with Running(bare, sys.executable, "-I", "-c", body) as running:
        running.process.send_signal(number)
        assert running.process.wait(PATIENCE) == 128 + number


def test_init_reports_the_signal_that_ended_the_command(bare: Namespace) -> None:
    body = "import ctypes, signal; signal.signal(11, signal.SIG_DFL); ctypes.string_at(0)"
    assert inside(bare, sys.executable, "-I", "-c", body, init=True).returncode == 128 + signal.SIGSEGV


def test_init_dies_with_its_parent(bare: Namespace) -> None:
    with Running(bare, "sh", "-c", "sleep 1000 & echo ready; exec cat") as running:
        running.process.kill()
        assert running.process.stdout is not None
        # The end of file comes when the command and what it started have closed their standard output.
        assert select.select([running.process.stdout], [], [], PATIENCE)[0]
        assert running.process.stdout.read() == b""


# --- ends -------------------------------------------------------------------------------------------------


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


def test_keyboard_interrupts_are_ignored() -> None:
    with Helper.start() as started:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            os.kill(started.pid, number)
        with started.open(BARE) as namespace:
            os.kill(namespace.pid, signal.SIGINT)
            os.kill(started.pid, signal.SIGINT)
            assert len(namespace.sockets(socket.AF_INET, socket.SOCK_DGRAM)) == 1
            assert started.facts()["links"]


def test_pool_is_small(bare: Namespace) -> None:
    os.close(bare.sockets(socket.AF_INET, socket.SOCK_DGRAM)[0])
    status = Path(f"/proc/{bare.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident < 20 * 1024, "KiB; the pool should hold little besides the interpreter"


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
