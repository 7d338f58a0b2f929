"""Giving up what a process needs no more.

Theory of operation: the parts are independent, and each that a kernel, a container or a security module forbids is left
out and reported; the others hold without it.

1. Namespaces: with a user namespace of its own the process has no power over any other one, nor over what belongs to
   them. Mount, IPC and UTS namespaces come with it.
2. An empty root: the only file system is one in memory, empty and read-only. Descriptors that are open stay usable, and
   must not be of folders.
3. Capabilities: all sets are emptied, the bounding set as far as the process may. No program that it executes gains
   any (PR_SET_NO_NEW_PRIVS, Linux 3.5).
4. Nobody else with the same user ID can trace it, read its memory or take its descriptors (PR_SET_DUMPABLE), and it
   leaves no core file.
5. System calls are filtered (`gpasst.sandbox.calls`): by libseccomp, through the module that comes with it or through
   pyseccomp, which know the numbers of every architecture; else on x86-64 by a program of our own.

NOTE: attributes of a process are its threads' in truth, so all this is for a process with one thread.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import struct
import sys

from gpasst.linux import (
    CAPABILITY_VERSION_3,
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECCOMP,
    SECCOMP_MODE_FILTER,
)
from gpasst.sandbox.calls import FATAL, outcomes
from gpasst.sandbox.program import MACHINE, program

TYPE_CHECKING = False  # as of typing, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from gpasst.sandbox.calls import Calls, Check

SCRATCH = "/tmp"  # a folder that every system has, covered in a mount namespace of its own
EMPTY = b"nr_inodes=2,size=4k"  # the root folder, and what the kernel takes for itself
WORD_BITS = 32  # of one word of a set of capabilities
CAPABILITIES = 2 * WORD_BITS  # numbers that sets of capabilities have room for
INSTRUCTION_BYTES = 8  # sizeof(struct sock_filter)
LIBRARY, FINDER = "libseccomp.so.2", "ctypes.util"

_libc = ctypes.CDLL(None, use_errno=True)
_header = struct.Struct("=Ii")  # struct __user_cap_header_struct: version, process
_sets = struct.Struct("=6I")  # two of struct __user_cap_data_struct: effective, permitted, inheritable


class Report:
    """What has been given up.

    :ivar held: the parts that are in force, as words of a line.
    :ivar missing: a line for each part that is not, with its cause.
    """

    def __init__(self) -> None:
        self.held: list[str] = []
        self.missing: list[str] = []

    def attempt(self, what: str, part: Callable[[], object]) -> bool:
        """Put a part in force; return whether it is."""
        try:
            part()
        except OSError as error:
            self.missing.append(f"{what}: {error.strerror or error}")
            return False
        self.held.append(what)
        return True


def own_user(report: Report) -> None:
    """Move the process into a user namespace of its own, which knows none of the ids outside."""
    _unshare(report, "user", CLONE_NEWUSER)


def isolate(report: Report, root: bool = True) -> None:
    """Move the process into other namespaces of its own, with an empty root.

    That takes CAP_SYS_ADMIN in its user namespace; after `own_user` it has that.

    :param root: empty the root.
    """
    for what, flag in (("IPC", CLONE_NEWIPC), ("UTS", CLONE_NEWUTS), ("mount", CLONE_NEWNS)):
        moved = _unshare(report, what, flag)
    if root and moved:
        report.attempt("empty root", _empty_root)
    elif root:
        report.missing.append("empty root: it takes a mount namespace")


def renounce(report: Report, kept: Iterable[int] = ()) -> None:
    """Give up capabilities, those to come too, and the right of others to look into the process.

    :param kept: numbers of capabilities that stay, of those that it has.
    """
    mask = sum(1 << number for number in kept)
    report.attempt("no capabilities" if not mask else "few capabilities", lambda: _drop_capabilities(mask))
    report.attempt("no new privileges", lambda: _prctl(PR_SET_NO_NEW_PRIVS, 1))
    report.attempt("not dumpable", lambda: _prctl(PR_SET_DUMPABLE, 0))


def filter_calls(report: Report, calls: Calls, library: Any = None) -> None:
    """Let the process make no other system calls; `renounce` comes first.

    :param calls: which it may make.
    :param library: what `libseccomp` returned, while the process could still read files; None for a filter of our own.
    """
    if library is not None:
        report.attempt("system calls filtered by libseccomp", lambda: _load(library, calls))
    else:
        report.attempt("system calls filtered", lambda: _load_own(calls))


def _unshare(report: Report, what: str, flag: int) -> bool:
    return report.attempt(f"{what} namespace", lambda: _call("unshare", ctypes.c_int(flag)))


def _empty_root() -> None:
    """Replace the root by a file system without files.

    :raises OSError: if something forbids it.
    """
    # What is mounted here must not appear outside, where the namespace was made without a user namespace.
    _call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY
    _call("mount", b"none", SCRATCH.encode(), b"tmpfs", ctypes.c_ulong(flags), EMPTY)
    os.chdir(SCRATCH)
    # The old root is stacked on the new one, in the same place, so that no folder for it is needed (pivot_root(2)).
    _call("pivot_root", b".", b".")
    _call("umount2", b".", ctypes.c_int(MNT_DETACH))
    os.chdir("/")


def _drop_capabilities(kept: int) -> None:
    """Empty the sets of capabilities, but for some.

    :param kept: those that stay, as bits.
    :raises OSError: if the kernel refuses.
    """
    try:
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Linux before 4.3 has none
            raise
    for number in range(CAPABILITIES):
        if not kept >> number & 1:
            try:
                _prctl(PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:  # the last one was the number before
                    break
                if error.errno != errno.EPERM:
                    raise
                break  # without CAP_SETPCAP; no new privileges can be had all the same
    header = _header.pack(CAPABILITY_VERSION_3, 0)
    current = ctypes.create_string_buffer(_sets.size)
    _call("capget", header, current)
    _, low, _, _, high, _ = _sets.unpack(current.raw)
    low, high = low & kept, high & kept >> WORD_BITS
    _call("capset", header, _sets.pack(low, low, 0, high, high, 0))


def libseccomp() -> Any:
    """Return a module that binds libseccomp, None without one.

    It is that of Debian's python3-seccomp and the like, else pyseccomp. The latter has the library's path looked up by
    ldconfig and compilers, and so imports what runs programs, which takes longer than all the rest. The dynamic linker
    finds the library by its name.
    """
    try:
        return importlib.import_module("seccomp")
    except ImportError:
        pass
    finder = type(sys)(FINDER)
    finder.__dict__["find_library"] = {"seccomp": LIBRARY}.get
    before = sys.modules.get(FINDER)
    sys.modules[FINDER] = ctypes.__dict__["util"] = finder
    try:
        return importlib.import_module("pyseccomp")
    except (ImportError, OSError):
        return None
    finally:
        # Whoever wants the real one finds it.
        del sys.modules[FINDER], ctypes.__dict__["util"]
        if before is not None:
            sys.modules[FINDER] = ctypes.__dict__["util"] = before


def _load(library: Any, calls: Calls) -> None:
    """Put a filter of libseccomp in force.

    :raises OSError: if the kernel refuses it.
    """
    made = library.SyscallFilter(library.ERRNO(errno.ENOSYS))
    rules: list[tuple[int, str, tuple[Check, ...]]] = [(library.KILL_PROCESS, name, ()) for name in FATAL]
    for name, number in outcomes(calls).items():
        # The library knows no last rule for what the checks of a call do not let pass; each here is of one bit.
        others = tuple((argument, mask, value ^ mask) for argument, mask, value in calls.get(name, ()))
        rules.append((library.ERRNO(number), name, others))
    for name, checks in calls.items():
        rules += [(library.ALLOW, name, (check,)) for check in checks] or [(library.ALLOW, name, ())]
    for action, name, checks in rules:
        arguments = [library.Arg(number, library.MASKED_EQ, mask, value) for number, mask, value in checks]
        try:
            made.add_rule(action, name, *arguments)
        except (OSError, RuntimeError, ValueError):
            continue  # an older library does not know the call, and nobody can make it then
    try:
        made.load()
    except RuntimeError as error:
        raise OSError(errno.ENOTSUP, str(error)) from error


def _load_own(calls: Calls) -> None:
    """Put a filter of our own in force.

    :raises OSError: if the machine is another one, or the kernel refuses it.
    """
    if os.uname().machine != MACHINE:
        raise OSError(errno.ENOTSUP, "libseccomp is missing: install gpasst[sandbox]")
    instructions = program(calls)
    kept = ctypes.create_string_buffer(instructions, len(instructions))
    # struct sock_fprog (linux/filter.h): their number, and where they are.
    fprog = struct.pack("@HP", len(instructions) // INSTRUCTION_BYTES, ctypes.addressof(kept))
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog)


def _prctl(option: int, *values: int | bytes) -> None:
    arguments = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]
    _call("prctl", ctypes.c_int(option), *arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments)))


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the C library.

    :raises OSError: if it fails.
    """
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
