"""libvirt, an ordinary user's session, with gpasst in passt's place.

The domain is emulated (TCG), and boots the kernel and busybox that the tests of virtual machines use; its console is a
UNIX socket. Its interface is the one in docs/drivers.md.
"""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.drivers.checks import (
    KINDS,
    Bench,
    Driver,
    Figures,
    answering,
    exchange,
    nobody_at,
    reach,
)
from tests.support.drivers.recipes import recipe
from tests.support.drivers.tree import KERNEL, RESOLVER, UID, USER
from tests.support.lab import FAR4, FAR6, HOST4, bound
from tests.support.vm.console import Console
from tests.support.vm.image import boot_files

VIRSH = ("virsh", "--connect=qemu:///session", "--quiet")
HOME = f"/home/{USER}"
CONSOLE = "console"
NAME = "t.example"
ANSWER = "198.51.100.7"
PID_FILES = f"/run/user/{UID}/libvirt/qemu/run/passt/*.pid"
SSH, UDP = 2022, 5000  # forwarded to 22 and 7000 of the guest, see docs/drivers.md
LEASE = "udhcpc -f -q -n -i eth0 -s /bin/lease -O search -O mtu"
# Router advertisements come by themselves; the address is usable when nobody else turned out to have it.
AUTOCONFIGURED = (
    "until ip -6 route | grep -q ^default && ! ip -6 address show dev eth0 | grep -q tentative; do usleep 20000; done"
)
# The console is connected while the machine waits, so that nothing of its output is lost.
DOMAIN = """\
<domain type='qemu'>
  <name>guest</name>
  <memory unit='MiB'>256</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{home}/kernel</kernel>
    <initrd>{home}/initramfs</initrd>
    <cmdline>console=ttyS0 quiet loglevel=0 panic=-1</cmdline>
  </os>
  <devices>
{interface}
    <serial type='unix'><source mode='bind' path='{home}/{console}'/></serial>
  </devices>
</domain>
"""


def prepare(bench: Bench) -> None:
    bench.tree.resolve(NAME, ANSWER)
    with tempfile.TemporaryDirectory() as folder:
        kernel, initramfs = boot_files(Path(folder), bench.tree.root / KERNEL)
        for name, path in (("kernel", kernel), ("initramfs", initramfs)):
            shutil.copy(path, bench.tree.home / name)
            (bench.tree.home / name).chmod(0o644)
    # Which libvirtd would start by itself.
    bench.run("virtlogd", "--daemon")
    bench.run("sh", "-ec", recipe("libvirt", "sh"))
    # The first question lets libvirt find out what qemu can do.
    bench.run(*VIRSH, "domcapabilities", "--virttype=qemu")


def reset(bench: Bench) -> None:
    if bench.run(*VIRSH, "list", "--name").strip():
        bench.run(*VIRSH, "destroy", "guest")


def create(bench: Bench, interface: str) -> list[str]:
    """Return the command that makes a domain with an interface; it waits until it is resumed."""
    domain = DOMAIN.format(home=HOME, console=CONSOLE, interface=interface)
    (bench.tree.home / "domain.xml").write_text(domain)
    return [*VIRSH, "create", "--paused", f"{HOME}/domain.xml"]


@contextmanager
def booted(bench: Bench, interface: str) -> Iterator[Console]:
    """Boot a domain with an interface, and configure its network by DHCP and router advertisements."""
    bench.run(*create(bench, interface))
    with socket.socket(socket.AF_UNIX) as serial:
        serial.connect(str(bench.tree.home / CONSOLE))
        bench.run(*VIRSH, "resume", "guest")
        console = Console(serial.fileno(), serial.fileno())
        status, output = console.run(LEASE)
        assert status == 0, output
        console.run(AUTOCONFIGURED)
        # It has a second address, which the proxy learns from what it sends.
        console.run(f"ping -6 -c 1 -W 1 {FAR6}")
        yield console


