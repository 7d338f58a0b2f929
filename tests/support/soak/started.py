"""The programs of a soak: proxies, machines under load, and orders to them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from gpasst.helper.client import Helper, enter_command
from tests.support import pump
from tests.support.machines import card

if TYPE_CHECKING:
    from typing_extensions import Self

MODULES = "tests.support.soak"
END_SECONDS = 20.0  # until a program that was asked to end is killed

# Makes of a command line the one that runs it on a machine, and names the descriptors that it inherits.
Place = Callable[[list[str]], tuple[list[str], tuple[int, ...]]]


def here(command: list[str]) -> tuple[list[str], tuple[int, ...]]:
    """The host is where this process is."""
    return command, ()


class Ordered:
    """A program that carries out orders, each a line that it answers with one.

    :param module: of `tests.support.soak`.
    :param arguments: of its command line.
    :param place: where it runs.
    :param errors: the file for its standard error.
    :ivar opened: what it said first.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        errors: Path,
        place: Place = here,
        start: Callable[..., subprocess.Popen[str]] = subprocess.Popen,
    ) -> None:
        command, inherited = place([sys.executable, "-m", f"{MODULES}.{module}", *arguments])
        self.errors = errors
        with errors.open("w", encoding="utf-8") as file:
            self._program = start(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                pass_fds=inherited,
            )
        self.pid = self._program.pid
        self.opened = self._line()

    def order(self, text: str) -> Any:
        """Give an order, and return what comes of it.

        :raises AssertionError: with what the program has complained about, if it has ended.
        """
        self.send(text)
        return json.loads(self._line())

    def send(self, text: str) -> None:
        """Give an order; its answer is to be awaited by `answer`."""
        assert self._program.stdin is not None
        self._program.stdin.write(f"{text}\n")
        self._program.stdin.flush()

    def answer(self) -> Any:
        """Return what came of the order that was sent before."""
        return json.loads(self._line())

    @property
    def output(self) -> IO[str]:
        """Where its answers come."""
        assert self._program.stdout is not None
        return self._program.stdout

    def close(self) -> None:
        """Let it end."""
        assert self._program.stdin is not None
        self._program.stdin.close()
        try:
            self._program.wait(END_SECONDS)
        finally:
            self._program.kill()
            self._program.wait()
            self.output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> str:
        line = self.output.readline()
        assert line, f"it ended: {self.errors.read_text(encoding='utf-8')}"
        return line


def proxies(errors: Path, **options: dict[str, Any]) -> Ordered:
    """Start proxies.

    :param options: the keywords of each mode.
    """
    return Ordered("proxy", [json.dumps(options)], errors)


def behind_tap(proxy: Ordered) -> Place:
    """Return where programs run in the namespace of a proxy."""
    prefix = json.loads(proxy.opened)["nsenter"]
    return lambda command: ([*prefix, *command], ())


@contextmanager
def behind_stream(path: str) -> Iterator[Place]:
    """A machine on the socket of a proxy, with a kernel of its own; yields where programs run on it."""
    with Helper.start() as helper, helper.open(card()) as namespace, socket.socket(socket.AF_UNIX) as link:
        link.connect(path)
        control, inner = socket.socketpair()
        with control:
            with inner:
                descriptors = namespace.tap, link.fileno(), inner.fileno()
                command = [sys.executable, "-I", "-S", pump.__file__, *map(str, descriptors)]
                program = subprocess.Popen(command, pass_fds=descriptors)
            try:
                yield lambda command: enter_command(namespace, command)
            finally:
                program.kill()
                program.wait()
