"""podman, rootless, with gpasst in pasta's place.

The image is busybox alone. Where a check needs a UDP server or client, a container mounts the tree's /usr, and its
Python runs the programs below.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.support.drivers.checks import (
    ANSWER,
    KINDS,
    Bench,
    Driver,
    Figures,
    answering,
    ask,
    exchange,
    milliseconds,
    program,
    reach,
    summary,
)
from tests.support.lab import FAR4, HOST, bound

IMAGE = "localhost/busybox"
NAME, ADDRESS = "t.example", "198.51.100.7"
FORWARDER = "169.254.1.1"  # podman's --dns-forward
PORT, INSIDE = 5000, 7000  # on the host, in the container
RUNS, RESTARTS, AT_ONCE = 10, 20, 8
FILE_BYTES = 50_000_000

BUILD = f"""\
FROM {IMAGE}
RUN ip address show && nslookup -type=a {NAME} && echo built >/etc/built
"""
WITH_PYTHON = ("--volume", "/usr:/usr:ro", IMAGE, "python3", "-c")


def prepare(bench: Bench) -> None:
    bench.tree.resolve(NAME, ADDRESS)
    bench.run("podman", "import", "--quiet", "/opt/image.tar", IMAGE)
    # The first container takes longer, and leaves the process that holds the user namespace.
    bench.run("podman", "run", "--rm", IMAGE, "true")


def reset(bench: Bench) -> None:
    bench.run("podman", "pod", "rm", "--force", "--all", "--time=0")
    bench.run("podman", "rm", "--force", "--all", "--time=0")
    bench.run("podman", "network", "prune", "--force")


def started(bench: Bench, name: str, *options: str) -> None:
    """Start a container that returns what comes by UDP and TCP."""
    bench.run("podman", "run", "--detach", f"--name={name}", *options, *WITH_PYTHON, program("echo"), str(INSIDE))


def published(port: int = PORT) -> str:
    return f"--publish={port}:{INSIDE}/udp"


def run(bench: Bench) -> Figures:
    """`podman run` and its exit status, and what the network adds to its time."""
    times: dict[str, list[float]] = {"pasta": [], "none": []}
    for _ in range(RUNS):
        for network, found in times.items():
            found.append(milliseconds(bench, "podman", "run", "--rm", f"--network={network}", IMAGE, "true"))
    assert bench.tree.run("podman", "run", "--rm", IMAGE, "sh", "-c", "exit 42").returncode == 42
    return {**summary("ms", times["pasta"]), **summary("ms without network", times["none"])}


def publish(bench: Bench) -> Figures:
    """A published port of each protocol, from each address of the host and from the remote machine."""
    started(bench, "echo", published(), f"--publish={PORT}:{INSIDE}")
    return reach(bench, PORT)


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
    """From a container to the remote machine, and to the host by its name, by both protocols."""
    started(bench, "echo")
    for kind in KINDS:
        for name, make, address in (
            (FAR4, bench.remote.socket, FAR4),
            ("host.containers.internal", socket.socket, HOST[4]),
        ):
            with bound(make(socket.AF_INET, kind), address) as server, answering(server) as port:
                assert bench.run("podman", "exec", "echo", *ask(kind, name, port)) == ANSWER
    return {}


def fetch(bench: Bench) -> Figures:
    """curl in a container, from a web server of the remote machine, of 50 MB."""
    with bound(bench.remote.socket(socket.AF_INET, socket.SOCK_STREAM), FAR4) as server, serving_file(server) as port:
        command = ("curl", "--silent", "--show-error", "--write-out", "%{size_download}", "--output", "/dev/null")
        mounted = ("--volume", "/usr:/usr:ro", "--volume", "/etc/alternatives:/etc/alternatives:ro", IMAGE)
        start = time.perf_counter()
        printed = bench.run("podman", "run", "--rm", *mounted, *command, f"http://{FAR4}:{port}/")
        assert printed == str(FILE_BYTES), printed
    return {"ms": round(1e3 * (time.perf_counter() - start))}


@contextmanager
def serving_file(server: socket.socket) -> Iterator[int]:
    """Answer one request of HTTP with `FILE_BYTES`; yield the port."""

    def answer() -> None:
        with server.accept()[0] as client:
            while b"\r\n\r\n" not in client.recv(4096):
                pass
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % FILE_BYTES + bytes(FILE_BYTES))

    server.listen()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(answer)
        yield server.getsockname()[1]
        done.result()


def auto(bench: Bench) -> Figures:
    """Ports of the host's loopback on a container's own: -T auto and -U auto, which podman turns off."""
    for kind, option in zip(KINDS, ("-U,auto", "-T,auto"), strict=True):
        with bound(socket.socket(socket.AF_INET, kind), "127.0.0.1") as server, answering(server) as port:
            client = ask(kind, "127.0.0.1", port)[2:]
            printed = bench.run("podman", "run", "--rm", f"--network=pasta:{option}", *WITH_PYTHON, *client)
            assert printed == ANSWER, printed
    return {}


def resolve(bench: Bench) -> Figures:
    """A name, by the host's resolver on its loopback, which the container reaches at podman's --dns-forward address."""
    started(bench, "echo")
    printed = bench.run("podman", "exec", "echo", "nslookup", "-type=a", NAME)
    assert FORWARDER in printed and ADDRESS in printed, printed
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
    assert ADDRESS in printed, printed
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
    for builder in ("podman", "buildah"):
        command = [builder, "build", "--no-cache", "--network=private", f"--tag=localhost/{builder}", "/opt/build"]
        start = time.perf_counter()
        printed = bench.run(*command)
        times[f"ms {builder}"] = round(1e3 * (time.perf_counter() - start))
        assert f"inet {HOST[4]}/24" in printed and ADDRESS in printed, printed
        assert bench.run("podman", "run", "--rm", f"localhost/{builder}", "cat", "/etc/built") == "built\n"
    return dict(times)


def working(bench: Bench) -> Figures:
    """`buildah from` and `buildah run`: a program in a working container, which connects to the remote machine."""
    container = bench.run("buildah", "from", IMAGE).strip()
    options = ("--network=private", *WITH_PYTHON[:2], container, *WITH_PYTHON[3:])
    for kind in KINDS:
        with bound(bench.remote.socket(socket.AF_INET, kind), FAR4) as server, answering(server) as port:
            assert bench.run("buildah", "run", *options, *ask(kind, FAR4, port)[2:]) == ANSWER
    bench.run("buildah", "rm", container)
    return {}


CHECKS = {
    "run": run,
    "publish": publish,
    "restart": restart,
    "range": range_,
    "busy": busy,
    "outside": outside,
    "fetch": fetch,
    "auto": auto,
    "resolve": resolve,
    "options": options,
    "pod": pod,
    "bridge": bridge,
    "many": many,
    "build": build,
    "working": working,
}
DRIVER = Driver(
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
