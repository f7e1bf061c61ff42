"""Whether what a client sends as a JSON schema is one, and a reasonable one. Nothing is validated with it here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from gateway.errors import refuse

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 32
MAX_PATTERN_CHARS = 4096
TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")

_SCHEMAS = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")

# What ECMAScript, whose regular expressions JSON schema has, writes otherwise than Python.
_UNICODE_CLASS = re.compile(r"\\[pP]\{[^}]*\}")
_NAMED_GROUP = re.compile(r"\(\?<(?![=!])")


def check_parameters(schema: dict[str, Any], where: str) -> None:
    """As `check_schema`, for the arguments of a function, which are an object."""
    if schema.get("type", "object") != "object":
        refuse(f"{where}.type: the arguments of a function are an object", f"{where}.type")
    check_schema(schema, where)


def check_schema(schema: dict[str, Any], where: str) -> None:
    """Raise ApiError 400, which names the part at fault behind `where`, unless `schema` is one."""
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        refuse(f"{where}: the schema is larger than {MAX_SCHEMA_BYTES >> 10} KiB", where)
    left: list[tuple[Any, str, int]] = [(schema, where, 1)]
    while left:
        current, path, depth = left.pop()
        if depth > MAX_SCHEMA_DEPTH:
            refuse(f"{path}: the schema is more than {MAX_SCHEMA_DEPTH} levels deep", path)
        if isinstance(current, bool):
            continue
        if not isinstance(current, dict):
            refuse(f"{path}: a schema is an object, true or false", path)
        _check_keywords(current, path)
        left.extend((child, at, depth + 1) for child, at in _children(current, path))


def _children(schema: dict[str, Any], path: str) -> Iterator[tuple[Any, str]]:
    for key in _SCHEMAS:
        if key in schema:
            if key == "items" and isinstance(schema[key], list):  # the way of drafts before 2020
                yield from ((item, f"{path}.{key}[{index}]") for index, item in enumerate(schema[key]))
            else:
                yield schema[key], f"{path}.{key}"
    for key in _LISTS_OF_SCHEMAS:
        if key in schema:
            if not isinstance(schema[key], list) or not schema[key]:
                refuse(f"{path}.{key}: expected a list of schemas", f"{path}.{key}")
            yield from ((item, f"{path}.{key}[{index}]") for index, item in enumerate(schema[key]))
    for key in _MAPS_OF_SCHEMAS:
        if key in schema:
            if not isinstance(schema[key], dict):
                refuse(f"{path}.{key}: expected an object of schemas", f"{path}.{key}")
            yield from ((item, f"{path}.{key}.{name}") for name, item in schema[key].items())


def _check_keywords(schema: dict[str, Any], path: str) -> None:
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not types or not all(isinstance(name, str) and name in TYPES for name in types):
            refuse(f"{path}.type: expected one of {', '.join(TYPES)}, or a list of them", f"{path}.type")
    if "required" in schema:
        names = schema["required"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            refuse(f"{path}.required: expected a list of names", f"{path}.required")
    if "enum" in schema and (not isinstance(schema["enum"], list) or not schema["enum"]):
        refuse(f"{path}.enum: expected a list of values", f"{path}.enum")
    if "$ref" in schema and not isinstance(schema["$ref"], str):
        refuse(f"{path}.$ref: expected a string", f"{path}.$ref")
    for key in _NUMBERS:
        if key in schema and (isinstance(schema[key], bool) or not isinstance(schema[key], (int, float))):
            refuse(f"{path}.{key}: expected a number", f"{path}.{key}")
    for key in _COUNTS:
        if key in schema and (type(schema[key]) is not int or schema[key] < 0):
            refuse(f"{path}.{key}: expected a whole number from 0 on", f"{path}.{key}")
    if "pattern" in schema:
        _check_pattern(schema["pattern"], f"{path}.pattern")
    if isinstance(schema.get("patternProperties"), dict):
        for pattern in schema["patternProperties"]:
            _check_pattern(pattern, f"{path}.patternProperties")


def _check_pattern(pattern: Any, where: str) -> None:
    if not isinstance(pattern, str):
        refuse(f"{where}: expected a regular expression as a string", where)
    if len(pattern) > MAX_PATTERN_CHARS:
        refuse(f"{where}: longer than {MAX_PATTERN_CHARS} characters", where)
    try:
        re.compile(_NAMED_GROUP.sub("(?P<", _UNICODE_CLASS.sub(r"\\w", pattern)))
    except (re.error, OverflowError, RecursionError) as error:
        refuse(f"{where}: no regular expression: {error}", where)
