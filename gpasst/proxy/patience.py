"""Calls that need sockets of a namespace, made again when those are late.

Theory of operation: a proxy blocks its hub for at most 50 ms for the process that keeps the namespace, and a busy
machine may take longer. What a user has asked for need not fail then: it is tried again when the answer has come, and
others run meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import gevent

from gpasst.helper.kept import ANSWER_SECONDS, LateError, Namespace
from gpasst.hub import wait_read

LOOK_SECONDS = 0.1  # to wait for an answer that is late before asking again

T = TypeVar("T")


def patiently(namespace: Namespace, function: Callable[[], T]) -> T:
    """Return what a function returns, which is called again while sockets of a namespace are late.

    :param namespace: the namespace.
    :param function: undoes what it has begun when it raises `LateError`.
    :raises LateError: if they are not there after `ANSWER_SECONDS`.
    """
    until = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            return function()
        except LateError:
            if time.monotonic() >= until or namespace.fileno() < 0:
                raise
        # Another one may take the late answer, and then nothing is readable.
        with gevent.Timeout(LOOK_SECONDS, False):
            wait_read(namespace.fileno())
