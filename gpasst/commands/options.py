"""The command lines: what each command takes, and the records that they fill.

Theory of operation: options come from `gpasst.config`, where each is declared once, with the rule of its values; only
those of the process itself (identity, logging, background) are declared here, in the same form.
`gpasst.commands.arguments` divides the command line; values are checked by their rules, and every refusal is worded
here. An option that belongs to the other command is refused by name. So is one of passt for a part that gpasst has not,
with the reason.

NOTE: this is read before the helper process starts, so argparse, which formats ``--help``, is imported for that alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gpasst import __version__
from gpasst.commands.arguments import Argument, Divided, Given, divide
from gpasst.commands.process import LOG_SIZE_DEFAULT, LOG_SIZE_MINIMUM, ProcessOptions, say
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
STREAM_ONLY = "connect qemu with -netdev stream instead"
NO_MIGRATION = ("belongs to the migration of vhost-user guests, which gpasst does not serve", "leave it out")
# What passt takes and gpasst refuses: spellings, name of the value, and refusal, see `Argument`.
REFUSED = {
    "conf_path": (
        ("-c", "--conf-path"),
        "PATH",
        ("is not available yet: the control socket is still to come", "leave it out"),
    ),
    "vhost_user": (("--vhost-user",), "", ("needs a back-end of shared memory, which gpasst has not", STREAM_ONLY)),
    "print_capabilities": (
        ("--print-capabilities",),
        "",
        ("is about a back-end for vhost-user, which gpasst has not", STREAM_ONLY),
    ),
    "repair_path": (("--repair-path",), "PATH", NO_MIGRATION),
    "migrate_exit": (("--migrate-exit",), "", NO_MIGRATION),
    "migrate_no_linger": (("--migrate-no-linger",), "", NO_MIGRATION),
}
HARMLESS = {"repair_path": NONE}
# Options that contradict each other: on a command line the last one counts, as in passt.
RIVALS = (
    ("ipv4_only", "ipv6_only"),
    ("userns", "netns_only"),
    ("socket", "fd"),
    ("quiet", "debug"),
    ("quiet", "trace"),
)
HELP, VERSION = "help", "version"
DEMO_USAGE = """\
usage: gpasst demo [--json]

Show that it works, in ten seconds.

  --json      print the figures for a program to read
  -h, --help  print this
