"""The helper process: it speaks netlink on the host's side, and starts the processes that keep namespaces.

Theory of operation: this process stays outside of every namespace. Each request comes over a connection of its own: the
caller makes a pair of sockets and sends one of them along. So callers in several threads need no lock, an answer that
nobody awaits any more ends with its connection, and none waits for the answer to another.

* The host's links, addresses and routes are answered by this process.
* New namespaces of the caller's own identity are made and kept by one process for all of them
  (`gpasst.helper.keeper`), which is forked at the first such request.
* A namespace that somebody made, or that is made for another user, gets a process of its own, forked for the request:
  the user namespace and the identity are a process's, and the way into another's leads from outside.

Either has everything loaded already when it is forked. A process of one namespace turns into the small program of
`gpasst.helper.pool` when nothing was asked for a while.

For a virtual machine this process has one thing more to do: the proxy, in its sandbox, cannot reach the file of the
guest's socket any more. So this process removes it when the proxy has ended, in a sandbox of its own.

This process stays beside the other since it alone can enter namespaces of others and report the host's network, and
replaces a keeper that was killed without importing anything again; most of its memory is shared with the keeper's.

Life and death:

1. All these processes end at end of file on their channels, so nothing outlives the proxy, however it ended.
2. ^C, ^\\ and the hang-up of a terminal go to the whole process group, and so may SIGTERM; they are ignored here,
   since the proxy decides when to end, and leaves what it cannot reach in its sandbox, such as the files of names of a
   network's hosts, to these processes. They are blocked from before the start until they are ignored.
3. Children are reaped by the kernel (SIGCHLD ignored).
4. A child that dies without an answer closes the connection by that, and the caller reports it.
"""

from __future__ import annotations

import _socket
import gc
import importlib
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from gpasst.errors import PlatformError
from gpasst.helper.channel import Channel, Message, adopt, close_all, pair
from gpasst.helper.discovery import facts
from gpasst.helper.enter import drop_identity
from gpasst.helper.keeper import Keeper, deliver, keep_alone, refuse
from gpasst.helper.namespace import entered, furnish
from gpasst.helper.request import OpenRequest, open_request

IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
STANDARD = 3  # descriptors below this are standard input, output and error
# What a caller that stopped reading, or a keeper that stopped working, may cost others. Seconds.
PATIENCE = 5.0


