"""Sockets of a namespace that are late."""

from __future__ import annotations

import os
from typing import cast

import pytest

from gpasst.helper.kept import LateError, Namespace
from gpasst.proxy import patience
from gpasst.proxy.patience import patiently


class Place:
    """Stands for a namespace whose process has answered."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        os.close(writer)

    def fileno(self) -> int:
        return self.reader

    def close(self) -> None:
        os.close(self.reader)
        self.reader = -1


def test_a_late_answer_is_awaited() -> None:
    place, late = Place(), [LateError(), LateError()]

    def take() -> str:
        if late:
            raise late.pop()
        return "sockets"

    assert patiently(cast(Namespace, place), take) == "sockets"
    assert not late
    place.close()


def never() -> None:
    raise LateError


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place()
    monkeypatch.setattr(patience, "ANSWER_SECONDS", 0.0)
    with pytest.raises(LateError):
        patiently(cast(Namespace, place), never)
    place.close()


def test_a_namespace_that_was_closed_answers_no_more() -> None:
    place = Place()
    place.close()
    with pytest.raises(LateError):
        patiently(cast(Namespace, place), never)
