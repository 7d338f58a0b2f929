"""The division of a command line into options and the rest, as getopt_long(3) does it.

Theory of operation: options come first; the first word that is none, or a ``--``, ends them, and what follows belongs
to the command. A long option may be shortened to the beginning that no other one shares; its whole name wins over
longer ones. Short switches may stand together, and a short option's value may follow at once. Of an option that takes
one value the last one counts, and it takes back the options that contradict it, so that a wrapper can append its own.

One rule is stricter than getopt's: a value in a word of its own does not begin with a dash. Where the variable of a
script is empty, ``--netns $NAME --quiet`` would join a namespace called ``--quiet``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gpasst.errors import ConfigurationError
from gpasst.values import shown, similar

END = "--"  # of the options
Given = dict[str, list[str]]
"""The values of each option that was given, by `Argument.name`, in the order given; empty texts for a switch."""


class Argument(NamedTuple):
    """One option of a command line.

    :ivar name: the key of its values.
    :ivar metavar: name of its value in messages; empty for a switch.
    :ivar cancels: names of the options before it that it takes back.
    :ivar refusal: why it is refused, and the remedy; None if it is not.
    :ivar harmless: the value that asks for nothing, and so is accepted of an option that is refused.
    :ivar ends: whether nothing behind it is read.
    """

    name: str
    metavar: str = ""
    cancels: tuple[str, ...] = ()
    refusal: tuple[str, str] | None = None
    harmless: str | None = None
    ends: bool = False


class Divided(NamedTuple):
    """A command line in parts.

    :ivar given: the options.
    :ivar words: what follows them, without ``--``.
    :ivar ended: whether a ``--`` stands between both.
    """

    given: Given
    words: list[str]
    ended: bool


def divide(known: Mapping[str, Argument], argv: Sequence[str], command: str) -> Divided:
    """Divide a command line.

    :param known: the options by each of their spellings, with dashes.
    :param argv: the arguments.
    :param command: name of the program, for messages.
    :raises ConfigurationError: if an option is unknown, ambiguous or refused, lacks its value or has one too many.
    """
    given: Given = {}
    words = list(argv)
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == END:
            return Divided(given, words, ended=True)
        value: str | None
        if word.startswith(END):
            beginning, equals, text = word.partition("=")
            spelled, value = _complete(known, beginning), text if equals else None
        else:
            spelled, value = word[:2], word[2:] or None
        if spelled not in known:
            raise ConfigurationError(
                f"{shown(spelled)} is not an option or argument of {command}", f"{similar(spelled, known)}leave it out"
            )
        argument = known[spelled]
        if argument.metavar:
            value = _value(spelled, argument, value, words)
        elif value is not None:
            if word.startswith(END) or value.startswith("-"):
                raise ConfigurationError(f"{spelled} takes no value", f"write {spelled} alone")
            words.insert(0, f"-{value}")
            value = None
        if argument.refusal and (value is None or value != argument.harmless):
            raise ConfigurationError(f"{spelled} {argument.refusal[0]}", argument.refusal[1])
        for name in argument.cancels:
            given.pop(name, None)
        given.setdefault(argument.name, []).append(value or "")
        if argument.ends:
            break
    return Divided(given, words, ended=False)


def _complete(known: Mapping[str, Argument], beginning: str) -> str:
    """Return the long option that a word names, or that alone begins with it; an unknown word as it is.

    :raises ConfigurationError: if several options begin with it.
    """
    found = sorted(name for name in known if name.startswith(beginning))
    if beginning in known or beginning == END or not found:
        return beginning
    # Two names of one option leave no choice.
    if len({known[name] for name in found}) > 1:
        raise ConfigurationError(f"{shown(beginning)} is ambiguous", f"write one of {', '.join(found)}")
    return found[0]


def _value(spelled: str, argument: Argument, attached: str | None, words: list[str]) -> str | None:
    """Return the value of an option: `attached`, or the first of the words behind it; None of a refused one without.

    :raises ConfigurationError: if there is none.
    """
    if attached is not None:
        return attached
    if words and (words[0] == "-" or not words[0].startswith("-")):
        return words.pop(0)
    if argument.refusal:
        return None
    whole = f"{spelled}=VALUE" if spelled.startswith(END) else f"{spelled}VALUE"
    raise ConfigurationError(
        f"{spelled} lacks its value", f"write {spelled} {argument.metavar}, or {whole} if that begins with a dash"
    )
