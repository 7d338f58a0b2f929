"""The commands that a network file has its hosts run.

Theory of operation: a job is a command in its own session, without standard input, so that no key of the terminal
reaches it. Its output comes through a pipe, line by line. A pidfd (pidfd_open(2), Linux 5.3) says when it has ended,
and a job is over when both its process and its output have ended.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gevent

from gpasst.api.host import Host
from gpasst.commands.lines import read_lines
from gpasst.commands.program import GRACE_SECONDS, command_error, exit_status
from gpasst.commands.report import Report
from gpasst.hub import wait_read
from gpasst.topology.records import CommandPlan
from gpasst.values import shown

if TYPE_CHECKING:
    import subprocess


class Job:
    """A command that runs in a host.

    :param host: name of the host.
    :param command: the command.
    :param process: its process.
    :param output: reading end of the pipe that it writes to.
    """

    def __init__(self, host: str, command: CommandPlan, process: subprocess.Popen[Any], output: int) -> None:
        self.host = host
        self.command = command
        self.process = process
        self._output = output

    def follow(self, report: Report) -> int:
        """Report its output and its end; return its exit status, as of a shell."""
        try:
            for lines in read_lines(self._output):
                report.output(self.host, lines)
        finally:
            os.close(self._output)
        status = self.await_end()
        report.ended(self.host, self.command, status)
        return status

    def await_end(self) -> int:
        """Wait for the end of its process; return its exit status, as of a shell."""
        if self.process.poll() is None:
            handle = os.pidfd_open(self.process.pid)
            try:
                wait_read(handle)
            finally:
                os.close(handle)
        return exit_status(self.process.wait())


class Jobs:
    """All jobs of a network file.

    :param report: where their output and their end are reported.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._jobs: list[Job] = []
        self._tasks: list[Any] = []
        self._failure = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def processes(self) -> list[int]:
        """Return the process IDs of all that were started."""
        return [job.process.pid for job in self._jobs]

    def start(self, host: Host, command: CommandPlan) -> Any:
        """Start a command; return the greenlet that ends with it.

        :raises CommandError: if there is no such program, or it may not be executed.
        """
        from subprocess import DEVNULL

        reader, writer = os.pipe()
        try:
            process = host.popen(
                command.argv[0] if command.shell else command.argv,
                init=True,
                shell=command.shell,
                stdin=DEVNULL,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
            )
        except BaseException as error:
            os.close(reader)
            if isinstance(error, FileNotFoundError | PermissionError):
                raise command_error(error, f"[host.{host.name}] run: {shown(command.argv[0])}") from None
            raise
        finally:
            os.close(writer)
        job = Job(host.name, command, process, reader)
        self._jobs.append(job)
        self._tasks.append(gevent.spawn(self._follow, job))
        return self._tasks[-1]

    def stop_at_end(self, stop: Any) -> None:
        """Set `stop` when all have ended: to the exit status of the first one that failed, 0 without one."""
        gevent.joinall(self._tasks)
        stop.set(self._failure)

    def end(self) -> None:
        """End those that run still, by force if they do not end when asked to."""
        for job in self._jobs:
            job.process.terminate()
        gevent.joinall(self._tasks, GRACE_SECONDS)
        for job in self._jobs:
            job.process.kill()
        # What they wrote last is still read, unless nobody takes it.
        gevent.joinall(self._tasks, GRACE_SECONDS)
        gevent.killall(self._tasks)

    def _follow(self, job: Job) -> None:
        status = job.follow(self._report)
        self._failure = self._failure or status
