"""Virtual machines whose network is a UNIX stream socket, and the program under test that serves it.

A `Guest` is a qemu with a kernel and busybox (see `image`), driven over its serial console (see `console`). It boots in
two seconds and runs one command at a time::

    with Guest(image, socket_path) as guest:
        status, output = guest.run("ping -c 1 192.0.2.1")
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from tests.support.need import need
from tests.support.ready import until
from tests.support.vm.console import PATIENCE, Console, Result, Running
from tests.support.vm.image import Image, build

__all__ = ["Guest", "Image", "Result", "Running", "backend", "build", "pattern", "serving", "variables"]

BACKEND = "GPASST_TEST_BACKEND"  # environment variable: "passt" tests the original instead, to compare with
MEMORY_MB = 256  # of which the first file system may take half
GUEST_MAC = "52:54:00:12:34:56"
LISTENING = "00010000"  # __SO_ACCEPTCON, in the flags of /proc/net/unix


def backend(socket_path: Path, options: Sequence[str] = ()) -> list[str]:
    """Give the command line of the program that serves guests at `socket_path`."""
    # The tests' resolver is on the host's loopback, where passt looks for it anyway.
    ours = [sys.executable, "-m", "gpasst", "passt", "--dns-host", "127.0.0.1", "--dns-host", "::1"]
    program = [need("passt")] if os.environ.get(BACKEND) == "passt" else ours
    return [*program, "-f", "--socket", str(socket_path), *options]


@contextmanager
def serving(options: Sequence[str] = ()) -> Iterator[Path]:
    """Run the program under test in this process's network namespace; give the path of its listening socket."""
    # Not below pytest's own folder, whose path may be too long for a socket, and closed to nobody, as whom passt binds.
    with tempfile.TemporaryDirectory(prefix="gpasst-") as name, tempfile.TemporaryFile() as log:
        folder = Path(name)
        folder.chmod(0o777)
        path = folder / "socket"
        with subprocess.Popen(backend(path, options), stdin=subprocess.DEVNULL, stdout=log, stderr=log) as program:
            try:
                until(lambda: program.poll() is not None or _listening(path), f"listening at {path}")
                assert program.poll() is None, _content(log)
                yield path
                assert program.poll() is None, _content(log)
            finally:
                program.terminate()
                try:
                    program.wait(PATIENCE)
                finally:
                    program.kill()


def _listening(path: Path) -> bool:
    # A trial connection would count as a guest.
    table = Path("/proc/thread-self/net/unix").read_text(encoding="utf-8", errors="replace")
    rows = (line.split(maxsplit=7) for line in table.splitlines())
    return any(row[7:] == [str(path)] and row[3] == LISTENING for row in rows)


def _content(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")


def pattern(size: int) -> bytes:
    """Give what `udptool ask` sends."""
    return bytes(((index * 167) ^ (index >> 8)) & 0xFF for index in range(size))


def variables(output: str) -> dict[str, str]:
    """Give the NAME=VALUE lines of an output."""
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


class Guest(Console):
    """A virtual machine, whose network card is connected to a UNIX stream socket.

    :param network: path of the socket, or the options of qemu that connect it.
    """

    def __init__(self, image: Image, network: Path | Sequence[str]) -> None:
        began = time.monotonic()
        self._program = subprocess.Popen(
            _command(image, _connecting(network) if isinstance(network, Path) else network),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        assert self._program.stdin is not None and self._program.stdout is not None
        try:
            super().__init__(self._program.stdout.fileno(), self._program.stdin.fileno())
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - began

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._program.poll() is None

    def close(self) -> None:
        """Cut the power."""
        self._program.kill()
        with self._program:
            pass  # its pipes are closed, and it is waited for


def _connecting(path: Path) -> list[str]:
    network = f"stream,id=net,server=off,addr.type=unix,addr.path={path}"
    return ["-netdev", network, "-device", f"virtio-net-pci,netdev=net,mac={GUEST_MAC},romfile="]


def _command(image: Image, network: Sequence[str]) -> list[str]:
    return [
        image.qemu,
        "-no-user-config",
        "-nodefaults",
        # Nested virtualisation is rarely there, and not always whole where it seems to be. The smaller "microvm" lacks
        # the timers by which Linux measures the TSC: emulated, it hung in up to half of the boots.
        *("-machine", "q35,accel=tcg", "-m", str(MEMORY_MB), "-no-reboot"),
        *("-display", "none", "-monitor", "none", "-serial", "stdio"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", "console=ttyS0 quiet loglevel=0 panic=-1"),
        *network,
    ]
