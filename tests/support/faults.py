"""Errors of system calls, injected where the package calls the kernel.

Theory of operation: all sockets of a proxy are objects of the interpreter's C class, which modules import under a name
of their own, and its other calls go through `os`, `fcntl`, an epoll set and two functions of libc. `injected` replaces
these, for every module of the package, by what asks an `Injector` first. An armed `Fault` then answers in the kernel's
place. Calls of the test itself, and of libraries, are passed on.
"""

from __future__ import annotations

import _socket
import ctypes
import importlib
import os
import pkgutil
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import gpasst

ROOMS = ("host", "link", "path", "proxy")  # whose modules are loaded before they are changed
PACKAGE = f"{gpasst.__name__}."
OS_CALLS = ("dup", "ftruncate", "pipe2", "read", "readv", "splice", "write", "writev")
SOCKET_CALLS = {
    "_accept": "accept",
    **{
        name: name
        for name in (
            *("bind", "connect", "getsockname", "getsockopt", "listen", "recv", "recv_into", "recvmsg", "send"),
            *("sendmsg", "sendto", "setsockopt", "shutdown"),
        )
    },
}


@dataclass
class Fault:
    """An error in place of a system call.

    :ivar call: the name of the call.
    :ivar at: the module that makes it, below the package; empty for any.
    :ivar number: the errno.
    :ivar times: how many calls meet it.
    :ivar met: how many have met it.
    """

    call: str
    at: str
    number: int
    times: int = sys.maxsize
    met: int = 0


class Injector:
    """Knows the faults in force.

    :ivar seen: the calls that were made, each with the module that made it.
    """

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()
        self._armed: list[Fault] = []

    @contextmanager
    def fault(self, call: str, at: str, number: int, times: int = sys.maxsize) -> Iterator[Fault]:
        """Let calls fail for a while; parameters as for `Fault`."""
        fault = Fault(call, at, number, times)
        self._armed.append(fault)
        try:
            yield fault
        finally:
            self._armed.remove(fault)

    def number(self, call: str) -> int:
        """Return the errno that a call of the caller's caller meets, 0 for none."""
        name = sys._getframe(2).f_globals["__name__"]  # noqa: SLF001
        if not name.startswith(PACKAGE):
            return 0
        at = name[len(PACKAGE) :]
        self.seen.add((call, at))
        for fault in self._armed:
            if fault.call == call and fault.at in ("", at) and fault.met < fault.times:
                fault.met += 1
                return fault.number
        return 0

    def wrapped(self, call: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that raises what the call meets."""

        def asking(*arguments: Any, **options: Any) -> Any:
            number = self.number(call)
            if number:
                raise OSError(number, os.strerror(number))
            return function(*arguments, **options)

        return asking

    def socket_class(self) -> type[_socket.socket]:
        """Return the class of sockets that ask."""
        injector = self

        def make(sock: Any, family: int = -1, kind: int = -1, protocol: int = -1, fileno: Any = None) -> None:
            if fileno is None and (number := injector.number("socket")):
                raise OSError(number, os.strerror(number))
            _socket.socket.__init__(sock, family, kind, protocol, fileno)

        def connect_ex(sock: Any, address: Any) -> int:
            return injector.number("connect") or _socket.socket.connect_ex(sock, address)

        methods: dict[str, Any] = {"__init__": make, "connect_ex": connect_ex}
        for name, call in SOCKET_CALLS.items():
            methods[name] = self.wrapped(call, getattr(_socket.socket, name))
        return type("AskingSocket", (_socket.socket,), methods)

    def of_libc(self, call: str, function: Any) -> Callable[..., int]:
        """Return a function of libc, asking first."""

        def asking(*arguments: Any) -> int:
            number = self.number(call)
            if number:
                ctypes.set_errno(number)
                return -1
            return int(function(*arguments))

        return asking

    def epoll(self) -> Any:
        """Return a new epoll set that asks."""
        made = select.epoll()
        # The C class has no dictionary: its methods cannot be replaced one by one.
        found = mock.Mock(wraps=made)
        found.register = self.wrapped("epoll_ctl", made.register)
        return found


@contextmanager
def injected() -> Iterator[Injector]:
    """Let the package's calls of the kernel ask an injector, for all proxies that are opened meanwhile."""
    for room in ROOMS:
        folder = importlib.import_module(PACKAGE + room).__path__
        for found in pkgutil.iter_modules(folder, f"{PACKAGE}{room}."):
            importlib.import_module(found.name)
    injector = Injector()
    asking = injector.socket_class()
    modules: dict[str, Any] = {name: module for name, module in sys.modules.items() if name.startswith(PACKAGE)}
    changed = "host.receive", "host.ring", "host.pipes", "proxy.build_tcp"
    receive, ring, pipes, build = (modules[PACKAGE + name] for name in changed)
    original = build.original
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for module in modules.values():
            if getattr(module, "RawSocket", None) is _socket.socket:
                replace(module, "RawSocket", asking)
        replace(receive, "_recvmmsg", injector.of_libc("recvmmsg", receive._recvmmsg))  # noqa: SLF001
        replace(ring, "_enter", injector.of_libc("io_uring_enter", ring._enter))  # noqa: SLF001
        replace(pipes, "fcntl", injector.wrapped("fcntl", pipes.fcntl))
        replace(build, "original", lambda module, name: injector.epoll if name == "epoll" else original(module, name))
        for call in OS_CALLS:
            replace(os, call, injector.wrapped(call, getattr(os, call)))
        yield injector