"""
DAY = 86_400  # seconds
# Long name, and the option in the form of `gpasst.option`.
PROCESS_OPTIONS = {
    "foreground": ("--foreground", Option("stay in the foreground", short="-f")),
    "pid_file": ("--pid", Option("write the process ID to FILE", "FILE", "-P", kind=str)),
    "runas": ("--runas", Option("identity to take on as root [nobody]", "UID[:GID]", kind=str)),
    "debug": ("--debug", Option("log more", short="-d")),
    "trace": ("--trace", Option("the same as --debug")),
    "quiet": ("--quiet", Option("log errors only", short="-q")),
    "no_pidns": (
        "--no-pidns",
        Option("run COMMAND in the PID namespace of gpasst, with the same /proc", mode="pasta"),
    ),
    "no_sandbox": ("--no-sandbox", Option("enter no sandbox once all is set up, to debug")),
    "chroot_fallback": ("--chroot-fallback", Option("without effect: gpasst keeps its root folder where it has to")),
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


def help_text(mode: str) -> str:
    """Return what ``--help`` of ``gpasst pasta`` or ``gpasst passt`` prints."""
    import argparse

    parser = argparse.ArgumentParser(f"gpasst {mode}", USAGES[mode], DESCRIPTIONS[mode], add_help=False)
    groups: dict[str, Any] = {}
    defaults = {item.name: item.default for item in given_fields()}
    for name, option in options(mode).items():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(*option.spellings(long_option(name)), **_settings(option, defaults[name]))
    process = parser.add_argument_group("process")
    for long, option in _process_options(mode).values():
        process.add_argument(*option.spellings(long), **_settings(option, None))
    process.add_argument("--version", action="store_true", help="print the version")
    process.add_argument("-h", "--help", action="store_true", help="print this")
    return parser.format_help()


def _settings(option: Option, default: Any) -> dict[str, Any]:
    """Return how argparse describes an option.

    :param default: its value if it is not given, which is shown unless it is void.
    """
    if not option.metavar:
        return {"action": "store_true", "help": option.help}
    return {"metavar": option.metavar, "help": f"{option.help} [{default}]" if default else option.help}


def _process_options(mode: str) -> dict[str, tuple[str, Option]]:
    """Return the options of the process that a command takes."""
    return {name: item for name, item in PROCESS_OPTIONS.items() if item[1].mode in ("", mode)}


def _arguments(mode: str) -> dict[str, Argument]:
    """Return every option that a command knows, by each of its spellings; it knows those that it refuses, too."""
    found = {
        "-h": Argument(HELP, ends=True),
        "--help": Argument(HELP, ends=True),
        "--version": Argument(VERSION, ends=True),
    }
    declared = [(name, long_option(name), option) for name, option in options().items()]
    declared += [(name, long, option) for name, (long, option) in PROCESS_OPTIONS.items()]
    for name, long, option in declared:
        rivals = tuple(other for pair in RIVALS if name in pair for other in pair if other != name)
        refusal = None
        if option.mode not in ("", mode):
            refusal = f"is an option of gpasst {option.mode}", "leave it out"
        argument = Argument(name, option.metavar, rivals, refusal)
        found |= dict.fromkeys(option.spellings(long), argument)
    for name, (spellings, metavar, refusal) in REFUSED.items():
        argument = Argument(name, metavar, refusal=refusal, harmless=HARMLESS.get(name))
        found |= dict.fromkeys(spellings, argument)
    return found


def read(mode: str, argv: Sequence[str]) -> Invocation:
    """Read a command line of ``gpasst pasta`` or ``gpasst passt``; ``--help`` and ``--version`` end the process.

    :param argv: the arguments after the command's name.
    :raises ConfigurationError: if the line is malformed, an option has a value that makes no sense, or two contradict
        each other.
    """
    divided = divide(_arguments(mode), argv, f"gpasst {mode}")
    given = divided.given
    if HELP in given or VERSION in given:
        say(help_text(mode) if HELP in given else f"gpasst {__version__}\n", end="")
        raise SystemExit(0)
    fields = {
        name: _field(long_option(name), option, given[name]) for name, option in options(mode).items() if name in given
    }
    process = _read_process(mode, given)
    if mode == "pasta":
        _complete_pasta(fields, divided)
    elif divided.words:
        raise ConfigurationError(
            f"{shown(divided.words[0])} is not an option or argument of gpasst {mode}", "leave it out"
        )
    config = Config(**fields)
    config.check_mode(mode)
    command = () if config.pid is not None else tuple(divided.words)
    if command and not config.creates_namespace:
        raise ConfigurationError(
            f"{shown(command[0])} cannot be run in a namespace that is joined",
            "use nsenter for that, or leave out --netns",
        )
    invocation = Invocation(mode, config, command, process)
    if process.stats and not process.foreground and not invocation.runs_command:
        raise ConfigurationError(
            f"--stats {process.stats} prints on standard error, which a process in the background has not",
            "add --foreground",
        )
    if process.no_pidns and not invocation.runs_command:
        raise ConfigurationError(
            "--no-pidns is about COMMAND, and a namespace that is joined runs none", "leave it out"
        )
    return invocation


def _field(long: str, option: Option, given: list[str]) -> Any:
    """Return the value of an option from its texts.

    :raises ConfigurationError: if it should be a number and is none.
    """
    if not option.metavar:
        return True
    return given if option.repeat else _value(long, option, given[-1])


def _value(long: str, option: Option, text: str) -> str | int:
    """Return the value of an option from its text.

    :raises ConfigurationError: if it should be a number and is none.
    """
    return _number(long, text) if option.kind is int and text else text


def _number(long: str, text: str) -> int:
    """Return the number that a text says.

    :param long: what the text was given for, for messages.
    :raises ConfigurationError: if it says none.
    """
    try:
        return parse_number(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{long} {shown(text)} {error.message}", error.remedy) from None


def _read_process(mode: str, given: Given) -> ProcessOptions:
    """Return the options of the process.

    :raises ConfigurationError: if a value breaks its rule, or two options contradict each other.
    """
    values: dict[str, Any] = dict.fromkeys(PROCESS_OPTIONS)
    for name, (long, option) in _process_options(mode).items():
        if name in given:
            values[name] = _field(long, option, given[name])
            check_value(long, option, values[name])
    if values["log_size"] is not None and values["log_file"] is None:
        raise ConfigurationError(
            f"--log-size {values['log_size']} is the size of a log file, and there is none", "add --log-file FILE"
        )
    return ProcessOptions(
        foreground=bool(values["foreground"]),
        pid_file=values["pid_file"] or "",
        runas=values["runas"] or "",
        verbose=bool(values["debug"] or values["trace"]),
        quiet=bool(values["quiet"]),
        log_file=values["log_file"] or "",
        log_size=values["log_size"] or LOG_SIZE_DEFAULT,
        stats=values["stats"] or 0,
        no_pidns=bool(values["no_pidns"]),
        no_sandbox=bool(values["no_sandbox"]),
    )


def read_demo(argv: Sequence[str]) -> bool:
    """Read a command line of ``gpasst demo``; return whether the figures are printed as JSON.

    :raises ConfigurationError: if it is malformed.
    """
    known = dict.fromkeys(("-h", "--help"), Argument(HELP, ends=True))
    divided = divide(known | {"--json": Argument("json")}, argv, "gpasst demo")
    if HELP in divided.given:
        say(DEMO_USAGE, end="")
        raise SystemExit(0)
    if divided.words:
        raise ConfigurationError(
            f"{shown(divided.words[0])} is not an option or argument of gpasst demo", "leave it out"
        )
    return "json" in divided.given


def _complete_pasta(fields: dict[str, Any], divided: Divided) -> None:
    """Add the PID and the defaults of ``gpasst pasta`` to `fields`.

    :raises ConfigurationError: if there should be a command, or a process number, and there is an empty text or none.
    """
    words = divided.words
    if words[:1] == [""] or (divided.ended and not words):
        raise ConfigurationError(
            f"COMMAND {'is empty' if words else 'is missing behind --'}",
            "give a program and its arguments, or nothing for a shell",
        )
    if len(words) == 1 and words[0].isdecimal() and not divided.ended:
        fields["pid"] = _number(long_option("pid"), words[0])
    for name in AUTOMATIC:
        fields.setdefault(name, ["auto"])
