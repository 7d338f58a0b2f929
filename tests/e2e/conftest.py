"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.guests import expire


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(autouse=True)
def _forget(request: pytest.FixtureRequest) -> Iterator[None]:
    """End all mappings and pairs of a shared guest after a test, so that the ports of the next mean nothing yet."""
    yield
    if "net" in request.fixturenames:
        expire(request.getfixturevalue("net"))
