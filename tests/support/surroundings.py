"""What the suite's processes inherit from whoever starts it, made the same everywhere."""

from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path
from types import FrameType

import gpasst

# The interpreter ignores these itself; `subprocess` restores them in its children.
IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def settle() -> None:
    """Let programs that tests start have every signal's default action, and import the package that is under test.

    A shell lets its background jobs ignore SIGINT, and nohup SIGHUP; exec passes that on, and a program that was told
    to ignore a signal rightly goes on doing so.
    """
    for number in signal.valid_signals() - IGNORED_BY_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            # This process still ignores it, but a handler does not outlive exec.
            signal.signal(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Else pytest names its temporary folder after whatever user the number stands for, and another may own that.
    os.environ["LOGNAME"] = _user_name()
    folders = (Path(gpasst.__file__).parent.parent, Path(__file__).parent.parent.parent)
    before = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, folders), *before])
    # Since Python 3.11: else a checkout that is the current folder comes before the package that is installed.
    os.environ["PYTHONSAFEPATH"] = "1"


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
