"""podman, rootless, with gpasst in pasta's place.

The image is busybox alone. Where a check needs a UDP server or client, a container mounts the tree's /usr, and its
Python runs the programs below. Run it with `python -m tests.drivers.podman`; docs/drivers.md has more.
"""

from __future__ import annotations

import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.drivers.checks import Bench, Driver, Figures, exchange, main
from tests.support.drivers.tree import RESOLVER
from tests.support.lab import FAR4, HOST, bound

IMAGE = "localhost/busybox"
NAME, ANSWER = "t.example", "198.51.100.7"
FORWARDER = "169.254.1.1"  # podman's --dns-forward
PORT, INSIDE = 5000, 7000  # on the host, in the container
RUNS, RESTARTS, AT_ONCE = 10, 20, 8

# A process number 1 has no default action for SIGTERM.
ECHO = f"""
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
    server.bind(("::", {INSIDE}))
    while True:
        data, sender = server.recvfrom(65536)
        server.sendto(data, sender)
"""
ASK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(5)
    client.connect((sys.argv[1], int(sys.argv[2])))
    client.send(b"question")
    print(client.recv(100).decode())
"""
BUILD = f"""\
FROM {IMAGE}
RUN ip address show && nslookup -type=a {NAME} && echo built >/etc/built
"""
WITH_PYTHON = ("--volume", "/usr:/usr:ro", IMAGE, "python3", "-c")


def prepare(bench: Bench) -> None:
    bench.tree.serve(
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--pid-file=",
        f"--listen-address={RESOLVER}",
        f"--address=/{NAME}/{ANSWER}",
    )
    bench.run("podman", "import", "--quiet", "/opt/image.tar", IMAGE)
    # The first container takes longer, and leaves the process that holds the user namespace.
    bench.run("podman", "run", "--rm", IMAGE, "true")


def reset(bench: Bench) -> None:
    bench.run("podman", "pod", "rm", "--force", "--all", "--time=0")
    bench.run("podman", "rm", "--force", "--all", "--time=0")
    bench.run("podman", "network", "prune", "--force")


def started(bench: Bench, name: str, *options: str) -> None:
    """Start a container that echoes UDP."""
    bench.run("podman", "run", "--detach", f"--name={name}", *options, *WITH_PYTHON, ECHO)


def published(port: int = PORT) -> str:
    return f"--publish={port}:{INSIDE}/udp"


def milliseconds(bench: Bench, *argv: str) -> float:
    start = time.perf_counter()
    bench.run(*argv)
    return 1e3 * (time.perf_counter() - start)


def summary(name: str, times: list[float]) -> Figures:
    """Return the median and the extremes; the least is what other load of the machine changes least."""
    least, median, most = (round(pick(times)) for pick in (min, statistics.median, max))
    return {name: median, f"{name} at least": least, f"{name} at most": most}


@contextmanager
def echoing(sock: socket.socket) -> Iterator[int]:
    """Answer one datagram of a bound socket with its own text, and return its port."""

    def answer() -> None:
        data, sender = sock.recvfrom(100)
        sock.sendto(data.upper(), sender)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield sock.getsockname()[1]
    finally:
        thread.join()


def run(bench: Bench) -> Figures:
    """`podman run` and its exit status, and what the network adds to its time."""
    times: dict[str, list[float]] = {"pasta": [], "none": []}
    for _ in range(RUNS):
        for network, found in times.items():
            found.append(milliseconds(bench, "podman", "run", "--rm", f"--network={network}", IMAGE, "true"))
    assert bench.tree.run("podman", "run", "--rm", IMAGE, "sh", "-c", "exit 42").returncode == 42
    return {**summary("ms", times["pasta"]), **summary("ms without network", times["none"])}


def publish(bench: Bench) -> Figures:
    """A published UDP port, from each address of the host and from the remote machine, in both families."""
    started(bench, "echo", published())
    lost = 0
    for target in ("127.0.0.1", "::1", HOST[4], HOST[6]):
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            lost += exchange(client, target, PORT, b"from the host")
    for family in (socket.AF_INET, socket.AF_INET6):
        with bench.remote.socket(family) as client:
            lost += exchange(client, HOST[4 if family == socket.AF_INET else 6], PORT, b"from outside")
    return {"lost": lost}


def restart(bench: Bench) -> Figures:
    """`podman restart` releases the published port at once, each time."""
    started(bench, "echo", published())
    times, lost = [], 0
    with bench.remote.socket(socket.AF_INET) as client:
        exchange(client, HOST[4], PORT, b"before")
        for turn in range(RESTARTS):
            times.append(milliseconds(bench, "podman", "restart", "echo"))
            lost += exchange(client, HOST[4], PORT, b"restart %d" % turn)
    return {"restarts": len(times), "lost": lost, **summary("ms", times)}


def range_(bench: Bench) -> Figures:
    """A range of ports on one address; each leads to the port beside it, and no other address does."""
    started(bench, "echo", f"--publish=127.0.0.1:{PORT}-{PORT + 9}:{INSIDE - 9}-{INSIDE}/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        lost = exchange(client, "127.0.0.1", PORT + 9, b"last of the range")
    with bound(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), HOST[4], PORT):
        pass
    return {"lost": lost}


def busy(bench: Bench) -> Figures:
    """A port in use is refused with a reason, and its user goes on."""
    started(bench, "echo", published())
    message = bench.refused("podman", "run", "--rm", published(), IMAGE, "true")
    assert "in use" in message and str(PORT) in message, message
    with bench.remote.socket(socket.AF_INET) as client:
        return {"lost": exchange(client, HOST[4], PORT, b"still there")}


def outside(bench: Bench) -> Figures:
    """From a container to the remote machine, and to the host by its name."""
    started(bench, "echo")
    with bound(bench.remote.socket(socket.AF_INET), FAR4) as remote, echoing(remote) as port:
        assert bench.run("podman", "exec", "echo", "python3", "-c", ASK, FAR4, str(port)) == "QUESTION\n"
    with bound(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), HOST[4]) as host, echoing(host) as port:
        name = "host.containers.internal"
        assert bench.run("podman", "exec", "echo", "python3", "-c", ASK, name, str(port)) == "QUESTION\n"
    return {}


def resolve(bench: Bench) -> Figures:
    """A name, by the host's resolver on its loopback, which the container reaches at podman's --dns-forward address."""
    started(bench, "echo")
    printed = bench.run("podman", "exec", "echo", "nslookup", "-type=a", NAME)
    assert FORWARDER in printed and ANSWER in printed, printed
    return {}


def options(bench: Bench) -> Figures:
    """Options of pasta's own, as podman hands them on."""
    network = "--network=pasta:-I,eth9,--mtu,1500,-a,10.0.0.9,-n,24,-g,10.0.0.1"
    printed = bench.run("podman", "run", "--rm", network, IMAGE, "sh", "-c", "ip address show eth9; ip route")
    for expected in ("mtu 1500", "inet 10.0.0.9/24", "default via 10.0.0.1 dev eth9"):
        assert expected in printed, printed
    message = bench.refused("podman", "run", "--rm", "--network=pasta:--bogus", IMAGE, "true")
    assert "--bogus" in message, message
    return {}


