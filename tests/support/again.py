"""Running a suite once more on the same host, in a pytest of its own."""

from __future__ import annotations

import os
import sys

from tests.support.lab import INHERITED, Remote

TEST_SECONDS = 90  # after which a test counts as hanging: where it hangs is printed, and the run ends


def command(*arguments: str) -> list[str]:
    """Return the command line of a pytest that imports what this one does, and writes nothing beside the tests."""
    limit = ["-o", f"faulthandler_timeout={TEST_SECONDS}", "-o", "faulthandler_exit_on_timeout=true"]
    quiet = ["--import-mode=append", "-p", "no:cacheprovider", "-q"]
    return [sys.executable, "-m", "pytest", *quiet, *limit, *arguments]


def environment(remote: Remote, folder: str) -> dict[str, str]:
    """Return the environment of such a pytest, which inherits the remote machine's descriptor.

    :param folder: where it keeps what it writes.
    """
    return {
        **os.environ,
        INHERITED: str(remote.channel.fileno()),
        "HOME": folder,
        "HYPOTHESIS_STORAGE_DIRECTORY": f"{folder}/hypothesis",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