@contextmanager
def serving(console: Console) -> Iterator[None]:
    """Let the guest return what comes to TCP port 22 and UDP port 7000."""
    with console.background("udptool echo 0.0.0.0 7000"):
        console.run("nc -ll -p 22 -e cat >/dev/null 2>&1 &")
        yield


def forward(bench: Bench) -> Figures:
    """Forwarded ports: TCP from everywhere, a range of UDP on one address, but for the port that is left out."""
    with booted(bench, recipe("libvirt", "xml")) as console, serving(console):
        figures = reach(bench, SSH, [socket.SOCK_STREAM])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            figures["lost"] = exchange(client, "127.0.0.1", UDP, b"to the range")
        nobody_at(socket.SOCK_DGRAM, HOST4, UDP)
        nobody_at(socket.SOCK_DGRAM, "127.0.0.1", UDP + 5)
    return figures


def outside(bench: Bench) -> Figures:
    """From the guest to the remote machine, by both protocols."""
    with booted(bench, recipe("libvirt", "xml")) as console:
        for kind in KINDS:
            with bound(bench.remote.socket(socket.AF_INET, kind), FAR4) as server, answering(server) as port:
                if kind == socket.SOCK_STREAM:
                    assert console.run(f"echo question | nc {FAR4} {port}") == (0, "QUESTION\n")
                else:
                    output = console.run(f"udptool ask {FAR4} {port} 3").output
                    assert "refused" not in output, output
    return {}


def resolve(bench: Bench) -> Figures:
    """A name, by the resolver that the lease names: the host's, which listens on its loopback."""
    with booted(bench, recipe("libvirt", "xml")) as console:
        printed = console.run(f"nslookup -type=a {NAME}").output
        assert ANSWER in printed, printed
        servers = console.run("cat /etc/resolv.conf").output
        assert RESOLVER not in servers, servers
    return {}


def address(bench: Bench) -> Figures:
    """Addresses of the guest, the host's interface, and a log file, as in libvirt's documentation."""
    with booted(bench, recipe("libvirt", "xml", 1)) as console:
        printed = console.run("ip address show eth0").output
        assert "inet 172.17.2.4/24" in printed, printed
        printed = console.run("udptool dhcp6 eth0").output
        assert "2001:db8:ac10:fd01::20" in printed, printed
        with bound(bench.remote.socket(socket.AF_INET, socket.SOCK_STREAM), FAR4) as server:
            with answering(server) as port:
                assert console.run(f"echo question | nc {FAR4} {port}") == (0, "QUESTION\n")
    assert (bench.tree.home / "passt.log").stat().st_size
    return {}


def again(bench: Bench) -> Figures:
    """A passt that is killed is started again by libvirt, and the guest goes on."""
    with booted(bench, recipe("libvirt", "xml")) as console, serving(console):
        reach(bench, SSH, [socket.SOCK_STREAM], [4])
        bench.run("sh", "-c", f"kill -9 $(cat {PID_FILES})")
        start = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            # qemu connects again after the five seconds that libvirt sets.
            lost = exchange(client, "127.0.0.1", UDP, b"after it", 100)
        seconds = time.monotonic() - start
        return {"lost": lost, "s": round(seconds, 1), **reach(bench, SSH, [socket.SOCK_STREAM], [4])}


def busy(bench: Bench) -> Figures:
    """A forwarded port in use is refused with a reason that libvirt shows, and nothing is left of the domain."""
    with bound(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "127.0.0.1", UDP):
        message = bench.refused(*create(bench, recipe("libvirt", "xml")))
    assert re.search(f"{UDP}.*in use", message), message
    return {}


DRIVER = Driver(
    versions={
        "libvirt": (*VIRSH, "--version"),
        "qemu": ("qemu-system-x86_64", "--version"),
        "Python": ("python3", "--version"),
    },
    prepare=prepare,
    reset=reset,
    checks={
        "forward": forward,
        "outside": outside,
        "resolve": resolve,
        "address": address,
        "again": again,
        "busy": busy,
    },
)
