"""Each input of the corpus at its target, without atheris: what was found once stays mended. Takes 3 s."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.support.fuzz import CORPUS, names
from tests.support.fuzz.runner import main

INPUTS = sorted(path.relative_to(CORPUS) for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", INPUTS, ids=str)
def test_no_target_raises(path: Path) -> None:
    target = importlib.import_module(f"tests.support.fuzz.targets.{path.parent}")
    target.take((CORPUS / path).read_bytes())


def test_every_target_has_inputs_and_takes_none() -> None:
    assert sorted({str(path.parent) for path in INPUTS}) == names()
    for name in names():
        importlib.import_module(f"tests.support.fuzz.targets.{name}").take(b"")


def test_a_target_that_is_unknown_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "nothing is no target; name one of" in capsys.readouterr().err
