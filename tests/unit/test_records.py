"""Records behave as `dataclasses` makes them: the same class is made by both, and does the same."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from gpasst import records

MAKERS = [dataclasses, records]


def make(maker: Any) -> dict[str, Any]:
    """Return records of every kind that the package has, by name."""

    @maker.dataclass(frozen=True, slots=True)
    class Frozen:
        one: int
        two: str = "b"
        three: list[int] = maker.field(default_factory=list, compare=False, repr=False)

        def double(self) -> int:
            return 2 * self.one

    frozen: Any = Frozen

    @maker.dataclass(slots=True)
    class Open:
        one: int = 1
        inner: Any = maker.field(default_factory=lambda: frozen(7))
        derived: int = maker.field(init=False)

        def __post_init__(self) -> None:
            self.derived = self.one + 1

    @maker.dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        one: int = maker.field(default=3, metadata={"unit": "s"})
        two: int

    @maker.dataclass(slots=True, eq=False)
    class Itself:
        one: int

    return {cls.__name__: cls for cls in (Frozen, Open, Named, Itself)}


QUESTIONS: list[Callable[[Any, dict[str, Any]], Any]] = [
    lambda maker, made: repr(made["Frozen"](1)).rpartition(".")[2],
    lambda maker, made: repr(made["Open"](one=4)).rpartition(".")[2],
    lambda maker, made: made["Frozen"](1, three=[1]) == made["Frozen"](1, "b", [2]),
    lambda maker, made: made["Frozen"](1) == made["Frozen"](2),
    lambda maker, made: made["Frozen"](1) == (1, "b"),
    lambda maker, made: hash(made["Frozen"](1)) == hash(made["Frozen"](1)),
    lambda maker, made: made["Open"].__hash__,
    lambda maker, made: made["Open"]() == made["Open"](),
    lambda maker, made: made["Itself"](1) == made["Itself"](1),
    lambda maker, made: len({made["Itself"](1), made["Itself"](1)}),
    lambda maker, made: made["Open"](5).derived,
    lambda maker, made: made["Open"]().inner is made["Open"]().inner,
    lambda maker, made: made["Frozen"](4).double(),
    lambda maker, made: made["Named"](two=2).one,
    lambda maker, made: made["Frozen"].__slots__,
    lambda maker, made: made["Frozen"].__match_args__,
    lambda maker, made: made["Named"].__match_args__,
    lambda maker, made: maker.asdict(made["Open"]()),
    lambda maker, made: dataclasses.asdict(made["Open"]()),
    lambda maker, made: maker.replace(made["Frozen"](1), two="c").two,
    lambda maker, made: dataclasses.replace(made["Named"](two=2), two=5).two,
    lambda maker, made: [
        (item.name, item.init, item.compare, dict(item.metadata)) for item in maker.fields(made["Named"])
    ],
    lambda maker, made: next((item.name, item.default) for item in dataclasses.fields(made["Named"])),
    lambda maker, made: copy.deepcopy(made["Frozen"](1, "x")).two,
    lambda maker, made: copy.copy(made["Open"](9)).derived,
]
MISUSES: list[tuple[type[Exception], Callable[[dict[str, Any]], Any]]] = [
    (dataclasses.FrozenInstanceError, lambda made: setattr(made["Frozen"](1), "one", 2)),
    (dataclasses.FrozenInstanceError, lambda made: delattr(made["Frozen"](1), "one")),
    (AttributeError, lambda made: setattr(made["Open"](1), "other", 2)),
    (TypeError, lambda made: made["Frozen"]()),
    (TypeError, lambda made: made["Frozen"](1, "b", [], 4)),
    (TypeError, lambda made: made["Frozen"](1, four=4)),
    (TypeError, lambda made: made["Named"](3)),
    (TypeError, lambda made: made["Open"](1, derived=4)),
    (TypeError, lambda made: hash(made["Open"]())),
]


@pytest.mark.parametrize("number", range(len(QUESTIONS)))
def test_answers_are_those_of_dataclasses(number: int) -> None:
    theirs, ours = (QUESTIONS[number](maker, make(maker)) for maker in MAKERS)
    assert ours == theirs


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("number", range(len(MISUSES)))
def test_misuse_is_refused_as_by_dataclasses(maker: Any, number: int) -> None:
    error, action = MISUSES[number]
    with pytest.raises(error):
        action(make(maker))


@records.dataclass(frozen=True, slots=True)
class Kept:
    one: int


def test_a_record_has_what_copies_of_later_pythons_call() -> None:
    kept: Any = Kept(3)
    assert kept.__replace__(one=4) == Kept(4)  # by copy.replace of Python 3.13


def test_a_frozen_record_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(Kept(3))) == Kept(3)
