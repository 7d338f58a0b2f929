"""Command lines of every command: any words are a configuration, or one line that says what is wrong."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

from gpasst.commands.network_options import read_network
from gpasst.commands.options import read, read_demo
from gpasst.config import long_option, options
from gpasst.errors import ConfigurationError
from tests.support.fuzz.choices import Choices

WORDS = 12
OTHERS = ("--help", "--version", "--", "-", "--x", "--quiet", "--debug", "--stats", "--log-file", "--pid", "--runas")
SPELLED = (
    *(spelling for name, option in options().items() for spelling in option.spellings(long_option(name))),
    *OTHERS,
)


def take(data: bytes) -> None:
    """Read a command line; what the options say is checked, and nothing is opened."""
    choices = Choices(data)
    mode = choices.pick(("pasta", "passt", "network", "demo"))
    words = []
    for _ in range(choices.number(WORDS)):
        word = choices.pick(SPELLED) if choices.flag() else ""
        value = _text(choices.piece(64)) if choices.flag() else None
        if value is None:
            words.append(word)
        elif choices.flag():
            words += [word, value]
        else:
            words.append(f"{word}={value}")
    try:
        with redirect_stdout(StringIO()):
            if mode == "network":
                read_network(words)
            elif mode == "demo":
                read_demo(words)
            else:
                read(mode, words)
    except ConfigurationError as error:
        assert str(error).isprintable()
    except SystemExit as ended:
        assert not ended.code


def _text(data: bytes) -> str:
    """Return a word as Python has those of a command line."""
    return data.replace(b"\0", b"").decode(errors="surrogateescape")
