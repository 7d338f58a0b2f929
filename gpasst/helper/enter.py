"""Run a command in a namespace that is held by descriptor.

    python -I -S PATH --tied PID [--userns FD] [--netns FD] [--uts FD] [--ipc FD] [--runas UID:GID]
        [--resolver-file TEXT] [--live-file TARGET PATH]... [--init] -- ARGV

Theory of operation: joining a user namespace is refused to processes with threads, so the program that wants to run a
command cannot join on its behalf between fork and exec in a safe way. This file is executed instead, joins, closes the
descriptors and executes the command in the same process, whose number, parent and status are those of the command.

`--tied` names the parent: the command is killed when the thread that started it ends, however that happens
(PR_SET_PDEATHSIG). The kernel forgets that when the command executes a set-user-ID program, or one with capabilities.

With `--init` the command gets PID and mount namespaces of its own as well, with a fresh /proc, and is process 1 there,
so that all it started dies with it. A process does not change its own PID namespace, so this process stays outside as
parent: it passes signals on and repeats the status at the end. Two traits of process 1 need care:

1. Signals it has no handler for are discarded, even those from outside. A signal that would have ended an ordinary
   command ends this one with SIGKILL, reported as the signal that was sent.
2. It must not outlive this process: PR_SET_PDEATHSIG ends it as well (this process has one thread, so the death of the
   thread and of the process are the same).

With `--resolver-file` the command has a mount namespace of its own, in which another file covers /etc/resolv.conf, as
ip-netns(8) does it. That file is in a file system in memory, which ends with the last process of the command.
With `--live-file` a file that exists covers another one in the same way, so that the command finds there whatever is
written to it while the command runs.

Signals from the terminal reach the command without help, since it is in the same process group; they are recognised by
their origin and not sent twice.

Only the standard library, and little of it: every command run in a namespace pays for the imports.
"""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False  # as of typing, which takes 3 ms to import
if TYPE_CHECKING:
    import signal
else:
    # The numbers alone: making enumerations of them takes 3 ms.
    import _signal as signal

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

MNT_DETACH = 2

RESOLVER_FILE = "/etc/resolv.conf"
SCRATCH = "/tmp"  # a folder that every system has, covered for a moment
EVERYBODY_READS = 0o644

SI_KERNEL = 0x80  # si_code of what the terminal sends

# Statuses as shells and env(1) give them.
STATUS_FAILED = 125
STATUS_NOT_EXECUTABLE = 126
STATUS_NOT_FOUND = 127
STATUS_SIGNAL = 128

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
# A user namespace must be joined first: it holds the rights over the others.
ORDER = (
    ("--userns", CLONE_NEWUSER),
    ("--netns", CLONE_NEWNET),
    ("--uts", CLONE_NEWUTS),
    ("--ipc", CLONE_NEWIPC),
)

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Move this thread into new namespaces; into a new user namespace only a process without other threads.

    :param flags: CLONE_NEW*.
    :raises OSError: if a permission or a limit is in the way.
    """
    _check(_libc.unshare(ctypes.c_int(flags)))


def setns(descriptor: int, kind: int) -> None:
    """Move this thread into an existing namespace.

    :param descriptor: of the namespace.
    :param kind: its CLONE_NEW*.
    :raises OSError: if it is of another kind, or a permission is in the way.
    """
    _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)))


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process.

    :raises OSError: if the kernel refuses.
    """
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3))


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """Mount a file system, or change the flags of a mount.

    :raises OSError: if a permission is in the way.
    """
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), None))


def unmount(target: str) -> None:
    """Take a file system off the tree; it ends with its last user.

    :raises OSError: if a permission is in the way.
    """
    _check(_libc.umount2(target.encode(), MNT_DETACH))


