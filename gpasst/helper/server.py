"""The helper process: a zygote that forks one child for each request.

Theory of operation: importing the netlink library takes most of the time of setting up a namespace, so it
is done once, in a process that then waits. For a request it forks; the child, which has everything loaded,
enters or creates the namespace, makes the tap, configures it and answers. A forked child may move between
namespaces at will, since it is no one's state but its own: whatever goes wrong, it ends, the kernel takes
back what it made, and the zygote is as before.

After a successful `open` the child stays to hold the namespace and make sockets in it
(`gpasst.helper.pool`). It has answered by then, so the time to execute the small program it turns into is
nobody's. Should the new identity be unable to read that program (an interpreter in root's home), the child
serves as it is, with the same behaviour and more memory.

Life and death:

1. All these processes end at end of file on their channel, so nothing survives the proxy, however it ended.
2. ^C, ^\\ and the hang-up of a terminal go to the whole process group; they are ignored here, since it is
   the proxy that decides when to end. They are blocked from before the start until they are ignored.
3. Children are reaped by the kernel (SIGCHLD ignored).
4. The zygote waits until its child has answered, so answers are in order; a child that died without a word
   is answered for.
"""

from __future__ import annotations

import _socket
import gc
import os
import signal
import sys
from typing import NoReturn

from gpasst.errors import PlatformError
from gpasst.helper import pool
from gpasst.helper.channel import Channel, Message, close_all, describe, pair
from gpasst.helper.enter import drop_identity
from gpasst.helper.namespace import entered
from gpasst.helper.request import OpenRequest, open_request
from gpasst.helper.tap import attach

IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
POOL_FD = 3
ANSWERED = b"."


def main(descriptor: int) -> NoReturn:
    """Serve requests on the channel until its end of file."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _close_others(descriptor)
    # A collection would only look at modules, and write to pages that children share.
    gc.disable()
    channel = Channel(_socket.socket(fileno=descriptor))
    missing: Message | None = None
    try:
        from gpasst.helper import netlink  # noqa: F401
    except ImportError as error:
        missing = describe(PlatformError(f"pyroute2 cannot be imported: {error}", "install it: pip install pyroute2"))
    gc.freeze()
    _leave_surroundings()
    while request := channel.receive():
        message, received = request
        close_all(received)
        if missing:
            channel.send({"seq": message.get("seq"), **missing})
        else:
            _fork_for(channel, message)
    # Nothing to flush or finalize: end before the caller notices that it waits.
    os._exit(0)


def _close_others(descriptor: int) -> None:
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number > 2 and number != descriptor:
            try:
                os.close(number)
            except OSError:
                continue  # the listing's own


def _leave_surroundings() -> None:
    """Let go of what was inherited, so that a terminal, a pipe or a mount does not wait for this process."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    if null > 2:
        os.close(null)
    os.chdir("/")


def _fork_for(channel: Channel, message: Message) -> None:
    reading, writing = os.pipe()
    if os.fork() == 0:
        status = 1
        try:
            os.close(reading)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(channel, message, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    answered = os.read(reading, len(ANSWERED))
    os.close(reading)
    if not answered:
        error = PlatformError("a process of the helper was killed", "see whether memory or process limits are reached")
        channel.send({"seq": message.get("seq"), **describe(error)})


def _serve(channel: Channel, message: Message, done: int) -> None:
    sequence = message.get("seq")
    ours: _socket.socket | None = None
    made: dict[str, int] = {}
    request = OpenRequest()
    try:
        if message["do"] == "facts":
            from gpasst.helper import netlink

            reply = {"facts": netlink.facts()}
        else:
            request = open_request(message["request"])
            reply, made, drop_late = _open(request)
            theirs, ours = pair()
            made["pool"] = theirs.detach()
            if drop_late and request.runas:
                drop_identity(*request.runas)
    except Exception as error:
        reply, made, ours = describe(error), {}, None
    channel.send({"seq": sequence, **reply, "descriptors": list(made)}, list(made.values()))
    os.write(done, ANSWERED)
    if ours:
        channel.close()
        close_all([done, *made.values()])
        _become_pool(ours.detach())


def _open(request: OpenRequest) -> tuple[Message, dict[str, int], bool]:
    from gpasst.helper import netlink

    reply: Message = {"pid": os.getpid(), "name": None, "offloads": ()}
    with entered(request) as place:
        made = dict(place.descriptors)
        if request.tap:
            made["tap"] = place.open_tun()
            reply["name"], reply["offloads"] = attach(made["tap"], request.ifname, request.offload)
    reply |= netlink.configure(request, reply["name"])
    reply["ephemeral"] = netlink.ephemeral_ports()
    return reply, made, place.drop_late


def _become_pool(descriptor: int) -> None:
    program = pool.__file__
    if all(os.access(path, os.R_OK) for path in (program, os.__file__)) and os.access(sys.executable, os.X_OK):
        os.dup2(descriptor, POOL_FD)
        try:
            os.execv(sys.executable, [sys.executable, "-I", "-S", program, str(POOL_FD)])
        except OSError:
            descriptor = POOL_FD
    pool.serve(descriptor)
