"""``gpasst network``: open what a file describes, run its commands, wait for the end, clean up.

Theory of operation: one result, `stop`, ends it: a signal, the end of the shell or COMMAND, or else the end of all
commands of the file. As in `gpasst.commands.serve`, the process runs everything on its own hub, so nothing here blocks
the thread. What is reported goes to standard output, or to standard error where the shell has that.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import gevent
import gevent.event

from gpasst import runtime
from gpasst.api.host import Host
from gpasst.commands.course import Course
from gpasst.commands.jobs import Jobs
from gpasst.commands.lines import Lines
from gpasst.commands.network_options import NetworkInvocation
from gpasst.commands.network_parts import Parts
from gpasst.commands.program import Program, await_signals, exit_status
from gpasst.commands.report import JsonReport, Report, TextReport
from gpasst.commands.sandbox import Sandbox
from gpasst.errors import GpasstError, PlatformError
from gpasst.helper.client import Helper
from gpasst.topology.records import HostPlan, PortPlan, Topology

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2
BOUND_SECONDS = 10.0  # that a command has to bind the ports which others wait for


def bring_up(helper: Helper, invocation: NetworkInvocation, topology: Topology) -> int:
    """Open the networks, run the commands, and wait for the end; return the exit status.

    :param helper: the helper process.
    :param invocation: the command line.
    :param topology: what its file describes.
    :raises GpasstError: if something is in the way.
    """
    gevent.config.format_context = "builtins.repr"  # see `gpasst.commands.serve.serve`
    here = runtime.claim()
    here.adopt(helper)
    stop = gevent.event.AsyncResult()
    signals = await_signals(stop, runs_command=bool(invocation.shell))
    report = _report(invocation, topology, stop)
    jobs = Jobs(report)
    with ExitStack() as stack:
        if signals is not None:
            stack.callback(signals.close)
        parts = Parts(stack)
        parts.open(topology, stop.ready)
        stack.callback(jobs.end)
        weather = Course(parts, report)
        stack.callback(weather.end)
        if not stop.ready():
            weather.begin(topology)
            report.up(topology, parts)
        for host in topology.hosts:
            _run(host, parts, jobs, stop)
        weather.start(stop)
        running = jobs.processes()
        if signals is not None and not stop.ready():
            program = Program.start(parts.hosts[invocation.shell], invocation.command, signals, init=True)
            running.append(program.process.pid)
            stack.callback(program.end)
            gevent.spawn(program.stop_at_end, stop)
        elif jobs:
            gevent.spawn(jobs.stop_at_end, stop)
        # There will be no more namespaces.
        here.close_helper()
        if not invocation.no_sandbox:
            for kept in parts.hosts.values():
                kept.confine_keeper()
            sandbox = Sandbox(None, own_user=True)
            sandbox.load()
            sandbox.enter(running)
        status = exit_status(stop.get())
    # Where nothing is to run, a signal is the ordinary end.
    return status if invocation.shell or any(host.run for host in topology.hosts) else 0


def _report(invocation: NetworkInvocation, topology: Topology, stop: Any) -> Report:
    """Return where events are reported; an error there ends all."""

    def failed(error: OSError) -> None:
        stop.set_exception(PlatformError(f"output: {error.strerror}", "lead it to where it can be written"))

    lines = Lines(STANDARD_ERROR if invocation.shell else STANDARD_OUTPUT, failed)
    if invocation.as_json:
        return JsonReport(lines)
    width = max((len(host.name) for host in topology.hosts), default=0)
    return TextReport(lines, width, quiet=bool(invocation.command))


def _run(plan: HostPlan, parts: Parts, jobs: Jobs, stop: Any) -> None:
    """Start the commands of a host, and wait for the ports that they bind, unless all is stopped.

    :raises GpasstError: if a command cannot be executed, or binds no such port.
    """
    if stop.ready():
        return
    host = parts.hosts[plan.name]
    running = [jobs.start(host, command) for command in plan.run]
    ended = gevent.spawn(gevent.joinall, running)
    for port in plan.wait_bound:
        waiting = gevent.spawn(_await_bound, host, port)
        gevent.wait([waiting, ended, stop], count=1)
        if not waiting.ready():
            waiting.kill()
            if stop.ready():
                return
            raise PlatformError(f"[host.{host.name}] ended before {port} was bound", "see what its commands wrote")
        if waiting.value is not None:
            raise waiting.value


def _await_bound(host: Host, port: PortPlan) -> GpasstError | None:
    """Wait until a port of a host is bound; return the error if it is not in time."""
    try:
        host.wait_bound(port.protocol, int(port.ports), BOUND_SECONDS)
    except GpasstError as error:
        return PlatformError(f"[host.{host.name}] wait_bound: {error.message}", error.remedy or "see its output")
    return None
