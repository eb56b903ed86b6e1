"""What travels in a job: the arguments of an activation, as one msgpack array.

Never pickle: what comes out of shared memory is data, not code.  Plain data (None, bool, int,
float, str, bytes, and lists and maps of them) is msgpack's own; the rest has extension types:

    ==== ============== =====================================================================
    1    datetime       its ISO 8601 text; an aware one keeps its offset, not its zone's name
    2    date           its ISO 8601 text
    3    time           its ISO 8601 text
    4    timedelta      an array of days, seconds, microseconds
    5    Decimal        its text
    6    int            beyond 64 bits: big-endian, two's complement
    7    set            an array
    8    frozenset      an array
    9    dataclass      an array of its portable name and a map of its fields
    10   Enum           an array of its portable name and the member's name; of a Flag that is
                        none or several of them, its value
    11   tuple          an array; in a dataclass only
    ==== ============== =====================================================================

0 to 31 are kept for aembus; others arrive as msgpack.ExtType.  The fields of a dataclass arrive as
what they were.  Elsewhere what msgpack takes for something plain arrives as that: a tuple as a list
(but in a set, and as a key of a map, as a tuple), an IntEnum as an int, a StrEnum as a str.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import zlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgpack

from aembus.shm.lanes import plain_decode

EXT_DATETIME: Final = 1
EXT_DATE: Final = 2
EXT_TIME: Final = 3
EXT_TIMEDELTA: Final = 4
EXT_DECIMAL: Final = 5
EXT_INT: Final = 6
EXT_SET: Final = 7
EXT_FROZENSET: Final = 8
EXT_DATACLASS: Final = 9
EXT_ENUM: Final = 10
EXT_TUPLE: Final = 11
EXT_LAST: Final = 31

INT_MIN: Final = -(1 << 63)  # of those that msgpack has itself
INT_MAX: Final = (1 << 64) - 1

_PLAIN: Final[tuple[Any, ...]] = (int, str, list, dict, float, bytes)

_Class = TypeVar("_Class", bound=type)

_portable: dict[str, type] = {}
_portable_names: dict[type, str] = {}

# --- encoding -----------------------------------------------------------------------------------

NOT_PLAIN: Final = (TypeError, OverflowError)

_Pack = Callable[[Any], bytes]

# Packers are kept, since making one costs more than most data do.  Each has one buffer, so it is
# nobody else's while it packs: that may run Python code, of a subclass that looks at its items in
# its own way, or, up to CPython 3.11, of a finalizer.  That may encode, or let another thread.
_packers: Final[list[_Pack]] = []
take_packer: Final[Callable[[], _Pack]] = _packers.pop  # raises IndexError if there is none
return_packer: Final[Callable[[_Pack], None]] = _packers.append


def make_packer() -> _Pack:
    """Return one for where `take_packer` has none; to be returned as those."""
    pack: _Pack = msgpack.Packer().pack
    return pack


def encode_plain(arguments: tuple[Any, ...] | list[Any]) -> bytes:
    """Like `encode`, but raise one of NOT_PLAIN for what only `encode_rich` can."""
    try:
        pack = take_packer()
    except IndexError:
        pack = make_packer()
    try:
        return pack(arguments)
    finally:
        return_packer(pack)


def encode(arguments: tuple[Any, ...] | list[Any]) -> bytes:
    """Return the arguments as they travel.

    Raises: TypeError for what cannot, ValueError for what is nested too deeply.
    """
    try:
        return encode_plain(arguments)
    except NOT_PLAIN:
        return encode_rich(arguments)


def encode_rich(arguments: Any) -> bytes:
    """Like `encode`, for what is known not to be plain."""
    packed: bytes = msgpack.packb(arguments, default=_extend)
    return packed


def _encode_exactly(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=_extend, strict_types=True)
    return packed


def _extend(value: Any) -> Any:
    kind = type(value)
    name = _portable_names.get(kind)
    if name is not None:
        return _extend_portable(name, value)
    # By isinstance, and datetime before date, which it is one of.
    if isinstance(value, dt.datetime):
        return msgpack.ExtType(EXT_DATETIME, value.isoformat().encode())
    if isinstance(value, dt.date):
        return msgpack.ExtType(EXT_DATE, value.isoformat().encode())
    if isinstance(value, dt.time):
        return msgpack.ExtType(EXT_TIME, value.isoformat().encode())
    if isinstance(value, dt.timedelta):
        parts = (value.days, value.seconds, value.microseconds)
        return msgpack.ExtType(EXT_TIMEDELTA, msgpack.packb(parts))
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        size = value.bit_length() // 8 + 1
        return msgpack.ExtType(EXT_INT, value.to_bytes(size, "big", signed=True))
    if isinstance(value, (set, frozenset)):
        number = EXT_SET if isinstance(value, set) else EXT_FROZENSET
        return msgpack.ExtType(number, encode_rich(list(value)))
    if isinstance(value, tuple):  # in a dataclass; of a subclass, too: msgpack asks once a value
        return msgpack.ExtType(EXT_TUPLE, _encode_exactly(list(value)))
    if kind.__name__ == "Decimal" and kind.__module__ in ("decimal", "_decimal", "_pydecimal"):
        return msgpack.ExtType(EXT_DECIMAL, str(value).encode())
    for plain in _PLAIN:
        if isinstance(value, plain):  # of a subclass, in a dataclass
            return plain(value)
    raise TypeError(_cannot_be_sent(kind))


def _extend_portable(name: str, value: Any) -> msgpack.ExtType:
    if isinstance(value, enum.Enum):
        # Several flags at once, or none, are no member.
        member = value.name if value.name in type(value).__members__ else value.value
        return msgpack.ExtType(EXT_ENUM, _encode_exactly([name, member]))
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    return msgpack.ExtType(EXT_DATACLASS, _encode_exactly([name, fields]))


def _cannot_be_sent(kind: type) -> str:
    if dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum):
        way_out = "decorate the class with @aembus.portable, or send it at a typed point"
    else:
        way_out = (
            "send plain data, a date or time, Decimal, set, or a dataclass or Enum that is "
            "decorated with @aembus.portable"
        )
    return f"this cannot be sent over the bus; {way_out}, type={_path(kind)}"


# --- decoding -----------------------------------------------------------------------------------


@plain_decode
def decode(payload: bytes) -> list[Any]:
    """Return the arguments that `encode` was given.

    Raises: TypeError for a dataclass or Enum that this process has not declared portable, or
    whose fields differ here; ValueError for what is damaged.
    """
    try:
        return _unpack(payload, strict_map_key=False, ext_hook=_unextend)
    except TypeError as error:
        if not str(error).startswith("unhashable"):
            raise
        arguments: list[Any] = _lists(_decode_hashable(payload))
        return arguments


_unpack: Final[Callable[..., list[Any]]] = msgpack.unpackb  # a look-up less for each job


def _unextend(number: int, data: bytes) -> Any:
    reader = _readers.get(number)
    if reader is not None:
        return reader(data)
    if number <= EXT_LAST:
        raise ValueError(f"extension type {number} is of a newer aembus, bytes={len(data)}")
    return msgpack.ExtType(number, data)


def _decode_hashable(data: bytes) -> Any:
    """Decode with tuples in place of lists, as members of sets and keys of maps must be."""
    return msgpack.unpackb(data, strict_map_key=False, use_list=False, ext_hook=_unextend)


def _lists(value: Any) -> Any:
    """Return what was decoded with tuples with lists instead, but for keys of maps."""
    if type(value) is tuple:
        return [_lists(item) for item in value]
    if type(value) is dict:
        return {key: _lists(item) for key, item in value.items()}
    return value


def _read_timedelta(data: bytes) -> dt.timedelta:
    return dt.timedelta(*msgpack.unpackb(data))


def _read_decimal(data: bytes) -> Any:
    from decimal import Decimal  # which few send, and a worker should not have to load

    return Decimal(data.decode())


def _read_dataclass(data: bytes) -> Any:
    name, fields = decode(data)
    cls = _class_of(name, "dataclass")
    try:
        return cls(**fields)
    except TypeError as error:
        known = sorted(f.name for f in dataclasses.fields(cls) if f.init)
        raise TypeError(
            f"{error}; the sender's class differs from this process's, class={name!r}, "
            f"sent={sorted(fields)}, known={known}"
        ) from error


def _read_enum(data: bytes) -> Any:
    name, member = decode(data)
    cls: Any = _class_of(name, "Enum")
    try:
        return cls(member) if isinstance(member, int) else cls[member]
    except (KeyError, ValueError):
        raise TypeError(
            f"the sender's class differs from this process's, class={name!r}, sent={member!r}, "
            f"known={[*cls.__members__]}"
        ) from None


def _class_of(name: str, what: str) -> type:
    cls = _portable.get(name)
    if cls is None:
        raise TypeError(
            f"a {what} arrived that this process does not know; import the module that declares "
            f"it with @aembus.portable, class={name!r}"
        )
    return cls


_readers: Final[dict[int, Callable[[bytes], Any]]] = {
    EXT_DATETIME: lambda data: dt.datetime.fromisoformat(data.decode()),
    EXT_DATE: lambda data: dt.date.fromisoformat(data.decode()),
    EXT_TIME: lambda data: dt.time.fromisoformat(data.decode()),
    EXT_TIMEDELTA: _read_timedelta,
    EXT_DECIMAL: _read_decimal,
    EXT_INT: lambda data: int.from_bytes(data, "big", signed=True),
    EXT_SET: lambda data: set(_decode_hashable(data)),
    EXT_FROZENSET: lambda data: frozenset(_decode_hashable(data)),
    EXT_DATACLASS: _read_dataclass,
    EXT_ENUM: _read_enum,
    EXT_TUPLE: lambda data: tuple(decode(data)),
}


# --- classes that may travel ------------------------------------------------------------------


def portable(cls: _Class) -> _Class:
    """Let instances of a dataclass, or members of an Enum, travel in jobs (a class decorator).

    They travel by the class's name, ``module.qualified_name``, and its fields; no code does.  The
    receiving process must have imported the module too: nothing is imported on a job's word.

    Raises: TypeError for another kind of class, and for a second class of the same name.
    """
    if not (dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum)):
        raise TypeError(
            "only a dataclass or an Enum can be portable; put @aembus.portable above @dataclass, "
            f"class={_path(cls)}"
        )
    name = _path(cls)
    _portable[name] = cls
    _portable_names[cls] = name
    return cls


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def key_hash(key: str | bytes | int) -> int:
    """Return the hash by which a key picks its member: the same in every process and run."""
    if isinstance(key, str):
        key = key.encode()
    elif isinstance(key, int):
        key = b"%d" % key
    try:
        return zlib.crc32(key)
    except TypeError:
        raise TypeError(
            f"a key is a str, bytes or int; make one of it, key={key!r}, type={type(key).__name__}"
        ) from None
