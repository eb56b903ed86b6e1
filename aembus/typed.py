"""What the data of a typed point look like: a dataclass, checked field by field.  Pure.

An instance travels as a map of its fields' names and values, nested ones too, so an untyped
handler of the same point gets a dict, and a field with a default may be added on either side first.
Annotations are read once, when the point is made.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import types
import typing
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, Generic, NamedTuple, TypeVar

from aembus.errors import DataMismatch

_T = TypeVar("_T")
_ATOMS: Final = frozenset(
    (
        *(bool, int, float, str, bytes, type(None), Decimal),
        *(dt.datetime, dt.date, dt.time, dt.timedelta),
    )
)
_SETS: Final = (set, frozenset)
_MANY: Final = (list, *_SETS)


class _Wrong(Exception):
    """What does not fit; the path to it grows on the way out."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(expected, got)
        self.path = ""


class _Ways(NamedTuple):
    """How a value of one annotation goes out and comes in; both raise _Wrong."""

    send: Callable[[Any], Any]
    receive: Callable[[Any], Any]


class Shape(Generic[_T]):
    """The shape of the data at one point.

    Args:
        point: the activation point's name, for messages.
        cls: a dataclass of fields of plain types, dates and times, Decimal, Enum, dataclasses, and
            lists, tuples, sets, dicts and unions of them.

    Raises: TypeError for a class or an annotation that it cannot check.
    """

    def __init__(self, point: str, cls: type[_T]) -> None:
        self.point = point
        self.cls = cls
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise TypeError(f"a typed point takes a dataclass, point={point!r}, class={cls!r}")
        self._known: dict[type, _Ways] = {}
        self._ways = self._dataclass(cls)

    def to_data(self, instance: _T) -> dict[str, Any]:
        """Return what travels.  Raises DataMismatch."""
        try:
            data: dict[str, Any] = self._ways.send(instance)
        except _Wrong as wrong:
            raise self._mismatch("cannot be sent", wrong) from None
        return data

    def from_data(self, data: tuple[Any, ...]) -> _T:
        """Return the instance that arrived as these arguments.  Raises DataMismatch."""
        try:
            if len(data) != 1:
                raise _Wrong("one map of the fields", f"{len(data)} arguments")
            instance: _T = self._ways.receive(data[0])
        except _Wrong as wrong:
            raise self._mismatch("arrived and does not fit", wrong) from None
        return instance

    def _mismatch(self, what: str, wrong: _Wrong) -> DataMismatch:
        expected, got = wrong.args
        field = wrong.path.removeprefix(".") or None
        return DataMismatch(
            f"what was activated {what}: {expected} was expected, and not {got}; "
            f"point={self.point!r}, class={_name(self.cls)}, field={field!r}"
        )

    # --- annotations ----------------------------------------------------------------------------

    def _dataclass(self, cls: Any) -> _Ways:
        known = self._known.get(cls)
        if known is not None:
            return known
        ways: dict[str, _Ways] = {}
        # A class may have fields of its own type: known before its fields are looked at.
        fields = [f for f in dataclasses.fields(cls) if f.init]
        required = [
            f.name
            for f in fields
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]

        def send(value: Any) -> Any:
            if not isinstance(value, cls):
                raise _Wrong(_name(cls), _described(value))
            return {n: _at(f".{n}", way.send, getattr(value, n)) for n, way in ways.items()}

        def receive(value: Any) -> Any:
            if not isinstance(value, Mapping):
                raise _Wrong(f"a map of the fields of {_name(cls)}", _described(value))
            if missing := [n for n in required if n not in value]:
                raise _Wrong(f"a value for {missing}", "a missing field")
            if extra := [n for n in value if n not in ways]:
                raise _Wrong(f"one of the fields {[*ways]}", f"an extra field {extra}")
            found = {n: _at(f".{n}", ways[n].receive, item) for n, item in value.items()}
            try:
                return cls(**found)
            except (TypeError, ValueError) as error:  # its own check
                raise _Wrong(f"what {_name(cls)} accepts", f"{found!r} ({error})") from error

        self._known[cls] = both = _Ways(send, receive)
        hints = typing.get_type_hints(cls)
        for field in fields:
            try:
                ways[field.name] = self._ways_of(hints[field.name])
            except _Unknown as unknown:
                raise TypeError(
                    "a typed point cannot check this annotation; use plain types, dates, Enum, "
                    "dataclasses, and lists, tuples, sets, dicts or unions of them, but in sets "
                    "and as keys of dicts nothing that travels as a list, set or map, "
                    f"point={self.point!r}, class={_name(cls)}, field={field.name!r}, "
                    f"annotation={unknown.args[0]!r}"
                ) from None
        return both

    def _ways_of(self, hint: Any) -> _Ways:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint in (Any, object):
            return _Ways(_as_it_is, _as_it_is)
        if origin in (typing.Union, types.UnionType):
            return self._union(hint, arguments)
        if origin is typing.Literal:
            return _atom(lambda value: value in arguments, _name(hint))
        if hint in _ATOMS:
            return _atom(lambda value: _is_atom(value, hint), _name(hint))
        if hint in (*_MANY, dict, tuple):
            return _atom(lambda value: isinstance(value, hint), _name(hint), hint)
        if (origin in _SETS or origin is dict) and not _is_hashable(arguments[0]):
            raise _Unknown(hint)
        if origin in _MANY:
            return _many(origin, self._ways_of(arguments[0]))
        if origin is tuple:
            return self._tuple(hint, arguments)
        if origin is dict:
            return _dict(*map(self._ways_of, arguments))
        if _is_enum(hint):
            return _enum(hint)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self._dataclass(hint)
        raise _Unknown(hint)

    def _union(self, hint: Any, arguments: tuple[Any, ...]) -> _Ways:
        # What arrives must tell which one it is, so there may be one that arrives as a map, and
        # one that arrives as a text.
        kinds = [typing.get_origin(argument) or argument for argument in arguments]
        classes = sum(map(dataclasses.is_dataclass, kinds))
        enums = sum(map(_is_enum, kinds))
        if classes + (classes and dict in kinds) > 1 or enums + (enums and str in kinds) > 1:
            raise _Unknown(hint)
        ways = [self._ways_of(argument) for argument in arguments]

        def first(which: int) -> Callable[[Any], Any]:
            def convert(value: Any) -> Any:
                deepest = _Wrong(_name(hint), _described(value))
                for way in ways:
                    try:
                        return way[which](value)
                    except _Wrong as wrong:
                        if len(wrong.path) > len(deepest.path):
                            deepest = wrong
                raise deepest

            return convert

        return _Ways(first(0), first(1))

    def _tuple(self, hint: Any, arguments: tuple[Any, ...]) -> _Ways:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return _many(tuple, self._ways_of(arguments[0]))
        ways = [self._ways_of(argument) for argument in arguments]

        def convert(which: int, value: Any) -> Any:
            if not isinstance(value, (list, tuple)) or len(value) != len(ways):
                raise _Wrong(_name(hint), _described(value))
            pairs = enumerate(zip(ways, value, strict=True))
            return tuple(_at(f"[{i}]", way[which], item) for i, (way, item) in pairs)

        return _Ways(lambda value: convert(0, value), lambda value: convert(1, value))


