"""The console script.

Theory of operation: options come from `gpasst.config`, where each is declared once; only what concerns the process
itself (identity, logging, background) is declared here. The helper process is started before anything heavy is
imported, so that both load at once; then everything is monkey-patched, before any module that would notice.

NOTE: options of parts that do not exist yet are refused by name, never ignored; one that merely switches such a part
off is accepted, since it asks for nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import stat
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn

from gpasst import __version__
from gpasst.errors import ConfigurationError, GpasstError, PlatformError

if TYPE_CHECKING:
    from gpasst.api.passt import Passt
    from gpasst.api.pasta import Pasta
    from gpasst.config import Config

EXIT_FAILURE = 1
EXIT_USAGE = 2
SIGNAL_BASE = 128  # what shells add to a signal's number
GRACE_SECONDS = 0.3  # for the command to end by itself after a signal
NOBODY = "nobody"

USAGE = """\
usage: gpasst COMMAND [OPTIONS]

  gpasst pasta [OPTIONS] [-- COMMAND [ARG...]]   run COMMAND, or a shell, in a new network namespace
  gpasst pasta [OPTIONS] PID                     connect the namespace of a running process
  gpasst pasta [OPTIONS] --netns PATH|NAME       connect a namespace by its file or name
  gpasst passt [OPTIONS]                         serve virtual machines on a UNIX socket
  gpasst demo                                    show that it works, in ten seconds

  gpasst COMMAND --help     the options of a command
  gpasst --version          the version
