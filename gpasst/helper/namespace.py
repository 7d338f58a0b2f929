"""Creating, joining and furnishing namespaces.

A thread has a network namespace of its own; a user namespace and an identity belong to the whole process. So `create`
moves the calling thread only, while `entered` and `enter_user_namespace` move the process, which may have no other
thread then.

Two things cannot be done from inside when the helper was started by root, and fall to an *assistant* forked beforehand,
which keeps the identity and namespaces of the start:

* map more than one id into a new user namespace (the right to do that is held outside of it);
* open a /dev/net/tun that only root may open, after this process has become somebody else.

Which ids a new user namespace knows:

* an ordinary user (or `runas`): the user alone, as root; group changes are denied, as the kernel demands;
* root: every id as itself, so that daemons started inside can still change to their own users.

NOTE: after the identity has changed, the interpreter's own library may be unreadable, so nothing here may be
imported late; that includes any text encoding but UTF-8, which is always loaded.
"""

from __future__ import annotations

import _socket
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from gpasst.errors import ConfigurationError, PlatformError
from gpasst.helper import netlink
from gpasst.helper.channel import Channel, Message, close_all, describe, pair
from gpasst.helper.discovery import ephemeral_ports
from gpasst.helper.enter import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    drop_identity,
    setns,
    unshare,
)
from gpasst.helper.request import OpenRequest
from gpasst.helper.tap import attach, open_tun
from gpasst.records import dataclass

PING_GROUP_RANGE = "/proc/sys/net/ipv4/ping_group_range"
HOST_NAME_PREFIX = "pasta-"  # as pasta has it
HOST_NAME_MAX = 64  # bytes; __NEW_UTS_LEN (linux/utsname.h)
ALL_GROUPS = "0 2147483647"  # the largest id the setting accepts
ROOT_GROUP = "0 0"
NAMESPACE_FILES = (
    "name a running process, a namespace in /run/netns, or a file like /proc/PID/ns/net or /proc/PID/ns/user"
)

# In a chroot every user is refused (user_namespaces(7)). No program can see that it is in one for certain, so the
# remedy names each cause that the kernel answers alike.
NO_USER_NAMESPACE = (
    "leave the chroot, if this is one; allow them (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0); or run as root with --netns-only"
)
TOO_MANY_NAMESPACES = (
    "raise the limits (sysctl user.max_user_namespaces, user.max_net_namespaces), or run as root with --netns-only"
)
FULL = (errno.ENOSPC, errno.EUSERS)  # the limits are reached (namespaces(7)); the second before Linux 4.9


@dataclass(frozen=True, slots=True)
class Entered:
    """A namespace that the calling thread is in.

    :ivar descriptors: of the namespaces, by the names that `enter_command` knows.
    :ivar open_tun: opens the tun file for the network namespace.
    :ivar drop_late: whether the identity has still to change, once the network is configured.
    """

    descriptors: dict[str, int]
    open_tun: Callable[[], int] = open_tun
    drop_late: bool = False


@contextmanager
def entered(request: OpenRequest) -> Iterator[Entered]:
    """Move the process into the namespaces of a request; the assistant, if any, lives as long as the context.

    :raises ConfigurationError: if the request names what is no namespace.
    :raises PlatformError: if a permission or a limit is in the way.
    """
    assistant = _Assistant() if os.geteuid() == 0 else None
    try:
        yield _join(request, assistant) if request.netns else _create_as(request, assistant)
    finally:
        if assistant:
            assistant.close()


def enter_user_namespace() -> str:
    """Move the process into a new user namespace, with all ids if it is root's.

    :return: the groups that may send ICMP echo requests in its network namespaces, as the kernel writes them.
    :raises PlatformError: if a permission or a limit is in the way.
    """
    assistant = _Assistant() if os.geteuid() == 0 else None
    try:
        return _new_user_namespace(assistant)
    finally:
        if assistant:
            assistant.close()


def create(groups: str, request: OpenRequest) -> Entered:
    """Move the calling thread into a new network namespace, with a host name and IPC objects of its own.

    :param groups: which may send ICMP echo requests there, as the kernel writes them.
    :param request: names its host, and says whether the process is in no user namespace of its own.
    :raises PlatformError: if a permission or a limit is in the way.
    """
    try:
        unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    except OSError as error:
        remedy = "run as root, or leave --netns-only out" if request.netns_only else NO_USER_NAMESPACE
        raise _cannot("create a network namespace", error, remedy) from None
    _write(PING_GROUP_RANGE, groups)
    name = request.hostname or f"{HOST_NAME_PREFIX}{os.uname().nodename}"
    # A program that has no network of the host's under the host's own name would be taken for one that has.
    with suppress(OSError):
        _socket.sethostname(os.fsdecode(os.fsencode(name)[:HOST_NAME_MAX]))
    descriptors: dict[str, int] = {}
    try:
        for name in ("netns", "uts", "ipc") if request.netns_only else ("netns", "uts", "ipc", "userns"):
            descriptors[name] = _open_own(name)
    except OSError:
        close_all(descriptors.values())
        raise
    return Entered(descriptors)


def furnish(request: OpenRequest, place: Entered) -> tuple[Message, dict[str, int]]:
    """Make the tap in the namespace of the calling thread, and configure what a request asks for.

    :return: the answer to the request, and the descriptors that go with it; those of `place` are closed on an error.
    :raises ConfigurationError: if the request names what the kernel refuses.
    :raises PlatformError: if a permission or a limit is in the way.
    """
    reply: Message = {"pid": os.getpid(), "name": None, "offloads": ()}
    made = dict(place.descriptors)
    try:
        reused = False
        if request.tap:
            made["tap"] = place.open_tun()
            attached = attach(made["tap"], request.ifname, request.offload)
            reply["name"], reply["offloads"], reused = attached.name, attached.offloads, attached.reused
        reply |= netlink.configure(request, reply["name"], reused)
        reply["ephemeral"] = ephemeral_ports()
    except BaseException:
        close_all(made.values())
        raise
    return reply, made


