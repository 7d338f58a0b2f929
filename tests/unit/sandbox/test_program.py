"""The filter of system calls of our own, run by a reader of classic BPF."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpasst import linux
from gpasst.sandbox.calls import FATAL, REFUSED, WORD, keeper_calls, proxy_calls, remover_calls
from gpasst.sandbox.numbers import X86_64
from gpasst.sandbox.program import program

if TYPE_CHECKING:
    from gpasst.sandbox.calls import Calls

KILLED = linux.SECCOMP_RET_KILL_PROCESS
MADE = linux.SECCOMP_RET_ALLOW
PROGRAM = 4711  # a process ID
LISTS = {
    "proxy": proxy_calls([PROGRAM]),
    "looking": proxy_calls(looks=True),
    "keeper": keeper_calls(),
    "remover": remover_calls(),
}
IORING_ENTER_GETEVENTS = 1  # linux/io_uring.h
I386 = 0x40000003  # AUDIT_ARCH_I386 (linux/audit.h)
X32 = 0x40000000  # __X32_SYSCALL_BIT (asm/unistd.h)


def fails(number: int) -> int:
    return linux.SECCOMP_RET_ERRNO | number


def outcome(calls: Calls, number: int, *arguments: int, architecture: int = linux.AUDIT_ARCH_X86_64) -> int:
    """What the kernel does with a call."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    text = program(calls)
    steps = [struct.unpack_from("=HBBI", text, at) for at in range(0, len(text), 8)]
    at = value = 0
    while True:
        code, yes, no, operand = steps[at]
        at += 1
        if code == linux.BPF_LD_WORD:
            (value,) = struct.unpack_from("=I", data, operand)
        elif code == linux.BPF_AND:
            value &= operand
        elif code == linux.BPF_JUMP_EQUAL:
            at += yes if value == operand else no
        else:
            assert code == linux.BPF_RETURN
            return int(operand)


@pytest.mark.parametrize("name", LISTS)
def test_what_only_an_intruder_calls_ends_the_process(name: str) -> None:
    for call in FATAL:
        assert outcome(LISTS[name], X86_64[call]) == KILLED, call


@pytest.mark.parametrize("name", LISTS)
def test_each_call_of_a_list_is_made(name: str) -> None:
    for call, checks in LISTS[name].items():
        for argument, _mask, value in checks or ((0, 0, 0),):
            arguments = [0] * 6
            arguments[argument] = value
            assert outcome(LISTS[name], X86_64[call], *arguments) == MADE, call


@pytest.mark.parametrize("name", LISTS)
def test_no_signal_reaches_other_processes(name: str) -> None:
    signalling = {"kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"}
    assert signalling & LISTS[name].keys() <= {"kill"}
    assert LISTS[name].get("kill", ()) == (((0, WORD, PROGRAM),) if name == "proxy" else ())
    assert {command for _, _, command in LISTS[name]["fcntl"]}.isdisjoint((fcntl.F_SETOWN, fcntl.F_SETSIG))


@pytest.mark.parametrize("name", LISTS)
def test_paths_lead_nowhere_and_an_unknown_call_does_not_exist(name: str) -> None:
    for call in REFUSED:
        expected = MADE if LISTS[name].get(call) == () else fails(errno.EACCES)
        assert outcome(LISTS[name], X86_64[call]) == expected, call
    assert outcome(LISTS[name], 10_000) == fails(errno.ENOSYS)


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("socket", (linux.AF_INET6,), MADE),
        ("socket", (linux.AF_UNIX,), fails(errno.ENOSYS)),
        ("mmap", (0, 4096, linux.PROT_EXEC | 1), fails(errno.ENOSYS)),
        ("mprotect", (0, 4096, 3), MADE),
        ("ioctl", (5, linux.TUNATTACHFILTER | 0x40000000), MADE),
        ("ioctl", (5, linux.TUNSETIFF | 0x40000000), fails(errno.ENOSYS)),
        ("newfstatat", (5, 0, 0, linux.AT_EMPTY_PATH), MADE),
        ("fcntl", (5, linux.F_SETPIPE_SZ), MADE),
        ("fcntl", (5, fcntl.F_SETOWN, PROGRAM + 1), fails(errno.ENOSYS)),
        ("fcntl", (5, fcntl.F_SETSIG, 9), fails(errno.ENOSYS)),
        ("io_uring_enter", (5, 64, 0, 0), MADE),
        ("io_uring_enter", (5, 64, 1, IORING_ENTER_GETEVENTS), fails(errno.ENOSYS)),
        ("kill", (PROGRAM, 9), MADE),
        ("kill", (PROGRAM + 1, 9), fails(errno.ENOSYS)),
        # All bits above the lower word are the kernel's to ignore.
        ("kill", ((1 << 64) - 1, 9), fails(errno.ENOSYS)),
    ],
)
def test_arguments_decide(call: str, arguments: tuple[int, ...], expected: int) -> None:
    assert outcome(LISTS["proxy"], X86_64[call], *arguments) == expected


@pytest.mark.parametrize("name", ["proxy", "keeper"])
def test_sockets_are_of_the_families_that_are_carried(name: str) -> None:
    """The keeper makes sockets for the proxy, so it must make no others than that may itself."""
    families = {int(family) for family in socket.AddressFamily if family >= 0}
    made = {family for family in families if outcome(LISTS[name], X86_64["socket"], family) == MADE}
    assert made == {socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}


def test_the_numbers_of_another_table_mean_nothing() -> None:
    assert outcome(LISTS["proxy"], X86_64["read"], architecture=I386) == KILLED
    assert outcome(LISTS["proxy"], X32 | X86_64["read"]) == fails(errno.ENOSYS)


def test_the_numbers_are_those_of_the_kernels_header() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if os.uname().machine != "x86_64" or not header.exists():
        pytest.skip("needs the header of x86-64 (linux-libc-dev)")
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text(encoding="ascii")))
    assert {name: int(known[name]) for name in X86_64} == X86_64
