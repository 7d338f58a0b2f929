"""``gpasst network``: its command line, its file, and the picture of that.

NOTE: this is imported before the helper process starts, so it imports nothing that opens anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from gpasst.commands.arguments import Argument, divide
from gpasst.commands.options import HELP
from gpasst.commands.process import say
from gpasst.errors import ConfigurationError, PlatformError
from gpasst.topology.records import Topology
from gpasst.values import shown, similar

COMMAND = "gpasst network"
SVG = ".svg"
USAGE = """\
usage: gpasst network FILE [OPTIONS] [-- COMMAND [ARG...]]

Bring up the networks that FILE describes, in TOML, and run the commands of their hosts.

  --shell HOST         run a shell in HOST, or COMMAND, and end with it
  --draw [FILE.svg]    print a picture of the networks, or write it to a file, and open nothing
  --json               print what happens as JSON, an object a line
  --no-sandbox         enter no sandbox once all commands run, to debug
  -h, --help           print this
"""
HELP_ARGUMENT = Argument(HELP, ends=True)
ARGUMENTS = {
    "-h": HELP_ARGUMENT,
    "--help": HELP_ARGUMENT,
    "--shell": Argument("shell", "HOST"),
    "--draw": Argument("draw"),
    "--json": Argument("json"),
    "--no-sandbox": Argument("no_sandbox"),
}


class NetworkInvocation(NamedTuple):
    """A command line of ``gpasst network``.

    :ivar file: the network file.
    :ivar draws: whether only a picture is wanted.
    :ivar picture: the file to draw to, empty for standard output.
    :ivar shell: the host to run a shell or `command` in, empty for none.
    :ivar command: the program and its arguments; empty for a shell.
    :ivar as_json: whether to print JSON.
    :ivar no_sandbox: keep all rights once all commands run.
    """

    file: str
    draws: bool = False
    picture: str = ""
    shell: str = ""
    command: tuple[str, ...] = ()
    as_json: bool = False
    no_sandbox: bool = False


def read_network(argv: Sequence[str]) -> NetworkInvocation:
    """Read a command line of ``gpasst network``; ``--help`` ends the process.

    :param argv: the arguments after the command's name.
    :raises ConfigurationError: if it is malformed, or its options contradict each other.
    """
    before = divide(ARGUMENTS, argv, COMMAND)
    file, *rest = before.words or [""]
    # The options may stand on either side of FILE.
    behind = divide(ARGUMENTS, () if before.ended else rest, COMMAND)
    given = before.given | behind.given
    if HELP in given:
        say(USAGE, end="")
        raise SystemExit(0)
    if not file:
        raise ConfigurationError("FILE is missing", "name a network file first")
    draws, as_json, shell = "draw" in given, "json" in given, given.get("shell", [""])[-1]
    ended, words = behind.ended, rest if before.ended else behind.words
    if draws and (as_json or "shell" in given):
        raise ConfigurationError(
            f"--draw opens nothing, so --{'json' if as_json else 'shell'} is about nothing", "leave one of them out"
        )
    if draws and not ended and len(words) == 1:
        if not words[0].endswith(SVG):
            raise ConfigurationError(f"--draw {shown(words[0])} is no name of a picture", f"let it end with {SVG}")
        return NetworkInvocation(file, draws=True, picture=words[0])
    if words and ("shell" not in given or not ended):
        raise ConfigurationError(
            f"{shown(words[0])} is not an option or argument of {COMMAND}",
            "to run it in a host, write --shell HOST -- COMMAND" if "shell" in given or ended else "leave it out",
        )
    if ended and not (words and words[0]):
        raise ConfigurationError("COMMAND is missing behind --", "give a program, or nothing for a shell")
    return NetworkInvocation(file, draws, "", shell, tuple(words), as_json, "no_sandbox" in given)


def load(invocation: NetworkInvocation) -> Topology:
    """Return the topology of the file.

    :raises ConfigurationError: if the file makes no sense, or lacks the host of ``--shell``.
    :raises PlatformError: if it cannot be read.
    """
    from gpasst.topology.read import read

    name = shown(invocation.file)
    try:
        with open(invocation.file, encoding="utf-8") as file:
            topology = read(file.read())
    except OSError as error:
        raise PlatformError(f"{name}: {error.strerror}", "name a file that can be read") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name}: the file is no UTF-8", "save it as UTF-8") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error.message}", error.remedy) from None
    hosts = [host.name for host in topology.hosts]
    if invocation.shell and invocation.shell not in hosts:
        listed = f"name one of {', '.join(hosts)}" if hosts else "add its table to the file"
        raise ConfigurationError(
            f"{name}: there is no host {shown(invocation.shell)}", f"{similar(invocation.shell, hosts)}{listed}"
        )
    return topology


def show_picture(invocation: NetworkInvocation, topology: Topology) -> None:
    """Print the picture of a topology, or write it to a file.

    :raises PlatformError: if it cannot be written.
    """
    from gpasst.topology.addresses import places

    if not invocation.picture:
        from gpasst.topology.tree import draw

        say(draw(topology, places(topology)))
        return
    from gpasst.topology.svg import draw as draw_svg

    try:
        with open(invocation.picture, "w", encoding="utf-8") as file:
            file.write(draw_svg(topology, places(topology)))
    except OSError as error:
        raise PlatformError(
            f"--draw {shown(invocation.picture)}: {os.strerror(error.errno or 0)}", "name a file that can be written"
        ) from None
