"""The console script.

Theory of operation: the command line is read first, so that what is wrong with it costs no time. The helper process is
started before anything heavy is imported, so that both load at once.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from gpasst import __version__
from gpasst.commands.process import (
    EXIT_FAILURE,
    EXIT_USAGE,
    SIGNAL_BASE,
    CommandError,
    check_socket,
    choose_identity,
    complain,
    go_to_background,
    open_standard_descriptors,
    say,
)
from gpasst.errors import ConfigurationError, GpasstError

USAGE = """\
usage: gpasst COMMAND [OPTIONS]

  gpasst pasta [OPTIONS] [-- COMMAND [ARG...]]   run COMMAND, or a shell, in a new network namespace
  gpasst pasta [OPTIONS] PID                     connect the namespace of a running process
  gpasst pasta [OPTIONS] --netns PATH|NAME       connect a namespace by its file or name
  gpasst passt [OPTIONS]                         serve virtual machines on a UNIX socket
  gpasst network FILE [OPTIONS]                  bring up the networks that a file describes
  gpasst demo                                    show that it works, in ten seconds

  gpasst COMMAND --help     the options of a command
  gpasst --version          the version
"""

MODES = ("pasta", "passt")
ABSENT_COMMANDS = ("doctor", "ctl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script; return its exit status, or end the process with it if no arguments are given."""
    open_standard_descriptors()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    called = os.path.basename(sys.argv[0])
    if arguments is None and called in MODES:
        argv.insert(0, called)
    try:
        status = run(argv)
    except GpasstError as error:
        complain(f"gpasst: {error}")
        status = error.status if isinstance(error, CommandError) else EXIT_FAILURE
    except KeyboardInterrupt:
        from signal import SIGINT

        status = SIGNAL_BASE + SIGINT
    if arguments is None:
        leave(status)
    return status


def run(argv: Sequence[str]) -> int:
    """Run a command; return its exit status.

    :raises GpasstError: if something is in the way, other than the command line.
    """
    command = argv[0] if argv else ""
    if command in MODES:
        return run_proxy(command, argv[1:])
    if command == "network":
        return run_network(argv[1:])
    if command == "demo":
        return run_demo(argv[1:])
    if command in ("--version", "-V"):
        say(f"gpasst {__version__}")
        return 0
    if command in ("--help", "-h"):
        say(USAGE, end="")
        return 0
    if command in ABSENT_COMMANDS:
        complain(f"gpasst: {command} is not available yet; see gpasst --help")
    elif command:
        complain(f"gpasst: unknown command {command}; see gpasst --help")
    else:
        complain(USAGE, end="")
    return EXIT_USAGE


def leave(status: int) -> NoReturn:
    """End the process without taking the interpreter down object by object, which takes 20 ms."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def refuse(command: str, error: ConfigurationError) -> int:
    """Print the one line that refuses a command line; return the exit status."""
    complain(f"gpasst {command}: {error}; see gpasst {command} --help")
    return EXIT_USAGE


def run_proxy(mode: str, argv: Sequence[str]) -> int:
    """Run ``gpasst pasta`` or ``gpasst passt``; return its exit status.

    :raises GpasstError: if something is in the way, other than the command line.
    """
    # A collection would only look at modules, until `serve` has opened the proxy.
    gc.disable()
    from gpasst.commands.options import read

    try:
        invocation = read(mode, argv)
        identity = choose_identity(invocation.process.runas)
    except ConfigurationError as error:
        return refuse(mode, error)
    if invocation.config.fd is not None:
        # Before anything else may get that number.
        check_socket(invocation.config.fd)
    ready: Callable[[], None] | None = None
    if not invocation.process.foreground and not invocation.runs_command:
        ready = go_to_background(invocation.config.fd)
    from gpasst.helper.client import Helper

    helper = Helper.start(forks=True)
    try:
        from gpasst.commands.serve import serve

        return serve(helper, invocation, identity, ready)
    finally:
        helper.close()


def run_network(argv: Sequence[str]) -> int:
    """Run ``gpasst network``; return its exit status.

    :raises GpasstError: if something is in the way, other than the command line and the file.
    """
    from gpasst.commands.network_options import load, read_network, show_picture

    try:
        invocation = read_network(argv)
    except ConfigurationError as error:
        return refuse("network", error)
    try:
        topology = load(invocation)
    except ConfigurationError as error:
        complain(f"gpasst network: {error}")
        return EXIT_USAGE
    if invocation.draws:
        show_picture(invocation, topology)
        return 0
    from gpasst.helper.client import Helper

    helper = Helper.start(forks=True)
    try:
        from gpasst.commands.network import bring_up

        return bring_up(helper, invocation, topology)
    finally:
        helper.close()


def run_demo(argv: Sequence[str]) -> int:
    """Run ``gpasst demo``; return its exit status."""
    from gpasst.commands.options import read_demo

    try:
        as_json = read_demo(argv)
    except ConfigurationError as error:
        return refuse("demo", error)
    from gpasst.commands import demo

    return demo.run(as_json)