def pod(bench: Bench) -> Figures:
    """A pod publishes a port of the container that joins it."""
    bench.run("podman", "pod", "create", "--name=pod", published())
    started(bench, "echo", "--pod=pod")
    with bench.remote.socket(socket.AF_INET) as client:
        return {"lost": exchange(client, HOST[4], PORT, b"to the pod")}


def bridge(bench: Bench) -> Figures:
    """A bridge of podman's own, beyond which one pasta serves all bridges; its resolver asks the host's through it."""
    bench.run("podman", "network", "create", "bridge1")
    started(bench, "echo", "--network=bridge1", published())
    printed = bench.run("podman", "exec", "echo", "nslookup", "-type=a", NAME)
    assert ANSWER in printed, printed
    with bench.remote.socket(socket.AF_INET) as client:
        return {"lost": exchange(client, HOST[4], PORT, b"to the bridge")}


def many(bench: Bench) -> Figures:
    """Containers that start at the same time, each with a port of its own, and are then restarted together."""
    failures: list[str] = []

    def start(number: int) -> None:
        try:
            started(bench, f"echo{number}", published(PORT + number))
        except AssertionError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=start, args=(number,)) for number in range(AT_ONCE)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = 1e3 * (time.perf_counter() - begun)
    assert not failures, failures
    with bench.remote.socket(socket.AF_INET) as client:
        lost = sum(exchange(client, HOST[4], PORT + number, b"one of many") for number in range(AT_ONCE))
        again = milliseconds(bench, "podman", "restart", "--all")
        lost += sum(exchange(client, HOST[4], PORT + number, b"once more") for number in range(AT_ONCE))
    return {"containers": AT_ONCE, "ms": round(taken), "ms again": round(again), "lost": lost}


def build(bench: Bench) -> Figures:
    """RUN of `podman build` and of `buildah build` with a network of their own, whose file is that of a process."""
    folder = bench.tree.root / "opt/build"
    folder.mkdir(exist_ok=True)
    (folder / "Containerfile").write_text(BUILD)
    times = {}
    for program in ("podman", "buildah"):
        command = [program, "build", "--no-cache", "--network=private", f"--tag=localhost/{program}", "/opt/build"]
        start = time.perf_counter()
        printed = bench.run(*command)
        times[f"ms {program}"] = round(1e3 * (time.perf_counter() - start))
        assert f"inet {HOST[4]}/24" in printed and ANSWER in printed, printed
        assert bench.run("podman", "run", "--rm", f"localhost/{program}", "cat", "/etc/built") == "built\n"
    return dict(times)


CHECKS = {
    "run": run,
    "publish": publish,
    "restart": restart,
    "range": range_,
    "busy": busy,
    "outside": outside,
    "resolve": resolve,
    "options": options,
    "pod": pod,
    "bridge": bridge,
    "many": many,
    "build": build,
}
PODMAN = Driver(
    versions={
        "podman": ("podman", "--version"),
        "buildah": ("buildah", "--version"),
        "crun": ("crun", "--version"),
        "Python": ("python3", "--version"),
    },
    prepare=prepare,
    reset=reset,
    checks=CHECKS,
)

if __name__ == "__main__":
    sys.exit(main(PODMAN))
