"""The exceptions of gpasst: one base, and one class for each party that can remove the cause.

* `ConfigurationError`: the author of the options or arguments.
* `PlatformError`: the administrator of the machine (kernel, permissions, limits, busy ports).
* `PacketError`: the sender of a frame or datagram that is malformed or not carried.

The first two carry a remedy, so that a program can print one line with the obstacle and the way past it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Not imported with the errors, which the console script needs before it starts the helper.
    from gpasst.counters import Drop


class GpasstError(Exception):
    """Base of all exceptions that gpasst raises on purpose.

    :param message: the obstacle, without a full stop.
    :param remedy: the way past it; may be empty.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class ConfigurationError(GpasstError):
    """An option or argument is wrong, or contradicts another one."""


class PlatformError(GpasstError):
    """The kernel, a permission, a limit or another program prevents the operation."""


class PacketError(GpasstError):
    """A frame or datagram cannot be carried.

    :param reason: the counter of such drops.
    :param detail: text of the message; empty for that of `reason`.
    """

    def __init__(self, reason: Drop, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.reason = reason
