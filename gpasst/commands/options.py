"""The command lines: parsers of each command, and the records that they fill.

Theory of operation: options come from `gpasst.config`, where each is declared once; only those of the process itself
(identity, logging, background) are declared here. An option that belongs to the other command is refused by name. So
is one of a part that does not exist yet, unless it switches that part off, since then it asks for nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from gpasst import __version__
from gpasst.commands.process import EXIT_USAGE, LOG_SIZE_DEFAULT, ProcessOptions
from gpasst.config import NO_FD, Config, Option, long_option, options
from gpasst.errors import ConfigurationError
from gpasst.values import NONE

USAGES = {
    "pasta": "gpasst pasta [OPTIONS] [-- COMMAND [ARG...]] | PID | --netns PATH|NAME",
    "passt": "gpasst passt [OPTIONS]",
}
DESCRIPTIONS = {
    "pasta": "Give a network namespace the network of an ordinary process.",
    "passt": "Give virtual machines the network of an ordinary process.",
}
# Long name, short name, name of the value ("" for a switch), the part that does not exist yet.
ABSENT_OPTIONS = (
    ("--tcp-ports", "-t", "SPEC", "TCP forwarding"),
    ("--tcp-ns", "-T", "SPEC", "TCP forwarding"),
    ("--conf-path", "-c", "PATH", "the control socket"),
    ("--vhost-user", "", "", "vhost-user"),
)
# Forwarded as bound on the other side unless something else is asked for, as in pasta.
AUTOMATIC = ("udp_ports", "udp_ns")


class Invocation(NamedTuple):
    """A command line of ``gpasst pasta`` or ``gpasst passt``.

    :ivar mode: ``"pasta"`` or ``"passt"``.
    :ivar config: the options of the connection.
    :ivar command: the program to run in the namespace, and its arguments; empty for a shell.
    :ivar process: the options of the process.
    """

    mode: str
    config: Config
    command: tuple[str, ...]
    process: ProcessOptions

    @property
    def runs_command(self) -> bool:
        """Whether a program is run in a new namespace, and ends it."""
        return self.mode == "pasta" and self.config.creates_namespace


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


class RefuseAbsent(argparse.Action):
    """The action of an option whose part does not exist yet."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        """Refuse, unless nothing is asked for."""
        if values != NONE:
            parser.error(f"{option} is not available yet: {self.const} is still to come")


class RefuseOther(argparse.Action):
    """The action of an option that belongs to the other command."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        """Refuse."""
        parser.error(f"{option} is an option of gpasst {self.const}")


def make_parser(mode: str) -> Parser:
    """Return the parser of ``gpasst pasta`` or ``gpasst passt``."""
    parser = Parser(prog=f"gpasst {mode}", usage=USAGES[mode], description=DESCRIPTIONS[mode], allow_abbrev=False)
    groups: dict[str, Any] = {}
    mine = options(mode)
    for name, option in options().items():
        if name in mine:
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            _add_option(groups[option.group], name, option)
        else:
            count = None if option.metavar else 0
            parser.add_argument(
                *_names(name, option), action=RefuseOther, const=option.mode, nargs=count, help=argparse.SUPPRESS
            )
    _add_process_options(parser)
    for long, short, value, part in ABSENT_OPTIONS:
        names = [short, long] if short else [long]
        count = None if value else 0
        parser.add_argument(*names, action=RefuseAbsent, const=part, nargs=count, help=argparse.SUPPRESS)
    if mode == "pasta":
        parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def read(parser: Parser, mode: str, argv: Sequence[str]) -> Invocation:
    """Read a command line of ``gpasst pasta`` or ``gpasst passt``; a malformed one ends the process with one line.

    :param parser: the parser of that command.
    :param argv: the arguments after the command's name.
    :raises ConfigurationError: if an option has a value that makes no sense, or two contradict each other.
    """
    given = parser.parse_args(argv)
    fields: dict[str, Any] = {name: getattr(given, name) for name in options(mode)}
    command = _complete_pasta(fields, given, argv) if mode == "pasta" else []
    config = Config(**fields)
    config.check_mode(mode)
    if command and not config.creates_namespace:
        raise ConfigurationError(
            f"{command[0]} cannot be run in a namespace that is joined",
            "use nsenter for that, or leave out --netns",
        )
    verbose = given.debug or given.trace
    if given.quiet and verbose:
        raise ConfigurationError("--quiet and --debug exclude each other", "give only one of them")
    process = ProcessOptions(
        foreground=given.foreground,
        pid_file=given.pid_file,
        runas=given.runas,
        verbose=verbose,
        quiet=given.quiet,
        stderr=given.stderr,
        log_file=given.log_file,
        log_size=given.log_size,
        stats=given.stats,
    )
    return Invocation(mode, config, tuple(command), process)


def read_demo(argv: Sequence[str]) -> bool:
    """Read a command line of ``gpasst demo``; return whether the figures are printed as JSON."""
    parser = Parser(prog="gpasst demo", description="Show that it works, in ten seconds.", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the figures for a program to read")
    return bool(parser.parse_args(argv).json)


def _names(name: str, option: Option) -> list[str]:
    """Return the short and the long form of an option."""
    return [option.short, long_option(name)] if option.short else [long_option(name)]


def _add_option(group: Any, name: str, option: Option) -> None:
    """Add an option of the command itself."""
    names = _names(name, option)
    default = Config.__dataclass_fields__[name].default
    if not option.metavar:
        group.add_argument(*names, action="store_true", help=option.help)
    elif option.repeat:
        group.add_argument(*names, action="append", default=[], metavar=option.metavar, help=option.help)
    else:
        shown = f"{option.help} [{default}]" if default and default != NO_FD else option.help
        kind = int if isinstance(default, int) else str
        group.add_argument(*names, type=kind, default=default, metavar=option.metavar, help=shown)


def _add_process_options(parser: Parser) -> None:
    """Add the options of the process."""
    group = parser.add_argument_group("process")
    group.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    group.add_argument("-P", "--pid", dest="pid_file", default="", metavar="FILE", help="write the process ID to FILE")
    group.add_argument("--runas", default="", metavar="UID[:GID]", help="identity to take on as root [nobody]")
    group.add_argument("-d", "--debug", action="store_true", help="log everything but single packets")
    group.add_argument("--trace", action="store_true", help="log everything")
    group.add_argument("-q", "--quiet", action="store_true", help="log errors only")
    group.add_argument("-e", "--stderr", action="store_true", help="log to standard error too")
    group.add_argument("-l", "--log-file", default="", metavar="FILE", help="log to FILE only")
    group.add_argument(
        "--log-size", type=int, default=LOG_SIZE_DEFAULT, metavar="BYTES", help="rotate the log file at BYTES"
    )
    group.add_argument("--stats", type=int, default=0, metavar="SECONDS", help="print counters every SECONDS")
    group.add_argument("--version", action="version", version=f"gpasst {__version__}")


def _complete_pasta(fields: dict[str, Any], given: argparse.Namespace, argv: Sequence[str]) -> list[str]:
    """Add the PID and the defaults of ``gpasst pasta`` to `fields`; return the command."""
    command: list[str] = given.command[1:] if given.command[:1] == ["--"] else given.command
    if len(command) == 1 and command[0].isdecimal() and "--" not in argv:
        fields["pid"] = int(command.pop())
    for name in AUTOMATIC:
        fields[name] = fields[name] or ([NONE] if name == "udp_ns" and given.no_splice else ["auto"])
    return command
