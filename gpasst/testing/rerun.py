"""Running a test again, in the weather of a run that failed: `pytest --gpasst-shrink`.

Theory of operation: a test that fails runs again and again in this process, with its function's fixtures set up anew
each time (`_pytest.runner.runtestprotocol`, as pytest-rerunfailures does), and each time in other weather
(`gpasst.api.replay`). Programs have a timing of their own, so what counts is two of up to three runs. A run counts as a
failure only if the same type of exception comes out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial

import pytest
from _pytest.runner import runtestprotocol

from gpasst.api.replay import Key, Replay, begin
from gpasst.impair.fate import Fate
from gpasst.testing.shrinking import Disturbance, Exhausted, describe, disturbances, smallest

RUNS_MOST = 200  # of one test
VOTES = 2  # runs of the same outcome decide


class Shrinker:
    """A plugin that looks for the smallest weather in which a test still fails.

    :param fixture: the fixture that every test with weather uses.
    """

    def __init__(self, fixture: str) -> None:
        self._fixture = fixture
        self._kind = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test, and if it fails run it again."""
        if self._fixture not in getattr(item, "fixturenames", ()):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        replay = Replay()
        reports = self._run(item, nextitem, replay)
        kind = self._kind
        if kind:
            lines = self._shrink(partial(self._run, item, nextitem), replay, kind)
            failed = next(report for report in reports if report.failed and report.when == "call")
            failed.sections.append(("gpasst shrink", "\n".join(lines)))
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Remember what a test has raised."""
        report = yield
        if call.when == "call" and report.failed and call.excinfo is not None:
            self._kind = call.excinfo.typename
        return report

    def _run(self, item: pytest.Item, nextitem: pytest.Item | None, replay: Replay) -> list[pytest.TestReport]:
        """Run a test once; `_kind` is what it has raised, empty if it passed."""
        self._kind = ""
        begin(replay)
        try:
            return runtestprotocol(item, log=False, nextitem=nextitem)
        finally:
            begin(None)

    def _shrink(self, run: Callable[[Replay], object], replay: Replay, kind: str) -> list[str]:
        """Return lines that say in what weather the test still fails."""
        found = disturbances(replay.rules)
        if not found:
            return ["weather has disturbed no frame of this test"]
        runs = 0
        last = replay  # of those that failed

        def once(kept: Sequence[Disturbance]) -> Replay | None:
            nonlocal runs
            if runs >= RUNS_MOST:
                raise Exhausted
            runs += 1
            fates: dict[Key, dict[int, Fate]] = {}
            for item in kept:
                fates.setdefault(item.key, {})[item.n] = item.fate
            tried = Replay(fates)
            run(tried)
            return tried if self._kind == kind else None

        def fails(kept: Sequence[Disturbance]) -> bool:
            nonlocal last
            failed: list[Replay] = []
            passed = 0
            while len(failed) < VOTES and passed < VOTES:
                tried = once(kept)
                if tried is None:
                    passed += 1
                else:
                    failed.append(tried)
            if passed < VOTES:
                last = failed[-1]
            return passed < VOTES

        if fails(()):
            return ["fails without weather, too"]
        if not fails(found):
            return [f"does not fail again in the same weather, which had disturbed {len(found)} frames"]
        smallest(found, fails)
        left = disturbances(last.rules)
        ran = f"{runs} times more" + (", which is the most, so less may do" if runs == RUNS_MOST else "")
        return [*describe(left), "", f"{len(left)} of {len(found)} disturbed frames; the test ran {ran}"]