"""

# Long name, short name, name of the value ("" for a switch), what it belongs to.
ABSENT_OPTIONS = (
    ("--tcp-ports", "-t", "SPEC", "TCP forwarding"),
    ("--tcp-ns", "-T", "SPEC", "TCP forwarding"),
    ("--conf-path", "-c", "PATH", "the control socket"),
    ("--vhost-user", "", "", "vhost-user"),
)
# Forwarded as bound on the other side unless something else is asked for, as in pasta.
AUTOMATIC = ("udp_ports", "udp_ns")
ABSENT_COMMANDS = ("doctor", "ctl")
USAGES = {
    "pasta": "gpasst pasta [OPTIONS] [-- COMMAND [ARG...]] | PID | --netns PATH|NAME",
    "passt": "gpasst passt [OPTIONS]",
}
DESCRIPTIONS = {
    "pasta": "Give a network namespace the network of an ordinary process.",
    "passt": "Give virtual machines the network of an ordinary process.",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


class Refuse(argparse.Action):
    """The action of an option whose part does not exist yet."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        """Refuse, unless nothing is asked for."""
        if values != "none":
            parser.error(f"{option} is not available yet: {self.const} is still to come")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script; give its exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    called = os.path.basename(sys.argv[0])
    if arguments is None and called in ("pasta", "passt"):
        argv.insert(0, called)
    command = argv[0] if argv else ""
    try:
        if command in USAGES:
            return run_proxy(command, argv[1:])
        if command == "demo":
            return run_demo(argv[1:])
    except GpasstError as error:
        return fail(error)
    except KeyboardInterrupt:
        return SIGNAL_BASE + 2
    if command in ("--version", "-V"):
        print(f"gpasst {__version__}")
        return 0
    if command in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    if command in ABSENT_COMMANDS:
        print(f"gpasst: {command} is not available yet; see gpasst --help", file=sys.stderr)
    elif command:
        print(f"gpasst: unknown command {command}; see gpasst --help", file=sys.stderr)
    else:
        print(USAGE, end="", file=sys.stderr)
    return EXIT_USAGE


def fail(error: GpasstError) -> int:
    """Print an error in one line; give the exit status for it."""
    print(f"gpasst: {error}", file=sys.stderr)
    return EXIT_FAILURE


class Elsewhere(argparse.Action):
    """The action of an option that belongs to the other command."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        """Refuse."""
        parser.error(f"{option} is an option of gpasst {self.const}")


def make_parser(mode: str) -> Parser:
    """Make the parser of ``gpasst pasta`` or ``gpasst passt``."""
    from gpasst import config

    parser = Parser(prog=f"gpasst {mode}", usage=USAGES[mode], description=DESCRIPTIONS[mode], allow_abbrev=False)
    groups: dict[str, Any] = {}
    mine = config.options(mode)
    for name, option in config.options().items():
        if name not in mine:
            names = [*([option.short] if option.short else []), config.long_option(name)]
            count = None if option.metavar else 0
            parser.add_argument(*names, action=Elsewhere, const=option.mode, nargs=count, help=argparse.SUPPRESS)
            continue
        group = groups.get(option.group) or groups.setdefault(option.group, parser.add_argument_group(option.group))
        names = [*([option.short] if option.short else []), config.long_option(name)]
        default = config.Config.__dataclass_fields__[name].default
        if not option.metavar:
            group.add_argument(*names, action="store_true", help=option.help)
        elif option.repeat:
            group.add_argument(*names, action="append", default=[], metavar=option.metavar, help=option.help)
        else:
            shown = f"{option.help} [{default}]" if default and default != config.NO_FD else option.help
            kind = int if isinstance(default, int) else str
            group.add_argument(*names, type=kind, default=default, metavar=option.metavar, help=shown)
    process = parser.add_argument_group("process")
    process.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    process.add_argument(
        "-P", "--pid", dest="pid_file", default="", metavar="FILE", help="write the process ID to FILE"
    )
    process.add_argument("--runas", default="", metavar="UID[:GID]", help="identity to take on as root [nobody]")
    process.add_argument("-d", "--debug", action="store_true", help="log everything but single packets")
    process.add_argument("--trace", action="store_true", help="log everything")
    process.add_argument("-q", "--quiet", action="store_true", help="log errors only")
    process.add_argument("-e", "--stderr", action="store_true", help="log to standard error too")
    process.add_argument("-l", "--log-file", default="", metavar="FILE", help="log to FILE only")
    process.add_argument(
        "--log-size",
        type=int,
        default=config.LOG_SIZE_DEFAULT,
        metavar="BYTES",
        help="rotate the log file at BYTES",
    )
    process.add_argument("--stats", type=int, default=0, metavar="SECONDS", help="print counters every SECONDS")
    process.add_argument("--version", action="version", version=f"gpasst {__version__}")
    for long, short, value, part in ABSENT_OPTIONS:
        parser.add_argument(
            *([short] if short else []),
            long,
            action=Refuse,
            const=part,
            nargs=None if value else 0,
            help=argparse.SUPPRESS,
        )
    if mode == "pasta":
        parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def run_proxy(mode: str, argv: list[str]) -> int:
    """Run ``gpasst pasta`` or ``gpasst passt``; give its exit status."""
    from gpasst.config import Config, options

    parser = make_parser(mode)
    given = parser.parse_args(argv)
    fields: dict[str, Any] = {name: getattr(given, name) for name in options(mode)}
    command = _complete_pasta(fields, given, argv) if mode == "pasta" else []
    try:
        config = Config(**fields)
        config.check_mode(mode)
        if command and not config.creates_namespace:
            raise ConfigurationError(
                f"{command[0]} cannot be run in a namespace that is joined",
                "use nsenter for that, or leave out --netns",
            )
        if given.quiet and (given.debug or given.trace):
            raise ConfigurationError("--quiet and --debug exclude each other", "give only one of them")
        identity = choose_identity(given.runas)
    except ConfigurationError as error:
        parser.error(str(error))
    if config.has_fd:
        # Before anything else may get that number.
        check_socket(config.fd)
    ready: Callable[[], None] | None = None
    if not given.foreground and not (mode == "pasta" and config.creates_namespace):
        ready = go_to_background()
    return _serve(mode, config, given, command, identity, ready)


def check_socket(descriptor: int) -> None:
    """Check that the socket that shall be served has been handed over.

    :raises ConfigurationError: if it has not.
    """
    try:
        good = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        problem = "not a socket"
    except OSError as error:
        good, problem = False, error.strerror or ""
    if not good:
        raise ConfigurationError(f"--fd {descriptor}: {problem}", "pass one end of a connected socket pair")


def _complete_pasta(fields: dict[str, Any], given: argparse.Namespace, argv: list[str]) -> list[str]:
    """Add what ``gpasst pasta`` takes besides options to `fields`, and its defaults; give the command."""
    command: list[str] = given.command[1:] if given.command[:1] == ["--"] else given.command
    if len(command) == 1 and command[0].isdecimal() and "--" not in argv:
        fields["pid"] = int(command.pop())
    for name in AUTOMATIC:
        fields[name] = fields[name] or (["none"] if name == "udp_ns" and given.no_splice else ["auto"])
    return command


def _serve(
    mode: str,
    config: Config,
    given: argparse.Namespace,
    command: list[str],
    identity: tuple[int, int] | None,
    ready: Callable[[], None] | None,
) -> int:
    """Start everything, wait for the end, and clean up; give the exit status."""
    from gpasst.helper.client import Helper

    helper = Helper.start()
    try:
        from gevent import monkey

        monkey.patch_all()
        from gpasst import runtime
        from gpasst.api.passt import Passt
        from gpasst.api.pasta import Pasta

        spawning = mode == "pasta" and config.creates_namespace
        _set_up_logging(given, background=ready is not None, spawning=spawning)
        here = runtime.current()
        here.adopt(helper)
        stop = await_signals()
        creates_user_namespace = spawning and not config.netns_only
        proxy: Pasta | Passt = (
            Passt(config) if mode == "passt" else Pasta(config, runas=identity if creates_user_namespace else None)
        )
        pid_file = open_pid_file(given.pid_file)
        try:
            proxy.open()
            # One guest is all there will be; without the helper there is less to keep in memory.
            here.close_helper()
            if pid_file is not None:
                with pid_file:
                    pid_file.write(f"{os.getpid()}\n")
            # What lives now lives to the end; looking through it again and again for garbage is time lost.
            gc.collect()
            gc.freeze()
            # Root's own command in --netns-only must stay within reach of signals.
            keeps_identity = spawning and config.netns_only
            if isinstance(proxy, Passt) and proxy.path:
                if identity:
                    # Whoever the proxy becomes has to be able to remove it, and qemu may run as the same.
                    os.chown(proxy.path, *identity)
                announce(proxy)
            return _wait(proxy, command, ready, given.stats, None if keeps_identity else identity, stop)
        finally:
            proxy.close()
    finally:
        helper.close()


def await_signals() -> Any:
    """Give what is set to the exit status when a signal asks the process to end."""
    import signal

    import gevent
    import gevent.event

    stop = gevent.event.AsyncResult()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        gevent.signal_handler(number, stop.set, SIGNAL_BASE + number)
    return stop


def announce(proxy: Passt) -> None:
    """Log where guests connect, and how."""
    import logging

    log = logging.getLogger("gpasst")
    log.info("guests connect to %s, for example with:", proxy.path)
    log.info("  qemu-system-x86_64 %s", " ".join(proxy.qemu_options))


def _wait(
    proxy: Pasta | Passt,
    command: list[str],
    ready: Callable[[], None] | None,
    stats: int,
    identity: tuple[int, int] | None,
    stop: Any,
) -> int:
    """Wait for the command's end, the namespace's or guest's end, or a signal; give the exit status."""
    import subprocess

    import gevent

    from gpasst.api.pasta import Pasta

    if stats:
        gevent.spawn(_print_statistics, proxy, stats)
    program = None
    if not isinstance(proxy, Pasta):
        gevent.spawn(_await_end, proxy, stop)
    elif proxy.config.creates_namespace:
        shell = os.environ.get("SHELL") or "/bin/sh"
        try:
            program = proxy.popen(command or [shell, "-l"], init=True, tied=True)
        except FileNotFoundError:
            raise ConfigurationError(f"{command[0]}: command not found", "check its name and PATH") from None
        gevent.spawn(lambda: stop.set(program.wait()))
    else:
        gevent.spawn(_await_end, proxy, stop)
        if not proxy.config.no_netns_quit:
            gevent.spawn(_watch_namespace, proxy, stop)
    if identity:
        # The last thing that needs privileges was starting the command, in an interpreter that may be root's own.
        take_on(identity)
    if ready is not None:
        ready()
    status: int = stop.get()
    if program is None:
        return 0
    if program.poll() is None:
        program.terminate()
        try:
            program.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
    return status if status >= 0 else SIGNAL_BASE - status


