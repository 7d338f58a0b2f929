"""What is in the way when there are too many open files.

Theory of operation: much is imported when it is first used, and an import opens files, like the folders of temporary
files and whatever else the standard library needs. So calls that users make are *limited*: want of a descriptor,
wherever it shows in them, is one error that says what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from gpasst.errors import PlatformError
from gpasst.helper.channel import LIMIT_REMEDY


@contextmanager
def limited() -> Iterator[None]:
    """Turn the want of a descriptor into the error of a limit, in a ``with`` statement or a decorated function.

    :raises PlatformError: if there are too many open files.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise PlatformError("too many open files", LIMIT_REMEDY) from error
        raise
