"""The pytest plugin: fixtures that open namespaces, and what a failed test's report says of them.

Theory of operation: pytest loads this module in every run of every project that gpasst is installed for, so it imports
nothing but pytest; a fixture that is used imports the rest. What a test has open is a `gpasst.testing.session.Session`
in the stash of its item, since the report of a failed test is made while that is still open.

A test that is explored is a test for each seed, as if it had a parameter more; so each has fixtures of its own, a place
in the reports, and a worker of pytest-xdist.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpasst.api.network import Network
    from gpasst.api.passt import Passt
    from gpasst.api.pasta import Pasta
    from gpasst.testing.session import Session

_session = pytest.StashKey["Session"]()
_seed = pytest.StashKey[int]()
_failed = pytest.StashKey[bool]()

EXPLORED = "_gpasst_explored_seed"  # the parameter of a test that is explored
SESSION = "_gpasst_session"  # the fixture behind all others
SEEDS_SHOWN = 10  # of a test's seeds that fail


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("gpasst", "namespaces of gpasst")
    group.addoption("--gpasst-pcap", metavar="DIR", help="capture the traffic of each fixture into a file in DIR")
    group.addoption("--gpasst-pcap-on-failure", metavar="DIR", help="the same, and delete the files of tests that pass")
    group.addoption("--gpasst-seed", metavar="N", type=int, help="seed of all weather that names none [random]")
    group.addoption(
        "--gpasst-explore",
        metavar="N",
        type=int,
        help="run each test that uses a fixture of gpasst under N seeds, from --gpasst-seed or 0 on",
    )
    group.addoption(
        "--gpasst-shrink",
        action="store_true",
        help="run a test that fails again, to find the smallest weather that it fails in",
    )
    group.addoption(
        "--gpasst-require", action="store_true", help="fail a test that lacks a permission, instead of skipping it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Apply the options that count without a fixture, too."""
    seed = config.getoption("gpasst_seed")
    if seed is not None:
        _choose_seed(config, seed)
    if (count := config.getoption("gpasst_explore")) is not None:
        _checked(count)
    if config.getoption("gpasst_require"):
        _demand(config)
    if config.getoption("gpasst_shrink"):
        with _unchanged():
            from gpasst.testing.rerun import Shrinker
        config.pluginmanager.register(Shrinker(SESSION), "gpasst-shrink")
    config.addinivalue_line("markers", "gpasst_explore(seeds): run the test under so many seeds of its weather")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each seed under which a test is explored."""
    if SESSION not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("gpasst_explore")
    count = metafunc.config.getoption("gpasst_explore")
    if count is None and marker is not None:
        count = _checked(*marker.args, **marker.kwargs)
    if count is not None:
        first = metafunc.config.getoption("gpasst_seed") or 0
        metafunc.fixturenames.append(EXPLORED)
        seeds = range(first, first + count)
        metafunc.parametrize(EXPLORED, seeds, ids=[f"seed {seed}" for seed in seeds], indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that is explored have its seed, fixtures included."""
    seed = _explored(item)
    if seed is None:
        return (yield)
    from gpasst.api.seed import choose

    before = item.config.stash.get(_seed, None)
    item.config.stash[_seed] = seed
    choose(seed)
    item.user_properties.append((EXPLORED, seed))
    try:
        return (yield)
    finally:
        choose(before)
        if before is None:
            del item.config.stash[_seed]
        else:
            item.config.stash[_seed] = before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the seeds under which explored tests have failed."""
    seeds: dict[str, list[int]] = {}
    runs: dict[str, int] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            seed = dict(report.user_properties).get(EXPLORED)
            if seed is not None and report.when == "call":
                test = report.nodeid.replace(f"seed {seed}", "").replace("[]", "").replace("-]", "]")
                runs[test] = runs.get(test, 0) + 1
                if outcome == "failed":
                    seeds.setdefault(test, []).append(seed)
    if not seeds:
        return
    terminalreporter.section("gpasst: seeds that fail")
    for test, found in seeds.items():
        found.sort()
        shown = ", ".join(map(str, found[:SEEDS_SHOWN])) + (", ..." if len(found) > SEEDS_SHOWN else "")
        terminalreporter.line(f"{test}: {len(found)} of {runs[test]} seeds: {shown}")
    terminalreporter.line("repeat one with --gpasst-explore=1 --gpasst-seed=SEED, and add --gpasst-shrink")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add a section about the open namespaces to the report of a failed test, and decide about its captures."""
    report = yield
    session = item.stash.get(_session, None)
    if session is None:
        return report
    if report.failed:
        item.stash[_failed] = True
        if session.open:
            report.sections.append(("gpasst", session.report(item.config.stash[_seed])))
    if report.when == "teardown":
        if not item.stash.get(_failed, False) and item.config.getoption("gpasst_pcap") is None:
            session.drop()
        del item.stash[_session]
    return report