class _Unknown(Exception):
    """An annotation that cannot be checked."""


def _is_hashable(hint: Any) -> bool:
    # As it travels: a dataclass is a map then, and a tuple is one still in a set, or as a key.
    kind = typing.get_origin(hint) or hint
    if kind in (list, set, dict) or dataclasses.is_dataclass(kind):
        return False
    return kind is typing.Literal or all(map(_is_hashable, typing.get_args(hint)))


def _at(place: str, convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except _Wrong as wrong:
        wrong.path = place + wrong.path
        raise


def _as_it_is(value: Any) -> Any:
    return value


def _is_atom(value: Any, hint: Any) -> bool:
    if hint is float:
        return type(value) in (float, int)
    if hint is int:  # True is none, an IntEnum's member is
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is dt.date:
        return isinstance(value, hint) and not isinstance(value, dt.datetime)
    return isinstance(value, hint)


def _atom(fits: Callable[[Any], bool], expected: str, made: Any = _as_it_is) -> _Ways:
    def send(value: Any) -> Any:
        if not fits(value):
            raise _Wrong(expected, _described(value))
        return value

    def receive(value: Any) -> Any:
        return send(made(value) if made is tuple and isinstance(value, list) else value)

    return _Ways(send, receive)


def _many(made: Any, way: _Ways) -> _Ways:
    arrives: Any = (list, tuple) if made in (list, tuple) else made

    def send(value: Any) -> Any:
        if not isinstance(value, made):
            raise _Wrong(made.__name__, _described(value))
        return made(_at(f"[{i}]", way.send, item) for i, item in enumerate(value))

    def receive(value: Any) -> Any:
        if not isinstance(value, arrives):
            raise _Wrong(made.__name__, _described(value))
        return made(_at(f"[{i}]", way.receive, item) for i, item in enumerate(value))

    return _Ways(send, receive)


def _dict(key_way: _Ways, way: _Ways) -> _Ways:
    def convert(which: int, value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Wrong("dict", _described(value))
        return {
            _at(f"[{key!r}]", key_way[which], key): _at(f"[{key!r}]", way[which], item)
            for key, item in value.items()
        }

    return _Ways(lambda value: convert(0, value), lambda value: convert(1, value))


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _enum(cls: type[enum.Enum]) -> _Ways:
    def send(value: Any) -> Any:
        if not isinstance(value, cls):
            raise _Wrong(_name(cls), _described(value))
        # Several flags at once, or none, are no member.
        return value.name if value.name in cls.__members__ else value.value

    def receive(value: Any) -> Any:
        try:
            if isinstance(value, int) and issubclass(cls, enum.Flag):
                return cls(value)
            return cls.__members__[value]
        except (KeyError, TypeError, ValueError):
            raise _Wrong(f"one of {[*cls.__members__]}", _described(value)) from None

    return _Ways(send, receive)


def _name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


def _described(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__qualname__} {text if len(text) <= 80 else text[:77] + '...'}"
