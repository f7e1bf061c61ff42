"""Whether a JSON schema has any instance that ends: one whose every instance holds another of itself has none."""

from __future__ import annotations

from typing import Any

MAX_PASSES = 64  # as deep as a chain of references may be to be seen through


def is_endless(schema: Any) -> bool:
    """Whether every instance of a schema would go on for ever. False also where that is not easily told.

    Starting from nothing, each pass finds the subschemas that have a finite instance made of those found before; what
    is left over when a pass finds no more has none (a least fixed point, as for the productive rules of a grammar).
    """
    nodes = _subschemas(schema)
    finite: set[int] = set()
    for _ in range(MAX_PASSES):
        found = {id(node) for node in nodes if id(node) not in finite and _ends(node, schema, finite)}
        if not found:
            return isinstance(schema, dict) and id(schema) not in finite
        finite |= found
    return False


def _subschemas(schema: Any) -> list[dict[str, Any]]:
    """All objects within a schema: more than its subschemas, which does no harm."""
    nodes: list[dict[str, Any]] = []
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            nodes.append(value)
            left += value.values()
        elif isinstance(value, list):
            left += value
    return nodes


def _ends(schema: Any, root: Any, finite: set[int]) -> bool:
    """Whether a schema has a finite instance, given some that do."""

    def known(part: Any) -> bool:
        return not isinstance(part, dict) or id(part) in finite

    if "enum" in schema or "const" in schema:
        return True
    if "$ref" in schema:
        target = _target(schema["$ref"], root)
        if target is not None and not known(target):
            return False
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list) and not any(map(known, schema[keyword])):
            return False
    if isinstance(schema.get("allOf"), list) and not all(map(known, schema["allOf"])):
        return False
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        required = schema.get("required")
        names = required if isinstance(required, list) else []
        return all(known(schema["properties"].get(name)) for name in names if isinstance(name, str))
    if schema.get("type") == "array" and isinstance(schema.get("minItems"), int):
        first = schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        needed = first[: schema["minItems"]] + ([schema.get("items")] if schema["minItems"] > len(first) else [])
        return all(map(known, needed))
    return True


def _target(reference: Any, root: Any) -> Any:
    """What a reference within the schema leads to; None for any other."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found