def _create_as(request: OpenRequest, assistant: _Assistant | None) -> Entered:
    tun: Callable[[], int] = open_tun
    groups = ALL_GROUPS
    if not request.netns_only:
        if request.runas:
            _change_identity(request.runas)
            tun = _tun_opener(assistant)
        groups = _new_user_namespace(assistant if request.runas is None else None)
    place = create(groups, request)
    return Entered(place.descriptors, tun, drop_late=request.netns_only and request.runas is not None)


def _join(request: OpenRequest, assistant: _Assistant | None) -> Entered:
    netns = request.netns or ""
    descriptors = {"netns": _open_target(netns)}
    if request.userns and not request.netns_only:
        userns = _open_target(request.userns)
        # Entering the namespace one is in already is an error.
        if os.path.samestat(os.fstat(userns), os.stat("/proc/self/ns/user")):
            os.close(userns)
        else:
            descriptors["userns"] = userns
    tun: Callable[[], int] = open_tun
    if "userns" in descriptors:
        if request.runas:
            _change_identity(request.runas)
            tun = _tun_opener(assistant)
        _enter(descriptors["userns"], CLONE_NEWUSER, request.userns or "", "user")
    _enter(descriptors["netns"], CLONE_NEWNET, netns, "network")
    return Entered(descriptors, tun, drop_late=request.runas is not None and "userns" not in descriptors)


def _open_target(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigurationError(f"no namespace at {path}", NAMESPACE_FILES) from None
    except PermissionError:
        raise PlatformError(f"not permitted to open {path}", "run as its owner or as root") from None
    except OSError as error:
        raise ConfigurationError(f"cannot open {path}: {error.strerror}", NAMESPACE_FILES) from None


def _enter(descriptor: int, kind: int, path: str, name: str) -> None:
    try:
        setns(descriptor, kind)
    except PermissionError:
        raise PlatformError(
            f"not permitted to join the {name} namespace {path}",
            "name the user namespace it belongs to with --userns, or run as its owner or as root",
        ) from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ConfigurationError(f"{path} is not a {name} namespace", NAMESPACE_FILES) from None
        raise _cannot(f"join the {name} namespace {path}", error, NAMESPACE_FILES) from None


def _change_identity(runas: tuple[int, int]) -> None:
    try:
        drop_identity(*runas)
    except OSError as error:
        raise PlatformError(
            f"cannot become user {runas[0]}, group {runas[1]}: {error.strerror}",
            "run as root, or leave --runas out",
        ) from None


def _new_user_namespace(assistant: _Assistant | None) -> str:
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(CLONE_NEWUSER)
    except OSError as error:
        raise _cannot("create a user namespace", error, NO_USER_NAMESPACE) from None
    if assistant and assistant.map_all_ids():
        return ALL_GROUPS
    try:
        for path, text in (("uid_map", f"0 {uid} 1"), ("setgroups", "deny"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{path}", "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise _cannot("map ids into the new user namespace", error, NO_USER_NAMESPACE) from None
    return ROOT_GROUP


def _cannot(what: str, error: OSError, remedy: str) -> PlatformError:
    """Return the error of a namespace that is refused, with `remedy` unless a limit is reached."""
    return PlatformError(f"cannot {what}: {error.strerror}", TOO_MANY_NAMESPACES if error.errno in FULL else remedy)


def _open_own(name: str) -> int:
    file = {"netns": "net", "userns": "user"}.get(name, name)
    return os.open(f"/proc/thread-self/ns/{file}", os.O_RDONLY | os.O_CLOEXEC)


def _tun_opener(assistant: _Assistant | None) -> Callable[[], int]:
    return assistant.open_tun if assistant else open_tun


def _write(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return False
    return True


class _Assistant:
    """A forked child that keeps the identity and namespaces this process is about to leave."""

    def __init__(self) -> None:
        ours, theirs = pair()
        served = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                ours.close()
                _assist(Channel(theirs), served)
            finally:
                os._exit(0)
        theirs.close()
        self._channel = Channel(ours, "the assistant of the helper process")

    def map_all_ids(self) -> bool:
        """Map every id known here to itself in the new user namespace; False if that is refused."""
        reply, _ = self._channel.call({"do": "map"})
        return bool(reply["done"])

    def open_tun(self) -> int:
        """Open the tun file in the network namespace that the calling process is in now."""
        netns = _open_own("netns")
        try:
            _, descriptors = self._channel.call({"do": "tun"}, descriptors=[netns])
        finally:
            os.close(netns)
        return descriptors[0]

    def close(self) -> None:
        """End the assistant."""
        self._channel.close()
        os.waitpid(self._pid, 0)


def _assist(channel: Channel, served: int) -> None:
    while request := channel.receive():
        message, received = request
        reply: Message = {"seq": message.get("seq")}
        made: list[int] = []
        try:
            if message["do"] == "map":
                reply["done"] = all(
                    _write(f"/proc/{served}/{kind}_map", _identity_map(kind)) for kind in ("uid", "gid")
                )
            else:
                setns(received[0], CLONE_NEWNET)
                made = [open_tun()]
        except Exception as error:
            reply |= describe(error)
        finally:
            close_all(received)
        channel.send(reply, made)


def _identity_map(kind: str) -> str:
    # In a container only some ids exist, and others cannot be mapped.
    with open(f"/proc/self/{kind}_map", encoding="utf-8") as file:
        ranges = [line.split() for line in file]
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in ranges)