def _await_end(proxy: Pasta | Passt, stop: Any) -> None:
    """Stop when the guest has gone for good, unless a signal came first."""
    if not stop.ready():
        proxy.wait()
        stop.set(0)


def _watch_namespace(pasta: Pasta, stop: Any) -> None:
    """Stop when the file of the joined namespace is gone or has become another's."""
    import gevent

    while not stop.ready() and pasta.exists():
        gevent.sleep(1)
    stop.set(0)


def _print_statistics(pasta: Pasta | Passt, seconds: int) -> None:
    """Print a line of counters on standard error, again and again."""
    import gevent

    while True:
        gevent.sleep(seconds)
        now = pasta.statistics()
        drops = ", ".join(f"{count} {reason}" for reason, count in sorted(now.drops.items())) or "none"
        print(
            f"up {now.datagrams_up} datagrams {now.bytes_up} bytes, down {now.datagrams_down} datagrams "
            f"{now.bytes_down} bytes, {now.mappings} mappings, {now.peers} peers, dropped: {drops}",
            file=sys.stderr,
        )


def choose_identity(text: str) -> tuple[int, int] | None:
    """Choose the user and group id to take on; None to stay what one is.

    :param text: value of ``--runas``: names or numbers.
    :raises ConfigurationError: if there is no such user or group, or the caller is not root.
    """
    import grp
    import pwd

    root = os.geteuid() == 0 and _in_initial_user_namespace()
    if not text:
        if not root:
            return None
        text = NOBODY
    elif os.geteuid() != 0:
        raise ConfigurationError("--runas needs root", "leave it out")
    user, _, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        if not user.isdecimal():
            raise ConfigurationError(f"--runas {text}: there is no user {user}", "name an existing one") from None
        uid = gid = int(user)
    if group:
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise ConfigurationError(f"--runas {text}: there is no group {group}", "name an existing one") from None
    return None if (uid, gid) == (0, 0) else (uid, gid)


