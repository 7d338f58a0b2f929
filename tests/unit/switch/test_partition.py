"""Which hosts a partition cuts off from each other."""

from __future__ import annotations

import pytest

from gpasst.switch.partition import Partition


@pytest.mark.parametrize(
    ("groups", "apart"),
    [
        ([["a"], ["b", "c"]], {"ab", "ac"}),
        ([["a"], ["b"], ["c"]], {"ab", "ac", "bc"}),
        ([["a", "b"], ["b", "c"]], {"ac"}),
        ([["a"]], {"ab", "ac", "ad"}),
        ([["a", "b"]], {"ac", "bc", "ad", "bd"}),
        ([["a", "b", "c", "d"]], set()),
    ],
    ids=["two groups", "three", "a bridge", "one host alone", "two hosts alone", "all together"],
)
def test_who_is_cut_off(groups: list[list[str]], apart: set[str]) -> None:
    partition = Partition(groups)
    pairs = {one + other for one in "abcd" for other in "abcd" if one < other}
    assert {pair for pair in pairs if partition.cuts(*pair)} == apart
    assert {pair for pair in pairs if partition.cuts(*reversed(pair))} == apart
