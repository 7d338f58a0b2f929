"""The filter of system calls as a program of the kernel, where libseccomp is missing.

Theory of operation: classic BPF over struct seccomp_data (linux/seccomp.h). The kernel remembers which calls pass
whatever their arguments are (Linux 5.11), so the length of the program costs those nothing. A call of another
architecture (the 32-bit entry) ends the process, since its numbers mean others; one of the x32 table has a number that
is on no list.
"""

from __future__ import annotations

import errno
import struct

from gpasst.linux import (
    AUDIT_ARCH_X86_64,
    BPF_AND,
    BPF_JUMP_EQUAL,
    BPF_LD_WORD,
    BPF_RETURN,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS,
)
from gpasst.sandbox.calls import FATAL, outcomes
from gpasst.sandbox.numbers import X86_64

TYPE_CHECKING = False  # as of typing, which takes long to import
if TYPE_CHECKING:
    from gpasst.sandbox.calls import Calls, Check

    # Code, distances of the jump where the condition holds and where it does not, operand (struct sock_filter).
    Instruction = tuple[int, int, int, int]

NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
ARGUMENT_BYTES = 8  # the lower word comes first on x86-64
MACHINE = "x86_64"  # of uname(2)

_pack = struct.Struct("=HBBI").pack


def program(calls: Calls) -> bytes:
    """Return the filter that lets `calls` pass, as an array of struct sock_filter."""
    refused = outcomes(calls)
    made = [
        (BPF_LD_WORD, 0, 0, ARCHITECTURE),
        (BPF_JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (BPF_RETURN, 0, 0, SECCOMP_RET_KILL_PROCESS),
        (BPF_LD_WORD, 0, 0, NUMBER),
    ]
    for name, checks in calls.items():
        block = [step for check in checks for step in _check(check)]
        last = SECCOMP_RET_ERRNO | refused.get(name, errno.ENOSYS) if checks else SECCOMP_RET_ALLOW
        block.append((BPF_RETURN, 0, 0, last))
        made += _of_call(name, block)
    for name in FATAL:
        made += _of_call(name, [(BPF_RETURN, 0, 0, SECCOMP_RET_KILL_PROCESS)])
    for name, number in refused.items():
        if name not in calls:
            made += _of_call(name, [(BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | number)])
    made.append((BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.ENOSYS))
    return b"".join(_pack(*instruction) for instruction in made)


def _of_call(name: str, block: list[Instruction]) -> list[Instruction]:
    """Return a block that is jumped over unless the call has a name."""
    return [(BPF_JUMP_EQUAL, 0, len(block), X86_64[name]), *block]


def _check(check: Check) -> list[Instruction]:
    """Return what lets the call pass if a check holds."""
    argument, mask, value = check
    return [
        (BPF_LD_WORD, 0, 0, ARGUMENTS + argument * ARGUMENT_BYTES),
        (BPF_AND, 0, 0, mask),
        (BPF_JUMP_EQUAL, 0, 1, value),
        (BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