@pytest.fixture
def _gpasst_session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Everything that the test has open."""
    from gpasst.api.seed import random_seed

    with _unchanged():
        from gpasst.testing.session import Session

    config = request.config
    if _seed not in config.stash:
        _choose_seed(config, random_seed())
    folder = config.getoption("gpasst_pcap") or config.getoption("gpasst_pcap_on_failure")
    session = request.node.stash[_session] = Session(request.node.nodeid, folder, _unchanged)
    yield session
    session.close()


@pytest.fixture
def _gpasst_explored_seed(request: pytest.FixtureRequest) -> int:
    """The seed that a test is explored under."""
    seed: int = request.param
    return seed


@pytest.fixture
def gpasst_factory(_gpasst_session: Session) -> Callable[..., Pasta]:
    """Open a namespace with each call, which takes the keywords of `gpasst.Pasta`; all are closed after the test.

    They are configured (`config_net=True`) unless the call says otherwise.
    """
    return _gpasst_session.pasta


@pytest.fixture
def gpasst_pasta(_gpasst_session: Session) -> Pasta:
    """A configured namespace with the network of this machine, closed after the test."""
    return _gpasst_session.pasta()


@pytest.fixture
def gpasst_passt(_gpasst_session: Session) -> Passt:
    """The network of a virtual machine, whose qemu takes `gpasst_passt.qemu_options`; closed after the test."""
    return _gpasst_session.passt()


@pytest.fixture
def gpasst_network(_gpasst_session: Session) -> Network:
    """A network without hosts, which the test opens with `gpasst_network.hosts("a", "b")`; closed after the test."""
    return _gpasst_session.network()


@pytest.fixture
def gpasst_network_factory(_gpasst_session: Session) -> Callable[..., Network]:
    """Open a network with each call, which takes the parameters of `gpasst.Network`; all are closed after the test."""
    return _gpasst_session.network


@contextmanager
def _unchanged() -> Iterator[None]:
    """Import modules as they are.

    pytest rewrites the assertions of every module of a package that has a plugin, which takes a second for all of
    gpasst where the result cannot be kept.
    """
    found = list(sys.meta_path)
    sys.meta_path[:] = [finder for finder in found if type(finder).__name__ != "AssertionRewritingHook"]
    try:
        yield
    finally:
        sys.meta_path[:] = found


def _checked(seeds: int) -> int:
    """Return a number of seeds, as the marker takes it; with none, pytest would skip the test without a word."""
    if seeds < 1:
        raise pytest.UsageError(f"gpasst-explore: {seeds} seeds run no test; give 1 or more")
    return seeds


def _explored(item: pytest.Item) -> int | None:
    """Return the seed that a test is explored under, None if it is not."""
    params: dict[str, int] = getattr(getattr(item, "callspec", None), "params", {})
    return params.get(EXPLORED)


def _choose_seed(config: pytest.Config, seed: int) -> None:
    from gpasst.api.seed import choose

    config.stash[_seed] = seed
    choose(seed)
    config.add_cleanup(lambda: choose(None))


def _demand(config: pytest.Config) -> None:
    """Make what is missing an error, in processes that the tests start, too."""
    from gpasst.testing.needs import DEMANDED

    patch = pytest.MonkeyPatch()
    patch.setenv(DEMANDED, "1")
    config.add_cleanup(patch.undo)
