"""One error base, split by who can mend what went wrong.

* `ConfigurationError`: whoever wrote the options or arguments.
* `PlatformError`: whoever runs the machine (kernel, permissions, limits, busy ports).
* `PacketError`: the other end of the wire, by sending something that cannot be understood.

The first two carry a remedy, so that a program can print one line that names the obstacle and the way past it.
"""

from __future__ import annotations

from gpasst.counters import Drop


class GpasstError(Exception):
    """Base of everything gpasst raises on purpose.

    :param message: what is wrong, without a full stop.
    :param remedy: what the reader can do about it; may be empty.
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
    """The kernel, a permission, a limit or another program stands in the way."""


class PacketError(GpasstError):
    """A frame or datagram that cannot be carried; `reason` names the counter it belongs to."""

    def __init__(self, reason: Drop, detail: str = "") -> None:
        super().__init__(detail or reason.value)
        self.reason = reason
