"""``gpasst pasta`` and ``gpasst passt``: open the proxy, wait for the end, clean up.

Theory of operation: whatever may end the process sets one result, `stop`, to its exit status: a signal, the end of the
command, of the joined namespace or of the last guest. The process runs the proxy on its own hub meanwhile.

NOTE: this imports all of gpasst; the console script imports it when everything is monkey-patched and the helper
process is on its way.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event

from gpasst import runtime
from gpasst.api.passt import Passt
from gpasst.api.pasta import Pasta
from gpasst.commands.announce import announce
from gpasst.commands.log import set_up_logging
from gpasst.commands.options import Invocation
from gpasst.commands.process import SIGNAL_BASE, open_pid_file, take_on
from gpasst.errors import ConfigurationError
from gpasst.helper.client import Helper

GRACE_SECONDS = 0.3  # for the command to end by itself after a signal

GARBAGE_RUNS = 1_000_000  # of the middle generation's collector for each of the oldest's: in practice never

log = logging.getLogger("gpasst")


def serve(
    helper: Helper, invocation: Invocation, identity: tuple[int, int] | None, ready: Callable[[], None] | None
) -> int:
    """Open the proxy, wait for the end, and clean up; return the exit status.

    :param helper: the helper process, which ends once the proxy is open.
    :param invocation: the command line.
    :param identity: user and group id to take on, None to keep those of the process.
    :param ready: called when the proxy is open, None in the foreground.
    :raises GpasstError: if something is in the way.
    """
    set_up_logging(invocation.process, background=ready is not None, runs_command=invocation.runs_command)
    here = runtime.current()
    here.adopt(helper)
    stop = await_signals()
    keeps_identity = invocation.runs_command and invocation.config.netns_only
    proxy: Pasta | Passt
    if invocation.mode == "passt":
        proxy = Passt(invocation.config)
    else:
        # The owner of a new user namespace is whom the process becomes.
        proxy = Pasta(invocation.config, runas=identity if invocation.runs_command and not keeps_identity else None)
    pid_file = open_pid_file(invocation.process.pid_file)
    try:
        proxy.open()
        # There is one proxy only; without the helper there is less to keep in memory.
        here.close_helper()
        if pid_file is not None:
            with pid_file:
                pid_file.write(f"{os.getpid()}\n")
        # What lives now lives to the end; looking through it again and again for garbage is time lost.
        gc.collect()
        gc.freeze()
        # Nor does a proxy make circles of references that live long. Looking through all peers of a busy guest stops
        # the traffic for a third of a second; the young generations suffice.
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, GARBAGE_RUNS)
        if isinstance(proxy, Passt) and proxy.path and identity:
            # Whoever the proxy becomes has to be able to remove it, and qemu may run as the same.
            os.chown(proxy.path, *identity)
        announce(proxy, socket.if_indextoname)
        # Root's own command in --netns-only must stay within reach of signals.
        return _wait(proxy, invocation, ready, None if keeps_identity else identity, stop)
    finally:
        proxy.close()


def await_signals() -> Any:
    """Return a result that a signal which asks the process to end sets to the exit status."""
    stop = gevent.event.AsyncResult()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        gevent.signal_handler(number, stop.set, SIGNAL_BASE + number)
    return stop


def _wait(
    proxy: Pasta | Passt,
    invocation: Invocation,
    ready: Callable[[], None] | None,
    identity: tuple[int, int] | None,
    stop: Any,
) -> int:
    """Wait for whatever sets `stop`; return the exit status."""
    tasks = []
    if invocation.process.stats:
        tasks.append(gevent.spawn(_print_statistics, proxy, invocation.process.stats))
    program = None
    if isinstance(proxy, Pasta) and invocation.runs_command:
        program = _start(proxy, invocation.command)
        tasks.append(gevent.spawn(_await_program, program, stop))
    else:
        tasks.append(gevent.spawn(_await_end, proxy, stop))
    try:
        if identity:
            # The last step that needs privileges was starting the command, in an interpreter that may be root's own.
            take_on(identity)
        if ready is not None:
            ready()
        status: int = stop.get()
    finally:
        gevent.killall(tasks)
    if program is None:
        return 0
    _end(program)
    return status if status >= 0 else SIGNAL_BASE - status


def _start(pasta: Pasta, command: tuple[str, ...]) -> subprocess.Popen[Any]:
    """Start the command, or a shell, in the namespace.

    :raises ConfigurationError: if there is no such program.
    """
    program = command or (os.environ.get("SHELL") or "/bin/sh", "-l")
    try:
        return pasta.popen(program, init=True, tied=True)
    except FileNotFoundError:
        remedy = "check its name and PATH" if command else "check the variable SHELL"
        raise ConfigurationError(f"{program[0]}: command not found", remedy) from None


def _end(program: subprocess.Popen[Any]) -> None:
    """End the command if it runs still."""
    if program.poll() is None:
        program.terminate()
        try:
            program.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def _await_program(program: subprocess.Popen[Any], stop: Any) -> None:
    """Stop with the status of the command when it has ended."""
    stop.set(program.wait())


def _await_end(proxy: Pasta | Passt, stop: Any) -> None:
    """Stop when the guest has gone for good, unless a signal came first."""
    if not stop.ready():
        proxy.wait()
        stop.set(0)


def _print_statistics(proxy: Pasta | Passt, seconds: int) -> None:
    """Print a line of counters on standard error, again and again."""
    while True:
        gevent.sleep(seconds)
        now = proxy.statistics()
        drops = ", ".join(f"{count} {reason}" for reason, count in sorted(now.drops.items())) or "none"
        print(
            f"up {now.datagrams_up} datagrams {now.bytes_up} bytes, down {now.datagrams_down} datagrams "
            f"{now.bytes_down} bytes, {now.mappings} mappings, {now.peers} peers, dropped: {drops}",
            file=sys.stderr,
        )
