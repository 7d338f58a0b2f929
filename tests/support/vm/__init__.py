"""Virtual machines whose network is a UNIX stream socket, and the program under test that serves it.

A `Guest` is a qemu with a kernel and busybox (see `image`), driven over its serial console. It boots in two seconds
and runs one command at a time::

    with Guest(image, socket_path) as guest:
        status, output = guest.run("ping -c 1 192.0.2.1")

Waiting is always for output of the guest, never for time to pass. A guest that does not answer in time is ended.
"""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, NoReturn

from tests.support.need import need
from tests.support.ready import until
from tests.support.vm.image import Image, build

__all__ = ["Guest", "Image", "Result", "Running", "backend", "build", "pattern", "serving", "variables"]

BACKEND = "GPASST_TEST_BACKEND"  # environment variable: "passt" tests the original instead, to compare with
BOOT_PATIENCE = 60.0  # seconds; booting takes two on an idle machine
PATIENCE = 10.0  # seconds until a command of the guest counts as lost
MEMORY_MB = 256  # of which the first file system may take half
GUEST_MAC = "52:54:00:12:34:56"
READY = b"\n@ready\n"
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


class Result(NamedTuple):
    """How a command ended, and what it printed on either stream."""

    status: int
    output: str


class Running:
    """A program in the background of a guest; leaving the context ends it."""

    def __init__(self, guest: Guest, process: int, greeting: str) -> None:
        self.guest = guest
        self.process = process
        self.greeting = greeting

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.guest.alive:
            self.guest.run(f"kill {self.process}")


class Guest:
    """A virtual machine, whose network card is connected to a UNIX stream socket."""

    def __init__(self, image: Image, socket_path: Path) -> None:
        began = time.monotonic()
        # What qemu itself has to say comes before it ends, or before the guest is ready.
        self._program = subprocess.Popen(
            _command(image, socket_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._buffer = b""
        self._tokens = 0
        self._secret = secrets.token_hex(4)
        self._pending = ""
        try:
            self._read_until(READY, BOOT_PATIENCE)
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
        """Whether it can still be asked."""
        return self._program.poll() is None

    def close(self) -> None:
        """Cut the power."""
        self._program.kill()
        with self._program:
            pass  # its pipes are closed, and it is waited for

    def run(self, command: str, timeout: float = PATIENCE) -> Result:
        """Run a shell command, of one line, to its end."""
        self.start(command)
        return self.finish(timeout)

    def start(self, command: str) -> None:
        """Start a shell command; `finish` must follow before any other."""
        assert not self._pending, "one command at a time"
        assert "\n" not in command
        self._tokens += 1
        self._pending = f"{self._secret}.{self._tokens}"
        data = f"{self._pending} {command}\n".encode()
        assert self._program.stdin is not None
        try:
            # A pipe takes this at once: no line is as long as it.
            self._program.stdin.write(data)
        except BrokenPipeError:
            self._fail("qemu has ended")

    def finish(self, timeout: float = PATIENCE) -> Result:
        """Wait for the command that was started."""
        token, self._pending = self._pending, ""
        mark = f"\n{token} ".encode()
        output = self._read_until(mark, timeout)
        status = self._read_until(b"\n", timeout)
        return Result(int(status), output.decode(errors="replace"))

    def background(self, command: str) -> Running:
        """Start a simple command that stays, and wait for its first line of output."""
        pipe = f"/run/{self._tokens}"
        status, output = self.run(
            # Later output must go on to be read, or the program would stop in the end. The shell takes standard input
            # away from what it runs in the background, but not another descriptor.
            f'mkfifo {pipe}; {command} >{pipe} 2>&1 & echo $!; exec 3<{pipe}; read -r line <&3; echo "$line"; '
            f"cat <&3 >{pipe}.log 2>&1 &"
        )
        process, _, greeting = output.partition("\n")
        assert status == 0 and process.isdigit(), output
        return Running(self, int(process), greeting.strip())

    def _read_until(self, mark: bytes, timeout: float) -> bytes:
        """Give the console's output before `mark`, and pass over both."""
        deadline = time.monotonic() + timeout
        assert self._program.stdout is not None
        descriptor = self._program.stdout.fileno()
        while mark not in self._buffer:
            patience = deadline - time.monotonic()
            if patience <= 0 or not select.select([descriptor], [], [], patience)[0]:
                self._fail(f"the guest did not print {mark!r} in {timeout:g} s")
            data = os.read(descriptor, 65536)
            if not data:
                self._fail("qemu has ended")
            self._buffer += data
        before, _, self._buffer = self._buffer.partition(mark)
        return before

    def _fail(self, what: str) -> NoReturn:
        self.close()
        raise AssertionError(f"{what}; the console said {self._buffer!r}")


def _command(image: Image, socket_path: Path) -> list[str]:
    network = f"stream,id=net,server=off,addr.type=unix,addr.path={socket_path}"
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
        *("-netdev", network, "-device", f"virtio-net-pci,netdev=net,mac={GUEST_MAC},romfile="),
    ]
