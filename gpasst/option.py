"""One option: how it is declared, and the check of its values.

Theory of operation: a value has the option's type, is not empty, and keeps the option's rule (`gpasst.values`).
`check_value` holds it against these wherever it comes from, so each refusal is one line of one form: the option, the
value, the fault, and the remedy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpasst.errors import ConfigurationError
from gpasst.records import field
from gpasst.values import Rule, anything, shown

KINDS = {bool: "True or False", int: "a whole number", str: "text"}


class Option(NamedTuple):
    """How a field of `Config` appears on the command line.

    :ivar help: one line for ``--help``.
    :ivar metavar: name of the value; empty for a switch.
    :ivar short: the short form, with its dash, or empty.
    :ivar group: heading under which ``--help`` lists it.
    :ivar repeat: whether it may be given more than once, each adding a value.
    :ivar mode: the only command that it is for, ``"pasta"`` or ``"passt"``; empty for both.
    :ivar kind: type of a value: bool of a switch, int or str.
    :ivar rule: what a value has to be, beside its type and not empty.
    :ivar alias: another long form, with its dashes, or empty.
    """

    help: str
    metavar: str = ""
    short: str = ""
    group: str = "network"
    repeat: bool = False
    mode: str = ""
    kind: type = bool
    rule: Rule = anything
    alias: str = ""

    def spellings(self, long: str) -> list[str]:
        """Return every form of the option, the short one first.

        :param long: its long form.
        """
        return [name for name in (self.short, long, self.alias) if name]


def check_value(spelled: str, option: Option, value: object) -> None:
    """Check one value of an option.

    :param spelled: the option's long form, for messages.
    :raises ConfigurationError: if the value has another type, is empty, or breaks the option's rule.
    """
    if type(value) is not option.kind and value != "":
        raise ConfigurationError(f"{spelled} takes {KINDS[option.kind]}, not {value!r}", "convert it")
    try:
        if value == "":
            raise ConfigurationError("is empty", f"give {option.metavar or 'True'}, or leave {spelled} out")
        if isinstance(value, str) and "\0" in value:
            raise ConfigurationError("contains a zero byte", "leave it out")
        option.rule(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{spelled} {shown(value)} {error.message}", error.remedy) from None


def declare(
    default: Any,
    help: str,
    metavar: str = "",
    short: str = "",
    group: str = "network",
    mode: str = "",
    rule: Rule = anything,
    kind: type = str,
    alias: str = "",
) -> Any:
    """Return the field of a record that is an option with these parts; see `Option`.

    :param default: value of an option that is not given: a tuple if it may be repeated, None if its absence has a
        meaning of its own.
    :param kind: type of a value; that of `default` where there is one.
    """
    repeat = isinstance(default, tuple)
    if not repeat and default is not None:
        kind = type(default)
    option = Option(help, metavar, short, group, repeat, mode, kind, rule, alias)
    return field(default=default, metadata={"option": option})
