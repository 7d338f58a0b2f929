"""The system calls that a process may make once it is set up, and who needs them.

Theory of operation: the lists were measured with strace under the tests of the command line. A call has one of three
outcomes:

* It is on the list of its process, maybe with some arguments only, and is made.
* Only an intruder makes it (`FATAL`): the process ends at once, with SIGSYS.
* Anything else fails, with EACCES for calls about paths (`REFUSED`) and ENOSYS otherwise, as in a kernel that lacks the
  call. So a library that tries a newer call first, or looks for a file, goes on without it, and no guest can stop the
  proxy by leading it to a call that no test has met.

A check of an argument compares the lower 32 bits under a mask; of several checks of one call, one has to hold.
"""

from __future__ import annotations

import errno

from gpasst.linux import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AT_EMPTY_PATH,
    F_DUPFD,
    F_DUPFD_CLOEXEC,
    F_GETFD,
    F_GETFL,
    F_GETPIPE_SZ,
    F_SETFD,
    F_SETFL,
    F_SETPIPE_SZ,
    FIOCLEX,
    FIONBIO,
    PROT_EXEC,
    SIOCGIFINDEX,
    TUNATTACHFILTER,
    TUNDETACHFILTER,
    TUNSETCARRIER,
)

TYPE_CHECKING = False  # as of typing, which takes long to import
if TYPE_CHECKING:
    from collections.abc import Iterable

    # Number of an argument from 0, mask, value.
    Check = tuple[int, int, int]
    # By the name of a call, checks of which one has to hold; none for a call that may be made with any arguments.
    Calls = dict[str, tuple[Check, ...]]

WORD = 0xFFFFFFFF  # all bits that a check compares
REQUEST = 0x3FFFFFFF  # without the direction (_IOC_DIRMASK of asm-generic/ioctl.h)

# What every interpreter does between two lines of ours.
INTERPRETER = {
    "memory": "brk madvise munmap mremap",
    "greenlets, threads and locks": "futex rseq membarrier sched_yield set_robust_list",
    "signals": "rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall",
    "clocks, which the kernel's page answers mostly": "clock_gettime clock_getres gettimeofday time",
    "seeds, and names of processes and users": "getrandom getpid gettid getuid geteuid getgid getegid",
    "files that are open": "read write close fstat lseek",
    # abort(3) ends the process without tgkill, too, which would reach other processes of the user.
    "the end": "exit exit_group",
}
PROXY = {
    "the loop, its timers and signals": (
        "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 timerfd_create timerfd_settime "
        "poll ppoll select pselect6 clock_nanosleep"
    ),
    "frames, pipes, captures and logs": "readv writev pread64 pwrite64 ftruncate splice pipe2 dup dup2 dup3",
    "sockets of guest and host": (
        "bind connect listen accept accept4 getsockname getpeername setsockopt getsockopt sendto recvfrom sendmsg "
        "recvmsg sendmmsg recvmmsg shutdown"
    ),
    "the program in the namespace": "wait4 waitid",
}
KEEPER = {
    "requests and answers": "recvfrom recvmsg sendmsg poll",
    "sockets that the proxy asks for, and those that it sends to be bound": "bind getsockname getsockopt",
}
REMOVER = {
    "the answer to its caller, and the end of that": "sendmsg recvfrom recvmsg poll",
    "the socket's file": "stat lstat newfstatat unlink unlinkat",
}
_INTRUDERS = """
execve execveat ptrace process_vm_readv process_vm_writev kexec_load init_module finit_module bpf perf_event_open
io_uring_setup io_uring_register userfaultfd keyctl add_key request_key setns unshare mount umount2 pivot_root chroot
setuid setgid setresuid setresgid personality
"""
_OF_PATHS = """
open openat openat2 stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat unlink unlinkat chdir
"""
FATAL = tuple(_INTRUDERS.split())
REFUSED = dict.fromkeys(_OF_PATHS.split(), errno.EACCES)
_FLAGS = FIONBIO, FIOCLEX  # as Python sets them
# Of the proxy, and of the keeper, which makes for it what it asks for. Some others (AF_VSOCK) know no namespaces.
_FAMILIES = AF_INET, AF_INET6, AF_NETLINK
# The index of an interface that a forward names, and changes of a tap.
_REQUESTS = *_FLAGS, SIOCGIFINDEX, TUNATTACHFILTER, TUNDETACHFILTER, TUNSETCARRIER
# Others let the kernel send a signal to any process of the user (F_SETOWN, F_SETSIG).
_COMMANDS = F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ
# What every interpreter calls as well, with some arguments: for memory that is not executable, and these commands.
_NARROWED = {
    "mmap": ((2, PROT_EXEC, 0),),
    "mprotect": ((2, PROT_EXEC, 0),),
    "fcntl": tuple((1, WORD, command) for command in _COMMANDS),
}
_OF_DESCRIPTOR = {"newfstatat": ((3, AT_EMPTY_PATH, AT_EMPTY_PATH),)}


def proxy_calls(programs: Iterable[int] = (), looks: bool = False) -> Calls:
    """Return the calls of the process that carries the traffic.

    :param programs: process IDs of the programs that it may send signals to.
    :param looks: whether it may look at files, without opening them.
    """
    return {
        **_named(INTERPRETER, PROXY),
        **_NARROWED,
        **_OF_DESCRIPTOR,
        "socket": _one_of(0, _FAMILIES),
        "ioctl": _one_of(1, _REQUESTS, REQUEST),
        # Of the ring that is open and restricted (`gpasst.host.ring`); without flags, the call never waits.
        "io_uring_enter": _one_of(3, (0,)),
        **{call: targets for call in ("kill", "pidfd_open") if (targets := _one_of(0, programs))},
        **(_named({"the file of a joined namespace": "stat newfstatat"}) if looks else {}),
    }


def keeper_calls() -> Calls:
    """Return the calls of the process that keeps a namespace and makes sockets there."""
    return {
        **_named(INTERPRETER, KEEPER),
        **_NARROWED,
        **_OF_DESCRIPTOR,
        "socket": _one_of(0, _FAMILIES),
        "ioctl": _one_of(1, _FLAGS),
    }


def remover_calls() -> Calls:
    """Return the calls of the process that removes the file of the guest's socket at the end."""
    return {**_named(INTERPRETER, REMOVER), **_NARROWED, "ioctl": _one_of(1, _FLAGS)}


def outcomes(calls: Calls) -> dict[str, int]:
    """Return the error of each call that is refused with another one than ENOSYS, if no check of it holds."""
    return {name: number for name, number in REFUSED.items() if calls.get(name) != ()}


def _one_of(argument: int, values: Iterable[int], mask: int = WORD) -> tuple[Check, ...]:
    return tuple((argument, mask, value) for value in values)


def _named(*groups: dict[str, str]) -> Calls:
    return dict.fromkeys((name for group in groups for text in group.values() for name in text.split()), ())
