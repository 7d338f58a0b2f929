"""``gpasst pasta`` and ``gpasst passt``: open the proxy, wait for the end, clean up.

Theory of operation: whatever may end the process sets one result, `stop`, to its exit status: a signal, the end of the
command, of the joined namespace or of the last guest. The process runs the proxy on its own hub meanwhile, so nothing
here may block the thread, and nothing is monkey-patched: that takes longer than all else of the start. The signals of
the terminal are the command's, where there is one (`gpasst.commands.signals`).

NOTE: this imports all of gpasst; the console script imports it when the helper process is on its way.
"""

from __future__ import annotations

import gc
import logging
import os
from _socket import if_indextoname
from collections.abc import Callable
from typing import Any

import gevent
import gevent.event

from gpasst import runtime
from gpasst.api.passt import Passt
from gpasst.api.pasta import Pasta
from gpasst.commands.announce import announce
from gpasst.commands.handlers import write_standard_error
from gpasst.commands.log import set_up_logging
from gpasst.commands.notify import Manager
from gpasst.commands.options import Invocation
from gpasst.commands.process import PidFile, take_on
from gpasst.commands.program import Program, await_signals, exit_status
from gpasst.commands.sandbox import Sandbox
from gpasst.helper.client import Helper
from gpasst.link.output import give_socket

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
    # The hub's default for reports of errors imports pprint, and dataclasses and inspect with it: 6 ms.
    gevent.config.format_context = "builtins.repr"
    here = runtime.claim()
    here.adopt(helper)
    stop = gevent.event.AsyncResult()
    program_signals = await_signals(stop, invocation.runs_command)
    # Root's own command in --netns-only must stay within reach of signals.
    keeps_identity = invocation.runs_command and invocation.config.netns_only
    taken_on = None if keeps_identity else identity
    sandbox = None if invocation.process.no_sandbox else Sandbox(taken_on, not invocation.config.netns_only)
    proxy: Pasta | Passt
    if invocation.mode == "passt":
        proxy = Passt(invocation.config)
    else:
        # The owner of a new user namespace is whom the process becomes.
        proxy = Pasta(invocation.config, runas=identity if invocation.runs_command and not keeps_identity else None)
    pid_file = PidFile(invocation.process.pid_file)
    manager = Manager(os.environ)
    # While the helper process makes the namespace.
    if sandbox is not None:
        gevent.spawn(sandbox.load)
    try:
        proxy.open()
        if isinstance(proxy, Passt) and proxy.path and identity:
            # Whoever the proxy becomes has to be able to remove it, and qemu may run as the same.
            give_socket(proxy.path, *identity)
        # While the program starts.
        preparing = None if sandbox is None else gevent.spawn(sandbox.prepare, proxy, here.helper())
        announce(proxy, if_indextoname)
        program = None
        if program_signals is not None and isinstance(proxy, Pasta):
            program = Program.start(proxy, invocation.command, program_signals, init=not invocation.process.no_pidns)
        # All is well, and the file may lie where only root can write.
        pid_file.write()
        os.chdir("/")
        # The last step that needs privileges was starting the command, in an interpreter that may be root's own.
        helper_stays = False
        if sandbox is not None and preparing is not None:
            helper_stays = preparing.get()
            sandbox.enter([program.process.pid] if program else [], proxy.can_lose_sight())
        elif taken_on:
            take_on(taken_on)
        # When nobody waits any more for this process to be ready.
        gevent.spawn(_settle, here, helper_stays)
        if ready is not None:
            ready()
        manager.notify("READY=1")
        status = _wait(proxy, program, invocation.process.stats, stop)
        manager.notify("STOPPING=1")
        return status
    finally:
        manager.close()
        pid_file.close()
        proxy.close()
        if program_signals is not None:
            program_signals.close()


def _settle(here: runtime.Runtime, helper_stays: bool) -> None:
    """Do what the start has left for later: end the helper, and begin with the collection of garbage."""
    if not helper_stays:
        # There is one proxy only; without the helper there is less to keep in memory.
        here.close_helper()
    # What lives now lives to the end; looking through it for garbage, even once, is time lost.
    gc.freeze()
    # Nor does a proxy make circles of references that live long. Looking through all peers of a busy guest stops
    # the traffic for a third of a second; the young generations suffice.
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, GARBAGE_RUNS)
    gc.enable()


def _wait(proxy: Pasta | Passt, program: Program | None, stats: int, stop: Any) -> int:
    """Wait for whatever sets `stop`; return the exit status.

    :param stats: seconds between two lines of counters, 0 for none.
    """
    tasks = []
    if stats:
        tasks.append(gevent.spawn(_print_statistics, proxy, stats))
    if program is not None:
        tasks.append(gevent.spawn(program.stop_at_end, stop))
    else:
        tasks.append(gevent.spawn(_await_end, proxy, stop))
    try:
        status: int = stop.get()
    finally:
        gevent.killall(tasks)
    if program is None:
        return 0
    program.end()
    return exit_status(status)


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
        try:
            write_standard_error(
                f"up {now.datagrams_up} datagrams {now.bytes_up} bytes, down {now.datagrams_down} datagrams "
                f"{now.bytes_down} bytes, {now.mappings} mappings, {now.peers} peers, "
                f"TCP up {now.segments_up} segments {now.tcp_bytes_up} bytes, down {now.segments_down} segments "
                f"{now.tcp_bytes_down} bytes, {now.connections} connections, spliced {now.datagrams_spliced} datagrams "
                f"{now.bytes_spliced} bytes, TCP {now.tcp_bytes_spliced} bytes, {now.pairs} pairs, dropped: {drops}"
            )
        except OSError:
            continue  # nobody reads
