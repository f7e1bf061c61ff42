"""Every message survives the wire unchanged, and nothing else gets through."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc import control_messages, messages
from ipc.codec import MAX_FRAME_BYTES, Ids, WireError, decode, encode

# They travel inside messages only.
RECORDS = {"Refusal", "Sampling", "GrammarPart", "Output", "Logprobs", "Reading", "Head", "Tail", "Admit"}
MESSAGE_CLASSES = [
    value
    for name, value in [*vars(messages).items(), *vars(control_messages).items()]
    if isinstance(value, type) and dataclasses.is_dataclass(value) and name not in RECORDS
]

int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
texts = st.text(max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | int64 | texts | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "str": texts,
    "int": int64,
    "float": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=8),
    "Map": st.dictionaries(texts, plain, max_size=3),
    "Ids": st.lists(int32, max_size=5).map(lambda values: Ids("i", values)),
    "Ints": st.lists(int32, max_size=5),
    "Longs": st.lists(int64, max_size=5),
    "Floats": st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    "Strs": st.lists(texts, max_size=3),
    "Blobs": st.lists(st.binary(max_size=5), max_size=3),
}


def values_of(annotation: str) -> st.SearchStrategy[Any]:
    if annotation.endswith(" | None"):
        return st.none() | values_of(annotation.removesuffix(" | None"))
    if annotation.startswith("list["):
        return st.lists(values_of(annotation[5:-1]), max_size=3)
    if annotation in FIELDS:
        return FIELDS[annotation]
    return records(getattr(messages, annotation))


def records(cls: Any) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{field.name: values_of(str(field.type)) for field in dataclasses.fields(cls)})


@pytest.mark.parametrize("cls", MESSAGE_CLASSES, ids=lambda cls: cls.__name__)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_round_trip(cls: Any, data: st.DataObject) -> None:
    message = data.draw(records(cls))
    assert decode(encode(message, 7)) == (7, message)


@pytest.mark.parametrize("cls", MESSAGE_CLASSES, ids=lambda cls: cls.__name__)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_frames_are_refused_or_still_messages(cls: Any, data: st.DataObject) -> None:
    """Cut, changed or retyped anywhere: a WireError, or another valid message; nothing else."""
    frame = bytearray(encode(data.draw(records(cls)), 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "retype"]))
    if kind == "cut":
        frame = frame[: data.draw(st.integers(0, len(frame) - 1))]
    elif kind == "flip":
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        parts = msgpack.unpackb(bytes(frame), strict_map_key=False)
        parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(plain)
        frame = bytearray(msgpack.packb(parts))
    try:
        _, message = decode(bytes(frame))
    except WireError:
        return
    assert type(message) in MESSAGE_CLASSES


@settings(max_examples=300, deadline=None)
@given(frame=st.binary(max_size=200))
def test_noise_is_refused(frame: bytes) -> None:
    with pytest.raises(WireError):
        decode(frame)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([999, 1], "unknown tag 999"),
        ([41, 1, "extra"], "Shutdown: expected 0 fields"),
        ([2, 1, [1, 2]], "Abort: rids: expected packed 8-byte numbers"),
        ([2, 1, b"1234567"], "Abort: rids: expected packed 8-byte numbers"),
        ([39, 1, 5], "Drain: timeout_s: expected float, got int"),
        ([40, 1, "gateway", True], "Drained: aborted: expected an integer of 64 bits, got bool"),
        ([40, 1, "gateway", 2**63], "Drained: aborted: expected an integer of 64 bits, got int"),
        ({"tag": 1}, "not a message array"),
        ([], "not a message array"),
    ],
)
def test_the_reason_names_what_is_wrong(parts: Any, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode(msgpack.packb(parts))


def test_deep_nesting_and_size_are_bounded() -> None:
    with pytest.raises(WireError):
        decode(b"\x91" * 100_000 + b"\x90")
    with pytest.raises(WireError, match="over the limit"):
        decode(bytes(MAX_FRAME_BYTES + 1))


def test_tags_and_field_order_are_the_protocol() -> None:
    """The wire layout, spelled out for two messages: changing it is a change of protocol."""
    assert msgpack.unpackb(encode(control_messages.Shutdown(), 3)) == [41, 3]
    plan = messages.Plan(9, [1], [], [0, 2], [1, 16], [0, 1], [77])
    drop, slots, num_tokens = b"\x01\0\0\0", b"\0\0\0\0\x02\0\0\0", b"\x01\0\0\0\x10\0\0\0"
    packed = [4, 1, 9, drop, [], slots, num_tokens, b"\0\0\0\0\x01\0\0\0", b"M\0\0\0"]
    assert msgpack.unpackb(encode(plan, 1)) == packed
