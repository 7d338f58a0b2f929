"""The command lines: parsers of each command, and the records that they fill.

Theory of operation: options come from `gpasst.config`, where each is declared once, with the rule of its values; only
those of the process itself (identity, logging, background) are declared here, in the same form. argparse divides the
command line; values are checked by their rules, and every refusal is worded here. An option that belongs to the other
command is refused by name. So is one of a part that does not exist yet, unless it switches that part off, since then it
asks for nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from gpasst import __version__
from gpasst.commands.process import EXIT_USAGE, LOG_SIZE_DEFAULT, LOG_SIZE_MINIMUM, ProcessOptions
from gpasst.config import Config, given_fields, long_option, options
from gpasst.errors import ConfigurationError
from gpasst.option import Option, check_value
from gpasst.values import NONE, number, parse_number, shown

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
    ("--conf-path", "-c", "PATH", "the control socket"),
    ("--vhost-user", "", "", "vhost-user"),
)
DAY = 86_400  # seconds
# Long name, and the option in the form of `gpasst.option`.
PROCESS_OPTIONS = {
    "foreground": ("--foreground", Option("stay in the foreground", short="-f")),
    "pid_file": ("--pid", Option("write the process ID to FILE", "FILE", "-P", kind=str)),
    "runas": ("--runas", Option("identity to take on as root [nobody]", "UID[:GID]", kind=str)),
    "debug": ("--debug", Option("log everything but single packets", short="-d")),
    "trace": ("--trace", Option("log everything")),
    "quiet": ("--quiet", Option("log errors only", short="-q")),
    "stderr": ("--stderr", Option("without effect, as in passt: standard error is logged to anyway", short="-e")),
    "log_file": ("--log-file", Option("log to FILE only", "FILE", "-l", kind=str)),
    "log_size": (
        "--log-size",
        Option(
            f"size that the log file is kept below [{LOG_SIZE_DEFAULT}]",
            "BYTES",
            kind=int,
            rule=number(LOG_SIZE_MINIMUM, unit="bytes"),
        ),
    ),
    "stats": (
        "--stats",
        Option("print counters every SECONDS", "SECONDS", kind=int, rule=number(1, DAY, "seconds", zero=True)),
    ),
}
# Forwarded as bound on the other side unless something else is asked for, as in pasta.
AUTOMATIC = ("tcp_ports", "udp_ports", "tcp_ns", "udp_ns")


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
    """An argument parser whose errors are one line, in words of gpasst's own.

    :param prog: the command.
    """

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog=prog, allow_abbrev=False, exit_on_error=False, **settings)

    def divide(self, argv: Sequence[str]) -> argparse.Namespace:
        """Divide a command line into its options; a malformed one ends the process with one line."""
        try:
            given, rest = self.parse_known_args(list(argv))
        except argparse.ArgumentError as error:
            # There are two kinds: an option that lacks its value, and a switch that has one.
            name = (error.argument_name or "").rpartition("/")[2]
            action = next(action for action in self._actions if name in action.option_strings)
            if action.nargs == 0:
                self.error(f"{name} takes no value")
            value = action.metavar or "a value"
            self.error(f"{name} lacks its value: write {name} {value}, or {name}=VALUE if that begins with a dash")
        if rest:
            self.error(f"{shown(rest[0])} is not an option or argument of {self.prog}")
        return given

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
    parser = Parser(prog=f"gpasst {mode}", usage=USAGES[mode], description=DESCRIPTIONS[mode])
    groups: dict[str, Any] = {}
    mine = options(mode)
    defaults = {item.name: item.default for item in given_fields()}
    for name, option in options().items():
        if name in mine:
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            _add_option(groups[option.group], name, long_option(name), option, defaults[name])
        else:
            # A missing value is no reason to refuse it in other words.
            count = "?" if option.metavar else 0
            parser.add_argument(
                *_names(long_option(name), option),
                action=RefuseOther,
                const=option.mode,
                nargs=count,
                help=argparse.SUPPRESS,
            )
    process = parser.add_argument_group("process")
    for name, (long, option) in PROCESS_OPTIONS.items():
        _add_option(process, name, long, option, None if option.metavar else False)
    process.add_argument("--version", action="version", version=f"gpasst {__version__}")
    for long, short, value, part in ABSENT_OPTIONS:
        names = [short, long] if short else [long]
        count = "?" if value else 0
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
    given = parser.divide(argv)
    fields = {name: _value(long_option(name), option, getattr(given, name)) for name, option in options(mode).items()}
    command = _complete_pasta(fields, given, argv) if mode == "pasta" else []
    config = Config(**fields)
    config.check_mode(mode)
    if command and not config.creates_namespace:
        raise ConfigurationError(
            f"{shown(command[0])} cannot be run in a namespace that is joined",
            "use nsenter for that, or leave out --netns",
        )
    process = _read_process(given)
    runs_command = mode == "pasta" and config.creates_namespace
    if process.stats and not process.foreground and not runs_command:
        raise ConfigurationError(
            f"--stats {process.stats} prints on standard error, which a process in the background has not",
            "add --foreground",
        )
    return Invocation(mode, config, tuple(command), process)


def _value(long: str, option: Option, given: Any) -> Any:
    """Return the value of an option, from its text; what is not given stays as it is.

    :raises ConfigurationError: if it should be a number and is none.
    """
    if option.kind is not int or not isinstance(given, str) or not given:
        return given
    try:
        return parse_number(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{long} {shown(given)} {error.message}", error.remedy) from None


def _read_process(given: argparse.Namespace) -> ProcessOptions:
    """Return the options of the process.

    :raises ConfigurationError: if a value breaks its rule, or two options contradict each other.
    """
    values = {name: _value(long, option, getattr(given, name)) for name, (long, option) in PROCESS_OPTIONS.items()}
    for name, (long, option) in PROCESS_OPTIONS.items():
        if values[name] is not None:
            check_value(long, option, values[name])
    verbose = values["debug"] or values["trace"]
    if values["quiet"] and verbose:
        raise ConfigurationError("--quiet and --debug exclude each other", "give only one of them")
    if values["log_size"] is not None and values["log_file"] is None:
        raise ConfigurationError(
            f"--log-size {values['log_size']} is the size of a log file, and there is none", "add --log-file FILE"
        )
    return ProcessOptions(
        foreground=values["foreground"],
        pid_file=values["pid_file"] or "",
        runas=values["runas"] or "",
        verbose=verbose,
        quiet=values["quiet"],
        log_file=values["log_file"] or "",
        log_size=values["log_size"] or LOG_SIZE_DEFAULT,
        stats=values["stats"] or 0,
    )


def read_demo(argv: Sequence[str]) -> bool:
    """Read a command line of ``gpasst demo``; return whether the figures are printed as JSON."""
    parser = Parser(prog="gpasst demo", description="Show that it works, in ten seconds.")
    parser.add_argument("--json", action="store_true", help="print the figures for a program to read")
    return bool(parser.divide(argv).json)


def _names(long: str, option: Option) -> list[str]:
    """Return the short and the long form of an option."""
    return [option.short, long] if option.short else [long]


def _add_option(group: Any, name: str, long: str, option: Option, default: Any) -> None:
    """Add an option; its value stays text here.

    :param name: name of the value among those that are parsed.
    :param default: its value if it is not given, which ``--help`` shows unless it is void.
    """
    settings: dict[str, Any] = {"dest": name, "help": option.help}
    if not option.metavar:
        settings["action"] = "store_true"
    elif option.repeat:
        settings |= {"action": "append", "default": [], "metavar": option.metavar}
    else:
        settings |= {"default": default, "metavar": option.metavar}
        if default:
            settings["help"] = f"{option.help} [{default}]"
    group.add_argument(*_names(long, option), **settings)


def _complete_pasta(fields: dict[str, Any], given: argparse.Namespace, argv: Sequence[str]) -> list[str]:
    """Add the PID and the defaults of ``gpasst pasta`` to `fields`; return the command.

    :raises ConfigurationError: if there should be a command, or a process number, and there is an empty text or none.
    """
    command: list[str] = given.command[1:] if given.command[:1] == ["--"] else given.command
    if command[:1] == [""] or (not command and list(argv[-1:]) == ["--"]):
        raise ConfigurationError(
            f"COMMAND {'is empty' if command else 'is missing behind --'}",
            "give a program and its arguments, or nothing for a shell",
        )
    if len(command) == 1 and command[0].isdecimal() and "--" not in argv:
        fields["pid"] = int(command.pop())
    impossible = {"tcp_ns": given.no_splice, "udp_ns": given.no_splice}
    for name in AUTOMATIC:
        fields[name] = fields[name] or [NONE if impossible.get(name) else "auto"]
    return command
