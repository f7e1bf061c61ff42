"""JSON schemas of many kinds that bound what they describe, so that an answer that follows one comes to an end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

NAMES = (
    "name",
    "age",
    "city",
    "price",
    "tags",
    "size",
    "kind",
    "active",
    "date",
    "items",
    "note",
    "id",
    "score",
    "unit",
)
WORDS = ("red", "green", "blue", "small", "large", "new", "used", "north", "south", "yes", "no", "maybe")
FORMATS = ("date", "ipv4", "uuid")  # a time may have any number of digits
PATTERNS = ("^[A-Z]{3}-[0-9]{4}$", "^[a-z]{1,8}$", "^(low|high)er$", "^[0-9]{2}:[0-9]{2}$", "^#[0-9a-f]{6}$")
MAX_DEPTH = 3


def bounded_schema(seed: int) -> Json:
    """The schema of a number, always the same: an object of one to five fields."""
    rng = random.Random(seed)
    schema = _object(rng, 1)
    if seed % 5 == 0:  # some of it is described elsewhere
        schema["$defs"] = {"part": _object(rng, MAX_DEPTH)}
        schema["properties"]["part"] = {"$ref": "#/$defs/part"}
        schema["required"].append("part")
    return schema


def _any(rng: random.Random, depth: int) -> Json:
    flat: list[Callable[[random.Random, int], Json]] = [
        _string, _string, _integer, _number, _enum, _const, _boolean, _pattern, _format, _nullable,
    ]  # fmt: skip
    deep: list[Callable[[random.Random, int], Json]] = [_object, _array, _tuple, _choice]
    return rng.choice(flat + deep if depth < MAX_DEPTH else flat)(rng, depth + 1)


def _object(rng: random.Random, depth: int) -> Json:
    names = rng.sample(NAMES, rng.randint(1, 5 if depth == 1 else 2))
    required = names if rng.random() < 0.7 else names[: rng.randint(0, len(names))]
    return {
        "type": "object",
        "properties": {name: _any(rng, depth) for name in names},
        "required": list(required),
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> Json:
    least = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth), "minItems": least, "maxItems": least + rng.randint(0, 2)}


def _tuple(rng: random.Random, depth: int) -> Json:
    items = [_any(rng, depth) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _choice(rng: random.Random, depth: int) -> Json:
    return {"anyOf": [_any(rng, depth) for _ in range(rng.randint(2, 3))]}


def _string(rng: random.Random, depth: int) -> Json:
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(1, 20)}


def _integer(rng: random.Random, depth: int) -> Json:
    lowest = rng.randint(-1000, 1000)
    schema: Json = {"type": "integer", "minimum": lowest, "maximum": lowest + rng.randint(0, 10**6)}
    return schema | ({"multipleOf": rng.choice((2, 5))} if rng.random() < 0.2 else {})


def _number(rng: random.Random, depth: int) -> Json:
    # In quarters, for a number may otherwise go on for ever behind its point.
    return {"type": "number", "minimum": 0, "exclusiveMaximum": rng.choice((1, 100, 2e5)), "multipleOf": 0.25}


def _enum(rng: random.Random, depth: int) -> Json:
    return {"enum": rng.sample((*WORDS, 1, 2.5, True, None), rng.randint(1, 6))}


def _const(rng: random.Random, depth: int) -> Json:
    return {"const": rng.choice((*WORDS, 7, False))}


def _boolean(rng: random.Random, depth: int) -> Json:
    return {"type": "boolean"}


def _pattern(rng: random.Random, depth: int) -> Json:
    return {"type": "string", "pattern": rng.choice(PATTERNS)}


def _format(rng: random.Random, depth: int) -> Json:
    return {"type": "string", "format": rng.choice(FORMATS)}


def _nullable(rng: random.Random, depth: int) -> Json:
    return {"type": ["string", "null"], "maxLength": 12}
