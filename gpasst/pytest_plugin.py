"""The pytest plugin: fixtures that open namespaces, and what a failed test's report says of them.

Theory of operation: pytest loads this module in every run of every project that gpasst is installed for, so it imports
nothing but pytest; a fixture that is used imports the rest. What a test has open is a `gpasst.testing.session.Session`
in the stash of its item, since the report of a failed test is made while that is still open.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpasst.api.passt import Passt
    from gpasst.api.pasta import Pasta
    from gpasst.testing.session import Session

_session = pytest.StashKey["Session"]()
_seed = pytest.StashKey[int]()
_failed = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("gpasst", "namespaces of gpasst")
    group.addoption("--gpasst-pcap", metavar="DIR", help="capture the traffic of each fixture into a file in DIR")
    group.addoption("--gpasst-pcap-on-failure", metavar="DIR", help="the same, and delete the files of tests that pass")
    group.addoption("--gpasst-seed", metavar="N", type=int, help="seed of all weather that names none [random]")
    group.addoption(
        "--gpasst-require", action="store_true", help="fail a test that lacks a permission, instead of skipping it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Apply the options that count without a fixture, too."""
    seed = config.getoption("gpasst_seed")
    if seed is not None:
        _choose_seed(config, seed)
    if config.getoption("gpasst_require"):
        _demand(config)


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
