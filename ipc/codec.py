"""Message objects to msgpack frames and back: one encoder, one decoder, and the only place that checks frames.

A record is a slotted dataclass whose field annotations come from the table `KINDS` below. `record` reads those
annotations once, at import; encoding and decoding are then table walks. On the wire a message is the array
`[tag, epoch, field, field, ...]`; a record inside a message is the array of its fields.

Lists of integers and floats travel as little-endian bytes: msgpack would spend a byte-code and a Python object on
every element, and the element types would have to be checked one by one.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgpack

MAX_FRAME_BYTES = 64 << 20
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# The names that a field annotation may use beside str, int, float, bool and bytes.
if TYPE_CHECKING:
    Ids = array[int]
else:
    Ids = array  # token ids, kept packed: array("i")
Ints = list[int]  # a column of 32-bit integers
Longs = list[int]  # a column of 64-bit integers
Floats = list[float]  # a column of 32-bit floats
Strs = list[str]
Blobs = list[bytes]
Map = dict[str, Any]  # plain data as JSON knows it


class WireError(ValueError):
    """A frame that is not a message of this protocol; the text says what is wrong with it."""


class Kind(NamedTuple):
    """How one field travels. `pack` is None where msgpack takes the Python value as it is."""

    pack: Callable[[Any], Any] | None
    unpack: Callable[[Any], Any]


def _plain(kind: type) -> Kind:
    def unpack(value: Any) -> Any:
        if type(value) is not kind:
            raise WireError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return Kind(None, unpack)


def _packed(typecode: str, as_list: bool) -> Kind:
    size = array(typecode).itemsize
    swap = sys.byteorder == "big"

    def pack(values: Sequence[Any]) -> bytes:
        column = values if type(values) is array else array(typecode, values)
        if swap:
            column = array(typecode, column)
            column.byteswap()
        return column.tobytes()

    def unpack(value: Any) -> Any:
        if type(value) is not bytes or len(value) % size:
            raise WireError(f"expected packed {size}-byte numbers")
        column = array(typecode)
        column.frombytes(value)
        if swap:
            column.byteswap()
        return column.tolist() if as_list else column

    return Kind(pack, unpack)


def _list_of(kind: Kind) -> Kind:
    pack_one, unpack_one = kind

    def unpack(value: Any) -> list[Any]:
        if type(value) is not list:
            raise WireError(f"expected list, got {type(value).__name__}")
        return [unpack_one(item) for item in value]

    if pack_one is None:
        return Kind(None, unpack)
    return Kind(lambda values: [pack_one(value) for value in values], unpack)


def _optional(kind: Kind) -> Kind:
    pack_one, unpack_one = kind

    def unpack(value: Any) -> Any:
        return None if value is None else unpack_one(value)

    if pack_one is None:
        return Kind(None, unpack)
    return Kind(lambda value: None if value is None else pack_one(value), unpack)


def _unpack_int(value: Any) -> int:
    if type(value) is int and INT64_MIN <= value <= INT64_MAX:
        return value
    raise WireError(f"expected an integer of 64 bits, got {type(value).__name__}")


def _unpack_float(value: Any) -> float:
    if type(value) is float:
        return value
    raise WireError(f"expected float, got {type(value).__name__}")


KINDS: dict[str, Kind] = {
    "str": _plain(str),
    "int": Kind(None, _unpack_int),
    "float": Kind(float, _unpack_float),
    "bool": _plain(bool),
    "bytes": _plain(bytes),
    "Map": _plain(dict),
    "Ids": _packed("i", as_list=False),
    "Ints": _packed("i", as_list=True),
    "Longs": _packed("q", as_list=True),
    "Floats": _packed("f", as_list=True),
    "Strs": _list_of(_plain(str)),
    "Blobs": _list_of(_plain(bytes)),
}
KINDS |= {f"{name} | None": _optional(KINDS[name]) for name in ("str", "int", "float", "Map", "Ids")}


class Layout(NamedTuple):
    """The fields of one record class, in wire order."""

    values: Callable[[Any], tuple[Any, ...]]
    packs: list[tuple[int, Callable[[Any], Any]]]
    unpacks: list[tuple[str, Callable[[Any], Any]]]


T = TypeVar("T")
_layouts: dict[type, Layout] = {}
_by_tag: dict[int, type] = {}
_tags: dict[type, int] = {}


def record(cls: type[T]) -> type[T]:
    """Class decorator: let a slotted dataclass travel inside messages, alone, as `X | None` or as `list[X]`."""
    kinds = [(field.name, KINDS[str(field.type)]) for field in fields(cls)]  # type: ignore[arg-type]
    names = [name for name, _ in kinds]
    getter = attrgetter(*names) if names else None
    layout = Layout(
        values=_values_getter(getter, len(names)),
        packs=[(i, kind.pack) for i, (_, kind) in enumerate(kinds) if kind.pack is not None],
        unpacks=[(name, kind.unpack) for name, kind in kinds],
    )
    _layouts[cls] = layout
    own = Kind(lambda value: _pack_fields(layout, value), lambda value: _unpack_fields(cls, layout, value))
    KINDS[cls.__name__] = own
    KINDS[f"{cls.__name__} | None"] = _optional(own)
    KINDS[f"list[{cls.__name__}]"] = _list_of(own)
    return cls


def message(tag: int) -> Callable[[type[T]], type[T]]:
    """Class decorator: a record that travels on its own, known on the wire by `tag`."""

    def register(cls: type[T]) -> type[T]:
        if tag in _by_tag:
            raise ValueError(f"tag {tag} belongs to {_by_tag[tag].__name__}")
        _by_tag[tag] = record(cls)
        _tags[cls] = tag
        return cls

    return register


def encode(item: Any, epoch: int) -> bytes:
    """One message as a frame of the given ring epoch."""
    return msgpack.packb([_tags[type(item)], epoch, *_pack_fields(_layouts[type(item)], item)])


def decode(frame: bytes) -> tuple[int, Any]:
    """A frame as `(epoch, message)`.

    Raises WireError for anything that is not exactly a message of this protocol: a frame over `MAX_FRAME_BYTES`,
    not msgpack, an unknown tag, a wrong number of fields, a field of another type or range.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise WireError(f"frame of {len(frame)} bytes is over the limit of {MAX_FRAME_BYTES}")
    try:
        parts = msgpack.unpackb(frame, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"not msgpack: {error}") from None
    if type(parts) is not list or len(parts) < 2 or type(parts[0]) is not int or type(parts[1]) is not int:
        raise WireError("not a message array")
    cls = _by_tag.get(parts[0])
    if cls is None:
        raise WireError(f"unknown tag {parts[0]}")
    try:
        return parts[1], _unpack_fields(cls, _layouts[cls], parts[2:])
    except WireError as error:
        raise WireError(f"{cls.__name__}: {error}") from None


def _values_getter(getter: Any, count: int) -> Callable[[Any], tuple[Any, ...]]:
    if count == 0:
        return lambda item: ()
    if count == 1:
        return lambda item: (getter(item),)  # attrgetter of one name gives the bare value
    return getter


def _pack_fields(layout: Layout, item: Any) -> list[Any]:
    values = list(layout.values(item))
    for index, pack in layout.packs:
        values[index] = pack(values[index])
    return values


def _unpack_fields(cls: type, layout: Layout, values: Any) -> Any:
    if type(values) is not list or len(values) != len(layout.unpacks):
        raise WireError(f"expected {len(layout.unpacks)} fields")
    decoded = []
    for (name, unpack), value in zip(layout.unpacks, values, strict=True):
        try:
            decoded.append(unpack(value))
        except WireError as error:
            raise WireError(f"{name}: {error}") from None
    return cls(*decoded)
