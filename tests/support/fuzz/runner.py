"""Fuzz the targets: `python -m tests.fuzz [--seconds N | --total N] [--keep FOLDER] [TARGET ...]`.

Each target runs in a process of its own, as many at once as there are processors. An input that has found something is
printed, and stays in FOLDER/found; `python -m tests.fuzz --replay FILE TARGET` shows it again, without atheris.

With ``--total``, chance begins alike in each run, so that a run on one machine says little else than the next one.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.fuzz import CORPUS, names

SECONDS = 600  # for each target, where nothing is said
START_SECONDS = 2.0  # that a process takes before its first input
SEED = 1  # of chance, with ``--total``
STEP_SECONDS = 10  # that one input may take
PATIENCE = 120  # seconds beyond its time, after which a target is ended
MEMORY_MEGABYTES = 1024
LENGTH = 8192  # bytes of an input
LAST_WORDS = 4000  # characters of what a target has written that has found something


def fuzz(name: str, seconds: int, keep: Path, seed: int) -> str:
    """Fuzz one target; return what it has to say, empty if it has found nothing and ends by itself.

    :param name: the target.
    :param seconds: how long.
    :param keep: where inputs are kept that reach something new, and what has been found.
    :param seed: of chance; 0 for another one in each run.
    """
    inputs, found = keep / name, keep / "found" / name
    inputs.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.support.fuzz.child", name, str(inputs), str(CORPUS / name)]
    command += [f"-max_total_time={seconds}", f"-timeout={STEP_SECONDS}", f"-max_len={LENGTH}"]
    command += [f"-rss_limit_mb={MEMORY_MEGABYTES}", f"-artifact_prefix={found}/", "-print_final_stats=1"]
    try:
        ended = subprocess.run(
            [*command, f"-seed={seed}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds + PATIENCE,
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: ended after {seconds + PATIENCE} seconds, since it did not end by itself")
        return f"{name}: did not end by itself"
    runs = [line.split()[-1] for line in ended.stdout.splitlines() if "stat::number_of_executed_units" in line]
    print(f"{name}: {runs[0] if runs else 'no'} inputs, {'found something' if ended.returncode else 'nothing found'}")
    return f"{name}:\n{ended.stdout[-LAST_WORDS:]}" if ended.returncode else ""


def main(argv: Sequence[str]) -> int:
    """Fuzz the targets that are named, or all; return the status of the process."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Fuzz the parsers and state machines of gpasst.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="those to fuzz [all]")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for each target [%(default)s]")
    parser.add_argument("--total", type=int, help="seconds for all targets together")
    parser.add_argument("--keep", type=Path, help="folder of inputs that reach something new [one that is deleted]")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run the target on one input, and end")
    given = parser.parse_args(argv)
    known = names()
    chosen = given.targets or known
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"{unknown[0]} is no target; name one of {', '.join(known)}")
    if given.replay:
        for name in chosen:
            importlib.import_module(f"tests.support.fuzz.targets.{name}").take(given.replay.read_bytes())
        return 0
    jobs = len(os.sched_getaffinity(0))
    end = time.monotonic() + given.total if given.total else None
    numbers = itertools.count()

    def run(name: str) -> str:
        """Fuzz a target for its share of the time that is left."""
        if end is None:
            return fuzz(name, given.seconds, keep, 0)
        rounds = -(-(len(chosen) - next(numbers)) // jobs)
        return fuzz(name, max(1, int((end - time.monotonic()) / rounds - START_SECONDS)), keep, SEED)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        keep = given.keep or Path(folder)
        findings = [text for text in pool.map(run, chosen) if text]
        for text in findings:
            print(text, file=sys.stderr)
        if findings and not given.keep:
            _show(keep / "found")
    return 1 if findings else 0


def _show(found: Path) -> None:
    """Print the inputs that have found something, since their folder goes."""
    for path in sorted(found.glob("*/*")):
        print(f"{path.parent.name}/{path.name}: {path.read_bytes().hex()}", file=sys.stderr)