def drop_identity(uid: int, gid: int) -> None:
    """Become another user for good, without supplementary groups.

    :raises OSError: if this is not root.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Changing identity makes /proc/self root's, and with it the files that map user ids.
    prctl(PR_SET_DUMPABLE, 1)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _complain(text: str) -> None:
    os.write(2, f"gpasst: {text}\n".encode(errors="surrogateescape"))


def _join(
    descriptors: dict[str, int], runas: tuple[int, int] | None, resolver_file: str, live_files: list[tuple[str, str]]
) -> None:
    # With a user namespace, joining is the new identity's right; without, it is root's alone.
    if runas and "--userns" in descriptors:
        drop_identity(*runas)
    for option, kind in ORDER:
        if option in descriptors:
            setns(descriptors[option], kind)
            os.close(descriptors[option])
    if resolver_file or live_files:
        _unshare_mounts()
    # First, since the folder that they are in may be covered next.
    for target, path in live_files:
        _cover(path, target)
    if resolver_file:
        _cover_resolver_file(resolver_file)
    if runas and "--userns" not in descriptors:
        drop_identity(*runas)


def _cover_resolver_file(text: str) -> None:
    mount("none", SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    path = f"{SCRATCH}/resolv.conf"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, text.encode())
    os.fchmod(descriptor, EVERYBODY_READS)
    os.close(descriptor)
    _cover(path, RESOLVER_FILE)
    unmount(SCRATCH)


def _cover(path: str, target: str) -> None:
    try:
        mount(path, target, None, MS_BIND)
    except FileNotFoundError as error:
        missing = f"there is no {target} to cover; make an empty one" if os.path.exists(path) else f"there is no {path}"
        raise OSError(error.errno, missing) from None


def _execute(command: list[str]) -> int:
    # Python ignores these two; a command expects the defaults.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    refusal = ""
    for path in _candidates(command[0]):
        try:
            os.execv(path, command)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            refusal = refusal or "permission denied; make it executable: chmod +x"
        except OSError as error:
            refusal = refusal or str(error.strerror)
    _complain(f"{command[0]}: {refusal or 'command not found; check its name and PATH'}")
    return STATUS_NOT_EXECUTABLE if refusal else STATUS_NOT_FOUND


def _candidates(name: str) -> list[str]:
    # os.execvp would import a module here, which the new identity may not be able to read.
    if "/" in name:
        return [name]
    return [os.path.join(folder, name) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]


def _unshare_mounts() -> None:
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def _mount_proc() -> None:
    try:
        _unshare_mounts()
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:
        # Containers that cover parts of /proc forbid it; the command then sees the processes outside.
        pass


def _first_process(command: list[str], alive: int) -> int:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_blocking(alive, False)
    try:
        # Nothing is ever written: end of file means that the parent died before the call above.
        os.read(alive, 1)
        return STATUS_FAILED
    except BlockingIOError:
        os.close(alive)
    _mount_proc()
    return _execute(command)


def _discards(pid: int, number: int) -> bool:
    """Return whether process 1 leaves the signal at its default, which for process 1 means to discard it."""
    handled = 0
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        for line in status:
            if line.startswith(("SigBlk:", "SigIgn:", "SigCgt:")):
                handled |= int(line.split()[1], 16)
    return not handled >> (number - 1) & 1


def _attend(pid: int, waited: set[signal.Signals]) -> int:
    fatal = 0
    while True:
        information = signal.sigwaitinfo(waited)
        number = information.si_signo
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                if code == -signal.SIGKILL and fatal:
                    code = -fatal
                return code if code >= 0 else STATUS_SIGNAL - code
            continue
        try:
            if _discards(pid, number):
                fatal = number
                os.kill(pid, signal.SIGKILL)
            elif information.si_code != SI_KERNEL:
                os.kill(pid, number)
        except (OSError, ValueError):
            # It has just ended; SIGCHLD is on its way.
            continue


def _tie(parent: int) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died before the call above.
        os.kill(os.getpid(), signal.SIGKILL)


def _run_as_init(command: list[str], ready: int | None) -> int:
    waited = {signal.SIGCHLD, *FORWARDED}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    unshare(CLONE_NEWPID)
    alive, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        status = STATUS_FAILED
        try:
            status = _first_process(command, alive)
        finally:
            os._exit(status)
    os.close(alive)
    if ready is not None:
        os.close(ready)
    return _attend(pid, waited)


def main(arguments: list[str]) -> int:
    """Join, then execute; returns when that failed, or with the command's status after `--init`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # ^C before the command runs should end this process as it would end the command, not as a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    descriptors: dict[str, int] = {}
    runas: tuple[int, int] | None = None
    init = False
    parent = 0
    ready: int | None = None
    resolver_file = ""
    live_files: list[tuple[str, str]] = []
    rest = iter(options)
    for option in rest:
        if option == "--init":
            init = True
        elif option == "--tied":
            parent = int(next(rest))
        elif option == "--ready":
            # The exec closes it, so that the reader of the pipe sees an end of file when the command runs.
            ready = int(next(rest))
            os.set_inheritable(ready, False)
        elif option == "--resolver-file":
            resolver_file = next(rest)
        elif option == "--live-file":
            live_files.append((next(rest), next(rest)))
        elif option == "--runas":
            uid, gid = next(rest).split(":")
            runas = int(uid), int(gid)
        else:
            descriptors[option] = int(next(rest))
    try:
        _join(descriptors, runas, resolver_file, live_files)
        # Another identity or user namespace would have undone it.
        _tie(parent)
        if init:
            return _run_as_init(command, ready)
    except OSError as error:
        _complain(f"cannot enter the namespace: {error.strerror}")
        return STATUS_FAILED
    return _execute(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
