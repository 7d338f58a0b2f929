"""How late timers are: libev's sleep in whole milliseconds (ev_epoll.c: epoll_wait), a timerfd does not.

timerfd_create and timerfd_settime: Linux 2.6.25; readable once the time has come, and not before.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time

import gevent
import pytest

from gpasst.linux import CLOCK_MONOTONIC, TFD_CLOEXEC, TFD_NONBLOCK

ASKED = 200e-6  # seconds
TRIES = 20  # of which the best one counts, since others may keep the processor
_libc = ctypes.CDLL(None, use_errno=True)


def loop_timer() -> float:
    """Return the seconds that a timer of the loop takes for `ASKED`."""
    hub = gevent.get_hub()
    hub.loop.update_now()  # else the time of the loop's last turn counts, and a timer may be early
    began = time.monotonic()
    hub.wait(hub.loop.timer(ASKED))
    return time.monotonic() - began


def timerfd(seconds: float) -> int:
    descriptor: int = _libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
    assert descriptor >= 0
    nanoseconds = int(seconds * 1e9)
    assert _libc.timerfd_settime(descriptor, 0, struct.pack("@qqqq", 0, 0, *divmod(nanoseconds, 10**9)), None) == 0
    return descriptor


def precise_timer() -> float:
    """Return the seconds until a timerfd of `ASKED` is readable."""
    began = time.monotonic()
    descriptor = timerfd(ASKED)
    select.select([descriptor], [], [], 2)
    took = time.monotonic() - began
    assert os.read(descriptor, 8) == struct.pack("@Q", 1)
    os.close(descriptor)
    return took


def test_the_loop_rounds_its_sleep_up_to_a_millisecond() -> None:
    assert min(loop_timer() for _ in range(TRIES)) >= 900e-6


def test_a_timerfd_does_not() -> None:
    best = min(precise_timer() for _ in range(TRIES))
    assert ASKED <= best < 900e-6


def test_a_timerfd_is_not_readable_before_its_time() -> None:
    descriptor = timerfd(3600)
    with pytest.raises(BlockingIOError):
        os.read(descriptor, 8)
    # Setting it again replaces what was set; one nanosecond is the soonest, since zero would stop it.
    assert _libc.timerfd_settime(descriptor, 0, struct.pack("@qqqq", 0, 0, 0, 1), None) == 0
    assert select.select([descriptor], [], [], 2)[0]
    assert os.read(descriptor, 8) == struct.pack("@Q", 1)
    assert _libc.timerfd_settime(descriptor, 0, struct.pack("@qqqq", 0, 0, 0, 0), None) == 0
    assert not select.select([descriptor], [], [], 0.01)[0]
    os.close(descriptor)
