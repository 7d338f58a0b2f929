"""The serial console of a guest whose first process is `init.sh`: one command at a time, and its output.

Waiting is always for output of the guest, never for time to pass. A guest that does not answer in time is ended.
"""

from __future__ import annotations

import os
import secrets
import select
import time
from typing import NamedTuple, NoReturn

BOOT_PATIENCE = 60.0  # seconds; booting takes two on an idle machine
PATIENCE = 10.0  # seconds until a command of the guest counts as lost
READY = b"\n@ready\n"


class Result(NamedTuple):
    """How a command ended, and what it printed on either stream."""

    status: int
    output: str


class Running:
    """A program in the background of a guest; leaving the context ends it."""

    def __init__(self, console: Console, process: int, greeting: str) -> None:
        self.console = console
        self.process = process
        self.greeting = greeting

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.alive:
            self.console.run(f"kill {self.process}")


class Console:
    """The console; it is there when the guest is ready for commands.

    :param reader: descriptor of what the guest prints.
    :param writer: descriptor of what it reads.
    :raises AssertionError: if the guest is not ready in time.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._failed = False
        self._reader = reader
        self._writer = writer
        self._buffer = b""
        self._tokens = 0
        self._secret = secrets.token_hex(4)
        self._pending = ""
        # What qemu itself has to say comes before it ends, or before the guest is ready.
        self._read_until(READY, BOOT_PATIENCE)

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return not self._failed

    def close(self) -> None:
        """End what is at the other end, where that is known."""

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
        try:
            # A pipe takes this at once: no line is as long as it.
            os.write(self._writer, data)
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
        while mark not in self._buffer:
            patience = deadline - time.monotonic()
            if patience <= 0 or not select.select([self._reader], [], [], patience)[0]:
                self._fail(f"the guest did not print {mark!r} in {timeout:g} s")
            data = os.read(self._reader, 65536)
            if not data:
                self._fail("qemu has ended")
            self._buffer += data
        before, _, self._buffer = self._buffer.partition(mark)
        return before

    def _fail(self, what: str) -> NoReturn:
        self._failed = True
        self.close()
        raise AssertionError(f"{what}; the console said {self._buffer!r}")
