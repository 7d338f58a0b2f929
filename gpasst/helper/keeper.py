"""The process that makes and keeps the namespaces of one caller: a user namespace, and a thread for each namespace.

Theory of operation: one user namespace may own any number of network namespaces, and each thread of a process may be in
another one. So each namespace has a thread, which makes it, configures it, answers, and then stays to make sockets in
it and to change it, until its channel ends. It then closes the taps, which takes the kernel some 20 to 40 ms that
nobody else waits for, and ends; the kernel takes the rest back. What goes wrong in a thread leaves nothing behind in
the others, and none ever moves from one namespace to another.

1. The user namespace is entered at the first request, before there are threads: the kernel demands that.
2. The main thread stays in the network namespace of the start and only starts threads.
3. The channel of requests ends with the helper process, and no more namespaces will come. If only one is there then,
   its thread turns the process into the program of `gpasst.helper.pool`, which takes half of the memory. (That is the
   case of the command line.) It does so when nothing was asked for a while, since starting that program takes 20 ms of
   the processor, and many a container lasts no longer.
4. The process ends when that channel and all namespaces have ended.

NOTE: once there are threads, nothing here may fork: a child of a process with threads can rely on little.
"""

from __future__ import annotations

import _socket
import os
import resource
import select
import sys
import threading
from typing import NoReturn

from gpasst.errors import PlatformError
from gpasst.helper import pool
from gpasst.helper.changes import Taps
from gpasst.helper.channel import Channel, Message, adopt, close_all, describe
from gpasst.helper.namespace import ALL_GROUPS, create, enter_user_namespace, furnish
from gpasst.helper.request import open_request

STACK_SIZE = 1 << 20  # bytes of a thread; 8 MiB would be reserved otherwise
QUIET_MILLISECONDS = 1000  # without a request, before a process becomes smaller
# A thread that makes sockets waits at most this long for one that sets up a namespace. Seconds.
SWITCH_INTERVAL = 0.0005


class Keeper:
    """The namespaces of one caller.

    :param requests: where the helper process sends requests to open, each with the caller's end of a channel.
    :param netns_only: make no user namespace; root only.
    """

    def __init__(self, requests: Channel, netns_only: bool) -> None:
        self._requests = requests
        self._groups = ALL_GROUPS if netns_only else ""
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        # The reading end is readable when no more namespaces will come.
        self._complete, self._more = os.pipe()

    def run(self) -> NoReturn:
        """Serve requests until their end, and namespaces until theirs; then end the process."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        threading.stack_size(STACK_SIZE)
        sys.setswitchinterval(SWITCH_INTERVAL)
        for message, descriptors in self._requests.arrivals():
            channel = adopt(descriptors)
            if channel is not None:
                self._start(message, channel)
        os.close(self._more)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        os._exit(0)

    def _start(self, message: Message, channel: Channel) -> None:
        """Start the thread of a namespace; what is in the way of that is the answer."""
        thread = threading.Thread(target=self._keep, args=(message, channel), daemon=True)
        try:
            self._groups = self._groups or enter_user_namespace()
            with self._lock:
                self._threads.add(thread)
            thread.start()
        except RuntimeError:
            self._threads.discard(thread)
            refuse(channel, message, PlatformError("too many processes and threads", "raise the limit: ulimit -u"))
        except Exception as error:
            refuse(channel, message, error)

    def _keep(self, message: Message, channel: Channel) -> None:
        """Make a namespace and serve its channel to the end."""
        try:
            taps = self._open(message, channel)
            if taps is not None:
                self._serve(channel, taps)
        finally:
            channel.close()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _open(self, message: Message, channel: Channel) -> Taps | None:
        """Make a namespace and answer.

        :return: its taps; None if there is no namespace.
        """
        try:
            request = open_request(message["request"])
            reply, made = furnish(request, create(self._groups, request))
        except Exception as error:
            refuse(channel, message, error)
            return None
        tap = deliver(channel, message, reply, made)
        return None if tap is None else Taps(dict(zip([reply["name"]], tap, strict=False)))

    def _serve(self, channel: Channel, taps: Taps) -> None:
        """Make sockets in the namespace of this thread until the end of the channel, then close the taps."""
        sock = _socket.socket(fileno=channel.detach())
        events = select.poll()
        events.register(sock, select.POLLIN)
        events.register(self._complete, select.POLLIN)
        patience: int | None = None
        try:
            while True:
                ready = [descriptor for descriptor, _ in events.poll(patience)]
                if self._complete in ready:
                    events.unregister(self._complete)
                    patience = QUIET_MILLISECONDS
                elif not ready:
                    patience = None
                    self._shrink(sock, taps)
                if sock.fileno() in ready and not pool.serve_once(sock, taps.answer):
                    return
        finally:
            sock.close()
            taps.close()

    def _shrink(self, sock: _socket.socket, taps: Taps) -> None:
        """Turn the process into a small one, if this is the only namespace left."""
        with self._lock:
            if len(self._threads) == 1 and not taps.files:
                for descriptor in taps.descriptors:
                    os.set_inheritable(descriptor, True)
                pool.become(sock.fileno())


def keep_alone(sock: _socket.socket) -> None:
    """Make sockets in the namespace of this process, in which there is no other, until the end of a channel."""
    events = select.poll()
    events.register(sock, select.POLLIN)
    while events.poll(QUIET_MILLISECONDS):
        if not pool.serve_once(sock):
            return
    pool.become(sock.fileno())
    if pool.wanted:
        pool.confine()
    while pool.serve_once(sock):
        pass


def refuse(channel: Channel, message: Message, error: Exception) -> None:
    """Answer a request with an error, and close the channel."""
    try:
        channel.send({"seq": message.get("seq"), **describe(error)})
    except OSError:
        pass  # the caller has gone
    finally:
        channel.close()


def deliver(channel: Channel, message: Message, reply: Message, made: dict[str, int]) -> list[int] | None:
    """Answer a request with a namespace, and close its descriptors here, but for the tap.

    :return: the descriptor of the tap, none without one; None, and nothing stays open, if the caller has gone.
    """
    tap = [made["tap"]] if "tap" in made else []
    try:
        channel.send({"seq": message.get("seq"), **reply, "descriptors": list(made)}, list(made.values()))
    except OSError:
        close_all(made.values())
        channel.close()
        return None
    close_all([descriptor for name, descriptor in made.items() if name != "tap"])
    return tap