def _in_initial_user_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def take_on(identity: tuple[int, int]) -> None:
    """Become another user for good."""
    uid, gid = identity
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def go_to_background() -> Callable[[], None]:
    """Fork; the parent exits when the child calls what this returns, or fails when the child does."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        started = os.read(reader, 1)
        if started:
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) or EXIT_FAILURE)
    os.close(reader)
    os.setsid()

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        os.write(writer, b"1")
        os.close(writer)

    return ready


def open_pid_file(path: str) -> IO[str] | None:
    """Open the PID file for writing, mode 0600; None if there is to be none.

    :raises PlatformError: if it cannot be written.
    """
    if not path:
        return None
    try:
        return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w", encoding="ascii")
    except OSError as error:
        raise PlatformError(f"--pid {path}: {error.strerror}", "name a file that can be written") from error


def _set_up_logging(given: argparse.Namespace, background: bool, spawning: bool) -> None:
    """Send log records where the options say (context 10)."""
    import logging
    import logging.handlers

    from gpasst.config import LOG_SIZE_MINIMUM

    level = logging.INFO
    if given.debug or given.trace:
        level = logging.DEBUG
    elif given.quiet or spawning:
        level = logging.ERROR
    handlers: list[logging.Handler] = []
    if given.log_file:
        if given.log_size < LOG_SIZE_MINIMUM:
            raise ConfigurationError(f"--log-size {given.log_size} is too small", f"give at least {LOG_SIZE_MINIMUM}")
        previous = os.umask(0o177)
        try:
            handlers.append(logging.handlers.RotatingFileHandler(given.log_file, "w", given.log_size, backupCount=1))
        except OSError as error:
            raise PlatformError(
                f"--log-file {given.log_file}: {error.strerror}", "name a file that can be written"
            ) from error
        finally:
            os.umask(previous)
        level = min(level, logging.INFO) if not given.quiet else level
    else:
        if not background or given.stderr:
            handlers.append(logging.StreamHandler())
        if background and os.path.exists("/dev/log"):
            handlers.append(logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON))
    form = (
        "%(relativeCreated)10.1f ms %(message)s"
        if given.debug or given.trace or given.log_file
        else "gpasst: %(message)s"
    )
    for handler in handlers:
        handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(level=level, handlers=handlers or [logging.NullHandler()])
    if given.log_file:
        logging.getLogger("gpasst").info("gpasst %s, %s, process %d", __version__, sys.executable, os.getpid())


def run_demo(argv: list[str]) -> int:
    """Run ``gpasst demo``; give its exit status."""
    parser = Parser(prog="gpasst demo", description="Show that it works, in ten seconds.", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the figures for a program to read")
    given = parser.parse_args(argv)
    from gpasst.commands import demo

    return demo.run(as_json=given.json)
