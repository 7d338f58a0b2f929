"""How a command line is divided: as getopt_long(3) does, but for values that begin with a dash."""

from __future__ import annotations

import pytest

from gpasst.commands.arguments import Argument, Divided, divide
from gpasst.errors import ConfigurationError

LEFT = Argument("left", cancels=("right",))
RIGHT = Argument("right", cancels=("left",))
SIZE = Argument("size", "BYTES")
GONE = Argument("gone", "PATH", refusal=("is gone", "leave it out"), harmless="none")
STOP = Argument("stop", ends=True)
KNOWN = {
    "-l": LEFT,
    "--left": LEFT,
    "-r": RIGHT,
    "--right": RIGHT,
    "--rightmost": Argument("rightmost"),
    "-s": SIZE,
    "--size": SIZE,
    "--size-of": SIZE,
    "-g": GONE,
    "--gone": GONE,
    "--stop": STOP,
}


def divided(*argv: str) -> Divided:
    return divide(KNOWN, argv, "program")


@pytest.mark.parametrize(
    ("argv", "given", "words", "ended"),
    [
        ((), {}, [], False),
        (("-l", "x", "-r"), {"left": [""]}, ["x", "-r"], False),
        (("-s", "5", "--size=6", "-s7", "--size", "8"), {"size": ["5", "6", "7", "8"]}, [], False),
        (("--size=", "-s", ""), {"size": ["", ""]}, [], False),
        (("--size=a=b",), {"size": ["a=b"]}, [], False),
        (("-ls5",), {"left": [""], "size": ["5"]}, [], False),
        (("-ls", "5"), {"left": [""], "size": ["5"]}, [], False),
        (("-s-5", "--size=-6"), {"size": ["-5", "-6"]}, [], False),
        (("-s", "-"), {"size": ["-"]}, [], False),
        (("-l", "--", "-r"), {"left": [""]}, ["-r"], True),
        (("-l", "--"), {"left": [""]}, [], True),
        (("-l", "-", "x"), {"left": [""]}, ["-", "x"], False),
        (("-lr",), {"right": [""]}, [], False),
        (("-l", "-r", "-l"), {"left": [""]}, [], False),
        (("--le", "--rightm"), {"left": [""], "rightmost": [""]}, [], False),
        (("--right",), {"right": [""]}, [], False),
        (("--siz", "1", "--si=2"), {"size": ["1", "2"]}, [], False),
        (("--gone=none", "-g", "none"), {"gone": ["none", "none"]}, [], False),
        (("--stop", "--nosuch"), {"stop": [""]}, ["--nosuch"], False),
    ],
)
def test_options_and_words(argv: tuple[str, ...], given: dict[str, list[str]], words: list[str], ended: bool) -> None:
    assert divided(*argv) == (given, words, ended)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("--righ",), "--righ is ambiguous; write one of --right, --rightmost"),
        (("--s",), "--s is ambiguous; write one of --size, --size-of, --stop"),
        (("--sizes",), "--sizes is not an option or argument of program; write --size, or leave it out"),
        (("--sizes=5",), "--sizes is not an option or argument of program; write --size, or leave it out"),
        (("-x",), "-x is not an option or argument of program; leave it out"),
        (("-lx",), "-x is not an option or argument of program; leave it out"),
        (("-l=5",), "-= is not an option or argument of program; leave it out"),
        (("--=5",), "-- is not an option or argument of program; leave it out"),
        (("--left=5",), "--left takes no value; write --left alone"),
        (("-l-r",), "-l takes no value; write -l alone"),
        (("-l-",), "-l takes no value; write -l alone"),
        (("-s",), "-s lacks its value; write -s BYTES, or -sVALUE if that begins with a dash"),
        (("-s", "-l"), "-s lacks its value; write -s BYTES, or -sVALUE if that begins with a dash"),
        (("--size", "--"), "--size lacks its value; write --size BYTES, or --size=VALUE if that begins with a dash"),
        (("--siz",), "--size lacks its value; write --size BYTES, or --size=VALUE if that begins with a dash"),
        (("-g",), "-g is gone; leave it out"),
        (("--gone", "-l"), "--gone is gone; leave it out"),
        (("--gone=x",), "--gone is gone; leave it out"),
        (("-l\n",), "-\\n is not an option or argument of program; leave it out"),
    ],
)
def test_refusals(argv: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        divided(*argv)
    assert str(caught.value) == line
