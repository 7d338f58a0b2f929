"""How a benchmark of several contenders is asked for, and what becomes of its figures."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def asked(
    parser: argparse.ArgumentParser,
    labels: Sequence[str],
    contenders: Sequence[str],
    rounds: int = 3,
    seconds: float = 1.0,
) -> argparse.Namespace:
    """Return the command line, with the words that all these benchmarks share.

    :param parser: with the words of the benchmark's own.
    :param labels: the names of its loads; `--list` prints them, and ends the program.
    :param rounds: unless the command line says otherwise.
    :param seconds: as `rounds`.
    :raises SystemExit: if not root.
    """
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help="of load in each measurement")
    parser.add_argument("--only", action="append", default=[], help="only loads whose name contains this")
    parser.add_argument("--without", action="append", default=[], choices=contenders, help="leave out a contender")
    parser.add_argument("--list", action="store_true", help="print the names of the loads, and do nothing")
    parser.add_argument("--output", default="", help="folder for files of the figures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args()
    if given.list:
        print(*labels, sep="\n")
        raise SystemExit
    if os.geteuid() != 0:
        raise SystemExit("the benchmark makes network namespaces; run it as root")
    return given


def wanted(given: argparse.Namespace, label: str) -> bool:
    return not given.only or any(text in label for text in given.only)


def about(given: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.date.today().isoformat(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "rounds": given.rounds,
        "seconds": given.seconds,
        **more,
    }


def publish(
    given: argparse.Namespace, name: str, document: Mapping[str, Any], text: str, chart: str | None = None
) -> None:
    """Print the figures, and keep them in the files NAME.json, NAME.txt and NAME.svg of the folder that was chosen."""
    figures = json.dumps(document, indent=1)
    if given.output:
        folder = Path(given.output)
        folder.mkdir(parents=True, exist_ok=True)
        for kind, content in (("json", figures + "\n"), ("txt", text + "\n"), ("svg", chart)):
            if content is None:
                continue
            with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
                file.write(content)
            os.chmod(file.name, 0o644)
            os.replace(file.name, folder / f"{name}.{kind}")
    print(figures if given.json else text)
