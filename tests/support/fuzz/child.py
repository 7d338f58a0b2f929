"""One target under atheris, in a process of its own: `python -m tests.support.fuzz.child TARGET ARGUMENTS`.

The arguments are those of libFuzzer. The process ends with status 77 where the target has raised.
"""

from __future__ import annotations

import importlib
import sys


def main(name: str, arguments: list[str]) -> None:
    """Fuzz a target until a limit among the arguments; does not return."""
    try:
        import atheris
    except ImportError:
        sys.exit("tests.fuzz needs the Python module atheris, which has wheels for Python 3.11 to 3.13")
    with atheris.instrument_imports(include=["gpasst"]):
        target = importlib.import_module(f"tests.support.fuzz.targets.{name}")
    atheris.Setup([name, *arguments], target.take)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