def main(descriptor: int) -> NoReturn:
    """Serve connections that arrive on the channel until its end of file."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _close_others({descriptor})
    # A collection would only look at modules, and write to pages that children share.
    gc.disable()
    control = Channel(_socket.socket(fileno=descriptor))
    gc.freeze()
    gc.enable()
    _leave_surroundings()
    server = Server(control)
    for _, descriptors in control.arrivals():
        connection = adopt(descriptors)
        if connection is not None:
            server.serve(connection)
    # Nothing to flush or finalize: end before the caller notices that it waits.
    os._exit(0)


class Server:
    """What the helper process does for one request, and the processes that keep namespaces.

    :param control: ends with the caller.
    """

    def __init__(self, control: Channel) -> None:
        self._control = control
        # By whether their namespaces are made without a user namespace.
        self._keepers: dict[bool, Channel] = {}

    def serve(self, connection: Channel) -> None:
        """Take the one request of a connection, and answer it or have it answered."""
        try:
            connection.limit(PATIENCE)
            arrived = connection.receive()
            if arrived is not None:
                message, received = arrived
                close_all(received)
                self._answer(connection, message)
        except (OSError, PlatformError):
            pass  # the caller has gone, or hangs, or sent no message
        finally:
            connection.close()

    def _answer(self, connection: Channel, message: Message) -> None:
        try:
            if message["do"] == "open":
                self._hand_on(connection, message)
                return
            if message["do"] == "remove":
                self._remain(connection, message)
            reply = {"seq": message["seq"], "facts": facts()}
        except Exception as error:
            refuse(connection, message, error)
        else:
            connection.send(reply)

    def _remain(self, connection: Channel, message: Message) -> NoReturn:
        """Enter a sandbox, and remove a file when the caller has ended.

        :raises OSError: if the identity cannot be taken on.
        """
        # A start of another kind has no use for it.
        from gpasst.sandbox.calls import remover_calls
        from gpasst.sandbox.enter import Report, filter_calls, own_user, renounce

        path, identity = message["path"], os.lstat(message["path"])
        if message["runas"]:
            drop_identity(*message["runas"])
        os.chdir("/")
        report = Report()
        own_user(report)
        renounce(report)
        filter_calls(report, remover_calls())
        connection.send({"seq": message["seq"], "held": report.held, "missing": report.missing})
        connection.close()
        for _, descriptors in self._control.arrivals():
            close_all(descriptors)
        try:
            if os.path.samestat(os.lstat(path), identity):
                os.unlink(path)
        finally:
            os._exit(0)

    def _hand_on(self, connection: Channel, message: Message) -> None:
        """Have a namespace opened by another process, which answers.

        :raises PlatformError: if there can be no more processes.
        :raises OSError: if the new process ended at once.
        """
        request = open_request(message["request"])
        # That process shares the descriptor, and waits for as long as it takes.
        connection.limit(None)
        if request.shares_process:
            self._have_kept(connection, message, request.netns_only)
        else:
            _fork(lambda: _keep_one(connection, message, request), {connection.fileno()})

    def _have_kept(self, connection: Channel, message: Message, netns_only: bool) -> None:
        """Hand a request to the process that keeps the caller's namespaces; a new one if it has ended.

        :raises PlatformError: if there can be no more processes.
        :raises OSError: if the new process ended at once.
        """
        keeper = self._keepers.get(netns_only)
        if keeper is not None:
            try:
                keeper.send(message, [connection.fileno()])
                return
            except OSError:
                # It was killed; or hangs, and ends with its namespaces if it ever goes on.
                self._keepers.pop(netns_only).close()
        self._keepers[netns_only] = _start_keeper(netns_only)
        self._keepers[netns_only].send(message, [connection.fileno()])


def _start_keeper(netns_only: bool) -> Channel:
    ours, theirs = pair()
    try:
        _fork(lambda: Keeper(Channel(theirs), netns_only).run(), {theirs.fileno()})
    except PlatformError:
        ours.close()
        raise
    finally:
        theirs.close()
    keeper = Channel(ours)
    keeper.limit(PATIENCE)
    return keeper


def _fork(serve: Callable[[], object], kept: set[int]) -> None:
    """Run `serve` in a child, which has only the descriptors `kept`.

    :raises PlatformError: if there can be no more processes.
    """
    try:
        if os.fork():
            return
    except OSError as error:
        raise PlatformError(f"cannot start a process: {error.strerror}", "raise the limit: ulimit -u") from None
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _close_others(kept)
        serve()
    finally:
        os._exit(0)


def _keep_one(connection: Channel, message: Message, request: OpenRequest) -> None:
    """Enter or create the namespace, answer, and stay to make sockets in it."""
    if request.runas:
        # The identity may not be able to read it later (`gpasst.helper.pool.confine`).
        importlib.import_module("gpasst.sandbox.enter")
    try:
        with entered(request) as place:
            reply, made = furnish(request, place)
        if place.drop_late and request.runas:
            drop_identity(*request.runas)
    except Exception as error:
        refuse(connection, message, error)
        return
    tap = deliver(connection, message, reply, made)
    if tap is None:
        return
    for descriptor in tap:
        if request.netns is None:
            os.set_inheritable(descriptor, True)
        else:
            # The caller may close a joined namespace and open it again at once, with a tap of the same name.
            os.close(descriptor)
    keep_alone(_socket.socket(fileno=connection.detach()))


def _close_others(kept: set[int]) -> None:
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number >= STANDARD and number not in kept:
            try:
                os.close(number)
            except OSError:
                continue  # the listing's own


def _leave_surroundings() -> None:
    """Let go of what was inherited, so that a terminal, a pipe or a mount does not wait for this process."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(STANDARD):
        os.dup2(null, number)
    if null >= STANDARD:
        os.close(null)
    os.chdir("/")
