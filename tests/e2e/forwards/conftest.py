"""Fixtures of the tests of port forwards."""

from __future__ import annotations

import pytest

from gpasst.proxy import follower

LOOK_SECONDS = 0.01  # between two looks at what is bound, lest tests wait


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "FOLLOW_SECONDS", LOOK_SECONDS)
