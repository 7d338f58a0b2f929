"""Records: what `dataclasses` makes, without its price at the start of a program.

Theory of operation: `dataclasses` imports `inspect`, and compiles six functions for each class when that is declared.
For fifty classes this took a third of the time in which the package's modules load. Here a class has its slots at once;
comparison, hash and representation are closures over the tuple of its values; and `__init__`, which has to be fast, is
compiled when the first object is made. Type checkers read `dataclasses` in the place of this module, and that module's
`fields`, `replace` and `asdict` take these records as well.

NOTE: every record has slots, and none inherits fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Field", "asdict", "dataclass", "field", "fields", "replace"]

if TYPE_CHECKING:
    from dataclasses import Field, asdict, dataclass, field, fields, replace
else:
    from collections.abc import Callable, Mapping
    from operator import attrgetter
    from typing import Any, NamedTuple

    _MISSING = object()

    class Field(NamedTuple):
        """A field, with the attributes of one of `dataclasses`; `default` may be missing."""

        name: str
        default: Any
        default_factory: Any = None
        init: bool = True
        repr: bool = True
        compare: bool = True
        metadata: Mapping[str, Any] = {}

    def field(*, default: Any = _MISSING, **traits: Any) -> Field:
        """Return what stands in the place of a default; the parameters are the attributes of `Field`."""
        return Field("", default, **traits)

    def dataclass(*, slots: bool, frozen: bool = False, eq: bool = True, kw_only: bool = False) -> Any:
        """Return the decorator of a record; the parameters are those of `dataclasses.dataclass`."""
        assert slots

        def decorate(cls: type) -> type:
            body = dict(cls.__dict__)
            declared = []
            for name in cls.__annotations__:
                value = body.pop(name, _MISSING)
                declared.append(value._replace(name=name) if isinstance(value, Field) else Field(name, value))
            for name in ("__dict__", "__weakref__"):
                body.pop(name, None)
            body["__slots__"] = tuple(item.name for item in declared)
            body["__match_args__"] = tuple(item.name for item in declared if item.init and not kw_only)
            body["__record_fields__"] = tuple(declared)
            body["__dataclass_fields__"] = _Described()
            body.setdefault("__repr__", _represent)
            body["__replace__"] = replace  # of copy.replace (Python 3.13)
            if eq:
                compared = [item.name for item in declared if item.compare]
                body |= _compared(attrgetter(*compared), frozen)
            if frozen:
                body |= {"__setattr__": _refuse, "__delattr__": _refuse}
                # Copies and pickles of an object with slots set its attributes one by one otherwise.
                body |= {"__getstate__": _state, "__setstate__": _restore}

            def __init__(self: Any, *given: Any, **named: Any) -> None:
                made.__init__ = _compile(made, declared, frozen, kw_only)
                made.__init__(self, *given, **named)

            body["__init__"] = __init__
            made = type(cls)(cls.__name__, cls.__bases__, body)
            made.__qualname__ = cls.__qualname__
            return made

        return decorate

    def fields(record: Any) -> tuple[Field, ...]:
        """Return the fields of a record or its class."""
        return record.__record_fields__

    def replace(record: Any, /, **changes: Any) -> Any:
        """Return a copy of a record with other values of some fields."""
        for item in record.__record_fields__:
            if item.init and item.name not in changes:
                changes[item.name] = getattr(record, item.name)
        return record.__class__(**changes)

    def asdict(record: Any) -> dict[str, Any]:
        """Return the values of a record by their names, and those of records in it likewise."""
        return {item.name: _plain(getattr(record, item.name)) for item in record.__record_fields__}

    def _plain(value: Any) -> Any:
        if hasattr(value, "__record_fields__"):
            return asdict(value)
        return type(value)(map(_plain, value)) if type(value) in (tuple, list) else value

    def _compile(cls: Any, declared: list[Field], frozen: bool, kw_only: bool) -> Callable[..., None]:
        """Return the `__init__` of a class."""
        names: dict[str, Any] = {"_MISSING": _MISSING}
        parameters = ["self", "*"] if kw_only else ["self"]
        lines = []
        for item in declared:
            name, value = item.name, item.name
            if item.default_factory:
                names[f"_make_{name}"] = item.default_factory
                value = f"_make_{name}() if {name} is _MISSING else {name}" if item.init else f"_make_{name}()"
            elif item.default is not _MISSING:
                names[f"_default_{name}"] = item.default
                value = name if item.init else f"_default_{name}"
            elif not item.init:
                continue
            if item.init:
                default = "_MISSING" if item.default_factory else f"_default_{name}"
                required = item.default is _MISSING and not item.default_factory
                parameters.append(name if required else f"{name}={default}")
            if frozen:
                names[f"_set_{name}"] = cls.__dict__[name].__set__
                lines.append(f" _set_{name}(self, {value})")
            else:
                lines.append(f" self.{name} = {value}")
        if hasattr(cls, "__post_init__"):
            lines.append(" self.__post_init__()")
        exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines or [" pass"]), names)
        init: Callable[..., None] = names["__init__"]
        init.__qualname__ = f"{cls.__qualname__}.__init__"
        return init

    def _compared(key: Callable[[Any], Any], frozen: bool) -> dict[str, Any]:
        """Return the methods that compare records by a key."""

        def __eq__(self: Any, other: object) -> bool:
            return key(self) == key(other) if other.__class__ is self.__class__ else NotImplemented

        def __hash__(self: Any) -> int:
            return hash(key(self))

        return {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}

    def _represent(self: Any) -> str:
        values = [f"{item.name}={getattr(self, item.name)!r}" for item in self.__record_fields__ if item.repr]
        return f"{type(self).__qualname__}({', '.join(values)})"

    def _refuse(self: Any, name: str, *_: object) -> None:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot change field {name!r}")

    def _state(self: Any) -> list[Any]:
        return [getattr(self, name) for name in self.__slots__]

    def _restore(self: Any, state: list[Any]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            object.__setattr__(self, name, value)

    class _Described:
        """The fields of a class as `dataclasses` describes them, when it asks for them."""

        def __get__(self, record: object, cls: type) -> dict[str, Any]:
            import dataclasses

            found = []
            for item in cls.__record_fields__:
                traits = {name: getattr(item, name) for name in ("init", "repr", "compare", "metadata")}
                if item.default_factory:
                    traits["default_factory"] = item.default_factory
                elif item.default is not _MISSING:
                    traits["default"] = item.default
                found.append((item.name, cls.__annotations__[item.name], dataclasses.field(**traits)))
            described = dataclasses.make_dataclass(cls.__name__, found, kw_only=True).__dataclass_fields__
            cls.__dataclass_fields__ = described
            return described
